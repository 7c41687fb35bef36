"""Looks into the processes of a cluster: every function can be an actor's `__ray_call__` and then runs there."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedray.runtime.actors import RayGroup

Span = tuple[str, str, float, float]  # which work, for which session, from when to when (time.time())
_before: list[dict[str, Any]] = []
_taken: list[bytes] = []
_spans: list[Span] = []


def some_of(group: RayGroup, *names: str) -> RayGroup:
    """Some members of a group, in this order; the group stays theirs."""
    from fedray.runtime.actors import RayGroup

    return RayGroup({name: group._actors[name] for name in names}, {name: group.members[name] for name in names})


@contextmanager
def lent(group: Any, *names: str) -> Iterator[RayGroup]:
    """A group's processes with other members in them, embedded LLMs of these names; afterwards all is as it was. Every
    process of one's own would have to import torch and transformers first."""
    import ray

    from fedray.runtime.actors import RayGroup, gather_infos

    actors = dict(zip(names, group._actors.values(), strict=True))
    try:
        ray.get([actor.__ray_call__.remote(become, name) for name, actor in actors.items()])
        yield RayGroup(actors, gather_infos(actors))
    finally:
        ray.get([actor.__ray_call__.remote(become_again) for actor in actors.values()])


def become(member: Any, name: str) -> None:
    _before.append(vars(member).copy())
    vars(member).clear()
    member.__init__(name)


def become_again(member: Any) -> None:
    vars(member).clear()
    vars(member).update(_before.pop())


def process_id(actor: object = None) -> int:
    return os.getpid()


def start_counting(actor: object = None) -> None:
    """Keep what this process takes from Ray from now on: arguments, results, and objects of the store."""
    from ray._private.worker import global_worker

    deserialize = global_worker.deserialize_objects

    def counting(serialized_objects: Any, *rest: Any, **kwargs: Any) -> Any:
        _taken.extend(bytes(data) for data, _, *_ in serialized_objects if data is not None)
        return deserialize(serialized_objects, *rest, **kwargs)

    setattr(global_worker, "deserialize_objects", counting)  # noqa: B010  # Ray's type hints forbid it


def stop_counting(actor: object = None) -> list[int]:
    """The sizes in bytes of all that was taken since the start."""
    from ray._private.worker import global_worker

    del global_worker.deserialize_objects  # the instance's; the class's own is back
    sizes = [len(data) for data in _taken]
    _taken.clear()
    return sizes


def take(actor: object, *things: Any) -> None:
    """Be given something, and do nothing with it."""


def runs(ids: Sequence[int], length: int = 4) -> set[tuple[int, ...]]:
    """All that stands in a row among token ids."""
    return {tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)}


def written(run: Sequence[int]) -> dict[str, bytes]:
    """Token ids in a row as they may lie in what is taken, by how they are given: arrays, a tuple (pickled), a list
    (which Ray writes as msgpack), or text in a header."""
    import msgpack
    import numpy as np

    return {
        "int32": np.array(run, np.int32).tobytes(),
        "int64": np.array(run, np.int64).tobytes(),
        "tuple": b"".join(pickle.dumps(i, protocol=2)[2:-1] for i in run),
        "list": b"".join(map(msgpack.packb, run)),
        "text": json.dumps(run, separators=(",", ":"))[1:-1].encode(),
    }


def taken(actor: object = None) -> list[bytes]:
    """All that was taken since the start, as it came."""
    return _taken.copy()


def record_spans(member: Any) -> None:
    """Note from now on when this member reads prompts and when it decodes or scores."""
    for name in ("_read", "_respond"):
        setattr(member, name, partial(_timed, name, getattr(member, name)))


def spans(member: object) -> list[Span]:
    """What was noted since the last time that somebody asked."""
    noted = _spans.copy()
    _spans.clear()
    return noted


def _timed(name: str, work: Callable[..., Any], session: str, *rest: Any) -> Any:
    started = time.time()
    try:
        return work(session, *rest)
    finally:
        _spans.append((name, session, started, time.time()))


def processes_of(home: Path) -> list[int]:
    """Processes that live with this HOME."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={home}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has just ended, or is another user's
            continue
    return found
