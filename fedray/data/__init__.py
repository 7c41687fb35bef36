"""Data sets through the `datasets` package: what is trained on, and what is evaluated on."""
