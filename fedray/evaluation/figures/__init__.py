"""Figures of evaluations, a file per paper."""
