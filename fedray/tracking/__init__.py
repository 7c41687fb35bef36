"""Track runs with MLflow, which no other room imports.

Whatever is logged goes into a journal at once and to MLflow from a thread, so that a slow store, a dead server or a
missing MLflow neither stops nor slows the work. What MLflow did not take stays in the output folder as
`tracking_pending.json`, and `python -m fedray.tracking FOLDER` sends it later through the same code.
"""

from fedray.tracking.pending import sync
from fedray.tracking.tracker import Status, Tracker, browse

__all__ = ["Status", "Tracker", "browse", "sync"]
