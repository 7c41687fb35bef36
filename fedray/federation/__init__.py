"""A federation: members found, placed, loaded and asked."""
