"""Run by every Python process that a test starts: what they import is garbage only when they end, and looking for
garbage while they import it is a seventh of the time they take to start."""

import gc

gc.set_threshold(50_000)
