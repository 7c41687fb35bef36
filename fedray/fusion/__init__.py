"""Fusers, the operators concat and mix, gates, and the registry that keeps them."""
