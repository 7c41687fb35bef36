"""What transformers, tokenizers, safetensors, json and jinja raise on odd files, as one sentence each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from threading import RLock
from types import FrameType
from typing import Any

from transformers.utils import logging as transformers_logging

from fedray.types import FedrayError

_LONGEST = 200  # characters of another library's words
_ONE_AT_A_TIME = RLock()  # as transformers loads; the level of its warnings is everybody's too


@contextmanager
def explained(title: str, what: str, remedy: str) -> Iterator[None]:
    """Raise whatever goes wrong as FedrayError: "TITLE: WHAT (...); REMEDY". transformers' own warnings are not shown
    meanwhile."""
    with _ONE_AT_A_TIME:
        level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity(CRITICAL)
        try:
            yield
        except FedrayError:
            raise
        except Exception as error:  # files may hold anything, and these libraries raise what they like
            raise FedrayError(f"{title}: {what} ({reason(error)}); {remedy}") from error
        finally:
            transformers_logging.set_verbosity(level)


@contextmanager
def in_steps(most: int) -> Iterator[None]:
    """Raise TimeoutError in a template of jinja that runs more lines than so many, which would go on for ever."""
    left, tracing = most, sys.gettrace()

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != "<template>":  # what compiles it, or is called by it
            return None
        left -= 1
        if left < 0:
            raise TimeoutError("it does not come to an end")
        return count

    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(tracing)


def reason(error: BaseException) -> str:
    """Why, in the words of who raised it: their first paragraph, on one line."""
    if type(error).__name__.startswith("StrictDataclass") and error.__cause__ is not None:
        error = error.__cause__  # huggingface_hub's validation, around what it says
    if isinstance(error, RecursionError):
        return "it goes round in circles, or is nested without end"
    if "trust_remote_code" in str(error):
        return "it wants code of its own to be run, which is never done"
    said = " ".join(str(error).strip().partition("\n\n")[0].split())
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"
    return said if " " in said else f"{type(error).__name__} {said}".strip()
