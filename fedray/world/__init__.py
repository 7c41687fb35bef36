"""The synthetic world of zoo=tiny: its facts, and questions about them."""
