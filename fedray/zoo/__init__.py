"""The embedded scale model of the federation (zoo=tiny): its world, its training and its weights."""
