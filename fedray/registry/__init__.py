"""Fusers and gates on disk: a store of versions, hub repositories, imports, and plans made of them."""
