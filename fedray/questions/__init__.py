"""Tasks, and how replies are scored."""
