"""What a federation answers under load: callers that ask, wait, and ask again, or come back when they were refused.

    python benchmarks/load.py [--callers 1 8 64 200] [--seconds 30] [--deadline 2] [--tenants 4] [SETTING=VALUE ...]

Settings are Federation's, by default zoo=tiny on Ray (`ray.enabled=false`: in this process). Goodput is answers per
second that came by their deadline and a tenth of it, which receivers have where senders were late; late are others. RSS
is the driver's peak so far, in one process with the members.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from fedray import Federation
from fedray.errors import FederationBusy
from fedray.questions.tasks import load_task
from fedray.types import FedrayError

HEADER = (
    "callers | goodput/s | refused | of these late in the queue | refusal p50 ms | latency p50, p95 s | late | RSS MiB"
)


@dataclass(slots=True)
class Count:
    """What happened to one caller's requests. latencies: of answers; refusals: seconds until one was refused at once;
    waited: refused when the deadline passed."""

    latencies: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    waited: int = 0
    failed: list[str] = field(default_factory=list)


def call(fed: Federation, prompts: Sequence[str], number: int, tenant: str, deadline_s: float, until: float) -> Count:
    """Ask one prompt after the other until it is time."""
    found = Count()
    for turn in count():
        asked = time.monotonic()
        if asked >= until:
            return found
        try:
            future = fed.submit(prompts[(number * 31 + turn) % len(prompts)], tenant=tenant, deadline_s=deadline_s)
        except FederationBusy as busy:
            found.refusals.append(time.monotonic() - asked)
            time.sleep(busy.retry_after_s)
            continue
        try:
            future.result()
            found.latencies.append(time.monotonic() - asked)
        except FederationBusy as busy:
            found.waited += 1
            time.sleep(busy.retry_after_s)
        except FedrayError as error:
            found.failed.append(str(error))
    return found


def level(
    fed: Federation, prompts: Sequence[str], callers: int, tenants: int, deadline_s: float, seconds: float
) -> str:
    """So many callers for so long; returns a row of the table."""
    counts: list[Count] = []
    until = time.monotonic() + seconds

    def caller(number: int) -> None:
        counts.append(call(fed, prompts, number, f"tenant {number % tenants}", deadline_s, until))

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    latencies = sorted(latency for found in counts for latency in found.latencies)
    refusals = [refusal for found in counts for refusal in found.refusals]
    waited, failed = sum(found.waited for found in counts), [error for found in counts for error in found.failed]
    in_time = sum(latency <= 1.1 * deadline_s for latency in latencies)
    late = len(latencies) - in_time
    refusal = f"{1000 * statistics.median(refusals):.2f}" if refusals else "-"
    p50, p95 = (latencies[min(len(latencies) - 1, int(q * len(latencies)))] if latencies else 0 for q in (0.5, 0.95))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = f"{callers} | {in_time / took:.1f} | {len(refusals) + waited} | {waited} | {refusal} | {p50:.2f}, {p95:.2f}"
    return f"{row} | {late} | {rss:.0f}" + (f" | {len(failed)} FAILED: {failed[0]}" if failed else "")


def overrides(given: Sequence[str]) -> dict[str, Any]:
    """Nested settings of a.b=value; values as YAML has them."""
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        path, _, value = text.partition("=")
        *groups, name = path.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = yaml.safe_load(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 64, 200])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--deadline", type=float, default=2.0)
    parser.add_argument("--tenants", type=int, default=4)
    parser.add_argument("settings", nargs="*")
    told = parser.parse_args()
    torch.set_num_threads(1)
    with Federation(**overrides(told.settings)) as fed:
        prompts = [question.prompt for question in load_task(fed.settings)]
        fed.ask(prompts[0])
        print(HEADER)
        for callers in told.callers:
            print(level(fed, prompts, callers, told.tenants, told.deadline, told.seconds), flush=True)
        peaks = ", ".join(f"{name} {size >> 20}" for name, size in fed.memory().items())
        print(f"members' peak MiB: {peaks}")


if __name__ == "__main__":
    main()
