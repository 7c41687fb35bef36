"""What crosses a process border: headers and byte views, never code."""
