"""Ray: clusters, actors, the coordinator. Besides this package only training/ imports ray."""

import os

# Read by Ray when it is imported. `Answer.missing` names a lost member or node.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker died|Raylet is terminated|marked dead")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
