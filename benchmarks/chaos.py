"""Kill and freeze members of a federation at random while callers ask it. (run from a clone of this repository)

    python benchmarks/chaos.py --requests 200 --kills 20 --freezes 1 --seed 0 [--callers 4]

Every request must be answered: none is lost, none hangs, and none is refused, since it has time. An answer must be
that of a federation in which nobody died and the members that it names as missing do not take part; whoever it names
must have been down, and every member must be back at the end. Prints figures; exits with 1 where one did not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median, quantiles

import psutil

from fedray import Federation
from fedray.questions.tasks import load_task
from fedray.settings.settings import build
from fedray.types import Answer, FedrayError

RECEIVER, SENDERS = "qwen3-0.6b", ("qwen2.5-0.5b", "llama-1b")
COORDINATOR = "coordinator"
PATIENCE_S = 300.0  # a request that takes longer hangs
LOOK_S = 0.02
SETTINGS = {"receiver": RECEIVER, "senders": SENDERS, "generation": {"max_tokens": 8}, "tracking": {"enabled": False}}


@dataclass(slots=True)
class Outage:
    """From the signal to the first look at which the member was there again."""

    member: str
    how: str
    began: float
    ended: float | None = None


@dataclass(slots=True)
class Found:
    """What went on. problems: what must not happen."""

    kinds: Counter[str] = field(default_factory=Counter)
    outages: list[Outage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Chaos:
    """Signals at random moments to whoever is there."""

    def __init__(
        self, fed: Federation, found: Found, kills: int, freezes: int, seed: int, answered: list[int], of: int
    ):
        self.fed, self.found, self.answered = fed, found, answered
        draw = random.Random(seed)
        victims = (*fed.members, COORDINATOR)
        self.plan = [("killed", draw.choice(victims)) for _ in range(kills)]
        self.plan += [("frozen", draw.choice(tuple(fed.members))) for _ in range(freezes)]
        draw.shuffle(self.plan)
        self.every = of / max(len(self.plan), 1)  # requests between two
        self.down: dict[str, tuple[Outage, int]] = {}
        self.over = threading.Event()

    def run(self) -> None:
        """Send signals as requests are answered, and look who is back."""
        done = 0
        while not self.over.is_set() or self.down:
            health = self.fed.health()
            for name, (outage, restarts) in list(self.down.items()):
                if health[name].ready and health[name].restarts > restarts:
                    outage.ended = time.monotonic()
                    del self.down[name]
            if done < len(self.plan) and self.answered[0] >= done * self.every:
                how, name = self.plan[done]
                if name not in self.down:  # or else later
                    self._signal(name, how, health)
                    done += 1
            time.sleep(LOOK_S)

    def _signal(self, name: str, how: str, health: dict) -> None:
        number = signal.SIGKILL if how == "killed" else signal.SIGSTOP
        outage = Outage(name, how, time.monotonic())
        if name == COORDINATOR:
            outage.ended = outage.began  # plans in hand go on
            for process in psutil.process_iter(["cmdline"]):
                if any(text.startswith("ray::Coordinator") for text in process.info["cmdline"] or ()):
                    process.send_signal(number)
        else:
            self.down[name] = outage, health[name].restarts
            os.kill(self.fed.members[name].pid, number)
        self.found.outages.append(outage)


def ask(fed: Federation, found: Found, expected: Expected, number: int, prompt: str) -> None:
    began = time.monotonic()
    try:
        if number % 50 == 0:
            fed.plan_for()  # the coordinator's part
        answer = fed.run(fed.request(prompt, id=f"request-{number}"))
    except FedrayError as error:
        found.kinds["refused"] += 1
        found.problems.append(f"request {number} had time, and was refused: {error}")
        return
    except BaseException as error:  # noqa: BLE001  # whatever it is, it must not happen
        found.problems.append(f"request {number}: {type(error).__name__}: {error}")
        return
    found.kinds["with somebody missing" if answer.missing else "whole"] += 1
    down = {o.member for o in found.outages if o.began <= time.monotonic() and (o.ended or began) >= began}
    for missing in answer.missing:
        if missing.member not in down:
            found.problems.append(f"request {number}: {missing.member} was there, and is missing: {missing.reason}")
    expected.check(found, number, prompt, answer)


class Expected:
    """What a federation in one process answers in which nobody dies."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.fed = Federation(**SETTINGS, ray={"enabled": False})
        self.prompts, self.told = tuple(prompts), {}
        self.lock = threading.Lock()

    def check(self, found: Found, number: int, prompt: str, answer: Answer) -> None:
        left = tuple(name for name in SENDERS if name not in {missing.member for missing in answer.missing})
        with self.lock:
            if left not in self.told:
                plan = self.fed.plan_for(senders=left)
                rows = self.fed.run(self.fed.request(*self.prompts), plan).rows
                self.told[left] = dict(zip(self.prompts, rows, strict=True))
        if answer.rows[0].tokens != self.told[left][prompt].tokens:
            found.problems.append(f"request {number}: {answer.text!r} and not {self.told[left][prompt].text!r}")


def run(requests: int, kills: int, freezes: int, seed: int, callers: int) -> Found:
    questions = load_task(build({**SETTINGS, "task": {"limit": 200}}))
    prompts = list(dict.fromkeys(question.prompt for question in questions))
    found, answered, expected = Found(), [0], Expected(prompts)
    with Federation(**SETTINGS) as fed, ThreadPoolExecutor(callers) as pool:
        chaos = Chaos(fed, found, kills, freezes, seed, answered, requests)
        signals = threading.Thread(target=chaos.run, daemon=True)
        signals.start()

        def one(number: int) -> None:
            ask(fed, found, expected, number, prompts[number % len(prompts)])
            answered[0] += 1

        asked = [pool.submit(one, number) for number in range(requests)]
        for number, future in enumerate(asked):
            try:
                future.result(PATIENCE_S)
            except TimeoutError:
                print(f"PROBLEM request {number} hangs", flush=True)
                os._exit(1)  # its thread would be waited for
        chaos.over.set()
        signals.join(PATIENCE_S)
        found.problems += [f"{outage.member} did not come back" for outage in found.outages if outage.ended is None]
        if sum(found.kinds.values()) != requests and not found.problems:
            found.problems.append(f"{requests - sum(found.kinds.values())} requests are lost")
    expected.fed.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("requests", 200), ("kills", 20), ("freezes", 1), ("seed", 0), ("callers", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    began, found = time.monotonic(), run(**vars(parser.parse_args()))
    back = sorted(o.ended - o.began for o in found.outages if o.ended is not None and o.member != COORDINATOR)
    print(f"{sum(found.kinds.values())} requests in {time.monotonic() - began:.0f} s: {dict(found.kinds)}")
    print(f"signals: {dict(Counter((o.member, o.how) for o in found.outages))}")
    if len(back) > 1:
        print(f"back again: p50 {median(back):.1f} s, p95 {quantiles(back, n=20)[-1]:.1f} s")
    for problem in found.problems[:20]:
        print(f"PROBLEM {problem}")
    return bool(found.problems)


if __name__ == "__main__":
    sys.exit(main())
