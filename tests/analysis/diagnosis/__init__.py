"""The diagnosis of learners."""
