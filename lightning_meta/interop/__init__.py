"""Exchange with other libraries; none of them is imported before it is needed."""
