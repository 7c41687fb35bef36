"""How fast and how small an exchange is, each figure a ratio to a baseline of the same run."""
