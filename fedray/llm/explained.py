"""Convert what transformers, tokenizers, safetensors, json and jinja raise on odd files into one sentence each."""

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
_LOADING = RLock()  # transformers loads one model at a time; the level of its warnings is global too


@contextmanager
def explained(title: str, what: str, remedy: str) -> Iterator[None]:
    """Raise any error as FedrayError: "TITLE: WHAT (...); REMEDY". transformers' warnings are off meanwhile."""
    with _LOADING:
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
    """Limit the lines that a template of jinja may run. Raises TimeoutError beyond."""
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
    """Extract the first paragraph of an error's message, on one line."""
    if type(error).__name__.startswith("StrictDataclass") and error.__cause__ is not None:
        error = error.__cause__  # huggingface_hub's validation, around what it says
    if isinstance(error, RecursionError):
        return "it goes round in circles, or is nested without end"
    if "trust_remote_code" in str(error):
        return "it wants code of its own to be run, which is never done"
    text = " ".join(str(error).strip().partition("\n\n")[0].split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return text if " " in text else f"{type(error).__name__} {text}".strip()
