"""Tasks that are groups of a table's rows."""
