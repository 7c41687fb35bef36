"""Kill and crowd a registry, and count what it lost: python tests/registry_stress.py --kills 100 --seconds 60

Processes are forked, killed with SIGKILL at random moments of their work, and share one registry folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tiny import random_fuser, random_llm

from fedray.llm.loading import describe
from fedray.registry.store import Registry, load_fuser
from fedray.types import FedrayError

SENDER, RECEIVER = "qwen2.5-0.5b", "qwen3-0.6b"
FILES = ("manifest.json", "model.safetensors")


class Versions:
    """Versions of one fuser, in memory and in a registry."""

    def __init__(self, root: Path, count: int = 3) -> None:
        sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
        self.registry = Registry(root, embedded=None)
        self._fusers = [random_fuser(sender, receiver, "concat", seed=seed) for seed in range(count)]
        self._llms = describe(sender), describe(receiver)
        self.hashes = [self.add(number) for number in range(count)]

    def add(self, number: int) -> str:
        return self.registry.add_fuser(self._fusers[number], *self._llms, {}).hash

    def add_all(self) -> None:
        for number in range(len(self._fusers)):
            self.add(number)

    def read(self) -> None:
        """Do what a plan and the member behind it do. Raises FedrayError."""
        load_fuser(self.registry.find_fuser(*self._llms, "mlp", "concat"))

    def folder(self, number: int) -> Path:
        return Path(self.registry.path or "") / f"{SENDER}--{RECEIVER}" / self.hashes[number]

    def damage(self, number: int) -> None:
        """Flip a bit of its weights, behind the back of whoever registers."""
        weights = self.folder(number) / "model.safetensors"
        blob = bytearray(weights.read_bytes())
        blob[len(blob) // 2] ^= 1
        weights.write_bytes(blob)

    def faults(self, but: int | None = None) -> dict[str, int]:
        """How many versions are gone, and how many cannot be loaded, `but` one left out."""
        folders = [self.folder(number) for number in range(len(self.hashes)) if number != but]
        lost = [folder for folder in folders if not folder.is_dir()]
        unreadable = 0
        for folder in folders:
            if folder not in lost:
                alone = Registry(folder.parent.parent, embedded=None)
                try:
                    (found,) = [m.artifact(path) for m, path in alone.list() if path == folder]
                    load_fuser(found)
                except (FedrayError, ValueError):
                    unreadable += 1
        return {"lost": len(lost), "unreadable": unreadable}


def forked(work: Callable[[], dict[str, int]]) -> tuple[int, Callable[[], dict[str, int]]]:
    """Do some work in a process of its own; its id, and a call that waits for what it returned."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        os.write(write_end, json.dumps(work()).encode())
        os._exit(0)
    os.close(write_end)

    def outcome() -> dict[str, int]:
        with os.fdopen(read_end) as pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
        return json.loads(said) if said else {}

    return pid, outcome


def kill(root: Path, times: int, draws: random.Random, damaged: int | None = None) -> dict[str, int]:
    """SIGKILL a process that registers existing versions again and again, at `times` random moments.

    damaged: a version that it finds damaged and mends; one file of it or the other may be missing at no moment.
    """
    versions, found = Versions(root), {"kills": 0, "lost": 0, "unreadable": 0}

    def work() -> dict[str, int]:
        while True:
            versions.add_all()

    for _ in range(times):
        if damaged is not None:
            versions.damage(damaged)
        pid, outcome = forked(work)
        time.sleep(draws.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        outcome()
        faults = versions.faults(but=damaged)
        if damaged is not None:
            faults["lost"] += not all((versions.folder(damaged) / name).is_file() for name in FILES)
        found = {key: value + faults.get(key, 1) for key, value in found.items()}
        if any(faults.values()):
            versions.add_all()  # so that each kill finds them all
    versions.add_all()
    assert not any(versions.faults().values())
    return {**found, "left over": len(_left_over(root))}


def crowd(root: Path, seconds: float) -> dict[str, int]:
    """Let two processes register the same versions, and one load them, for some seconds."""
    versions = Versions(root)
    until = time.monotonic() + seconds

    def again(name: str, step: Callable[[], None]) -> dict[str, int]:
        done = {name: 0, f"{name} failed": 0}
        while time.monotonic() < until:
            done[name] += 1
            try:
                step()
            except (FedrayError, OSError) as error:
                if not done[f"{name} failed"]:
                    print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
                done[f"{name} failed"] += 1
        return done

    turns = [itertools.cycle(range(len(versions.hashes))) for _ in range(2)]
    works = [lambda turn=turn: again("writes", lambda: versions.add(next(turn)) and None) for turn in turns]
    running = [forked(work) for work in (*works, lambda: again("reads", versions.read))]
    found: dict[str, int] = {}
    for _, outcome in running:
        found = {key: found.get(key, 0) + value for key, value in {**dict.fromkeys(found, 0), **outcome()}.items()}
    return {**found, **versions.faults(), "left over": len(_left_over(root))}


def _left_over(root: Path) -> list[Path]:
    return [path for path in root.glob("*/*") if path.name.startswith(".")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has no threads but its own
    with tempfile.TemporaryDirectory(prefix="fedray-") as folder:
        found = {
            "killed": kill(Path(folder, "killed"), given.kills, random.Random(given.seed)),
            "mending": kill(Path(folder, "mending"), given.kills, random.Random(given.seed), damaged=0),
            "crowded": crowd(Path(folder, "crowded"), given.seconds),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
