"""The checkpoint of one training: atomically written, and with the settings it belongs to.

    <registry>/.training/<what is trained>/checkpoint.safetensors

One file holds everything: tensors, and in its header (JSON) what is trained, from what and by which code. Each save
atomically replaces it, so that a kill at any moment leaves a whole checkpoint, the last or the new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedray import __version__
from fedray.files import flush
from fedray.types import FedrayError

FOLDER = ".training"  # in a registry
NAME = "checkpoint.safetensors"
CODE = f"fedray {__version__}, torch {torch.__version__.partition('+')[0]}"
T = TypeVar("T")
_ANEW = "start anew with restart=true"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A training at one moment. values: JSON's own values."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Select the tensors whose names begin with `prefix.`, without it."""
        return {k.removeprefix(f"{prefix}."): v for k, v in self.tensors.items() if k.startswith(f"{prefix}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer, name: str = "optimizer") -> dict[str, Tensor]:
    """Name the tensors of an optimizer's state: NAME.<parameter>.<key>."""
    state = optimizer.state_dict()["state"]
    return {f"{name}.{i}.{key}": tensor for i, tensors in state.items() for key, tensor in tensors.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, snapshot: Snapshot, groups: list[dict[str, Any]], name: str = "optimizer"
) -> None:
    """Load what `optimizer_tensors` named; groups: its parameter groups."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in snapshot.under(name).items():
        index, _, key = path.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


class Checkpoint:
    """File of one training's latest snapshot.

    what: what is trained, in words ("the fuser llama-1b -> qwen3-0.6b"); llms: hashes of those it is trained for;
    settings: everything else that decides the weights. A checkpoint that differs in any of them, or in the code's
    version, is refused by name.
    """

    def __init__(self, folder: Path, what: str, llms: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self._meaning = json.loads(json.dumps({"what": what, "llms": llms, "code": CODE, "settings": settings}))

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Lock the training against other processes. Raises FedrayError where one holds it; a kill releases it."""
        lock = FileLock(self.path.with_name("lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            what = f"another process is training {self._meaning['what']} in {self.path.parent}"
            raise FedrayError(f"{what}: wait for it, or choose another registry.path") from error
        except OSError as error:
            why = f"{self.path.parent} cannot be written ({error.strerror})"
            raise FedrayError(f"{why}: choose another registry.path=DIR") from error
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
            self._tidy()

    def check(self) -> None:
        """Validate as `load` does, without reading the tensors. Raises FedrayError."""
        self._open(lambda file: None)

    def load(self) -> Snapshot | None:
        """Load the last snapshot, or None where there is none. Raises FedrayError: damaged, or of another training."""
        self._clear()
        return self._open(
            lambda file: Snapshot(
                {key: file.get_tensor(key) for key in file.keys()},  # noqa: SIM118  # it is no mapping
                json.loads(file.metadata()["values"]),
            )
        )

    def save(self, snapshot: Snapshot) -> None:
        """Atomically replace the last snapshot. Raises FedrayError where it cannot; the last one then stays."""
        header = {"meaning": json.dumps(self._meaning), "values": json.dumps(dict(snapshot.values))}
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in snapshot.tensors.items()}
        new = self.path.with_name(f".{NAME}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, new, header)
            flush(new)
            os.replace(new, self.path)
            flush(self.path.parent)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                new.unlink()
            what = f"{self.path} cannot be written ({error.strerror if isinstance(error, OSError) else error})"
            remedy = "what was saved before is untouched: make room, and the same command goes on from there"
            raise FedrayError(f"{what}; {remedy}") from error

    def discard(self) -> None:
        """Remove the checkpoint, and its folder if nothing else lies in it."""
        self._clear()
        self.path.unlink(missing_ok=True)
        self._tidy()

    def _tidy(self) -> None:
        with suppress(OSError):  # something lies in it
            self.path.parent.rmdir()

    def _clear(self) -> None:
        """Remove partial files that a kill left."""
        for half in self.path.parent.glob(f".{NAME}.*"):
            half.unlink(missing_ok=True)

    def _open(self, read: Callable[[Any], T]) -> T | None:
        """Validate the file, if there is one, and apply `read` to it."""
        try:
            if not self.path.is_file():
                return None
            with safe_open(self.path, framework="pt") as file:
                self._compare(json.loads((file.metadata() or {})["meaning"]))
                return read(file)
        except FedrayError:
            raise
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise FedrayError(f"{self.path} is damaged ({error}); {_ANEW}") from error

    def _compare(self, there: Mapping[str, Any]) -> None:
        here = self._meaning
        if there["what"] != here["what"]:
            raise FedrayError(f"{self.path} is a checkpoint of {there['what']}, not of {here['what']}; {_ANEW}")
        if there["llms"] != here["llms"]:
            others = [name for name, weights in here["llms"].items() if there["llms"].get(name) != weights]
            raise FedrayError(f"{self.path} was trained for other weights of {', '.join(others)}; {_ANEW}")
        if there["code"] != here["code"]:
            raise FedrayError(
                f"{self.path} was written by {there['code']}, this is {here['code']}; finish it with that, or {_ANEW}"
            )
        was, now = there["settings"], here["settings"]
        differ = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
        if differ:
            before, after = (", ".join(f"{key}={side.get(key)}" for key in differ) for side in (was, now))
            raise FedrayError(
                f"{self.path} was begun with {before}, this is {after}; finish it with those settings, or {_ANEW}"
            )
