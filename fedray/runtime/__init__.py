"""The rooms that know Ray: clusters, actors, the coordinator. Nothing outside this package imports ray."""

import os

# Read by Ray when it is imported. A lost member or node is named in `Answer.missing`, in one line instead of twenty.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker died|Raylet is terminated|marked dead")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
