"""A federation as a model of lm-evaluation-harness (pip install 'fedray[eval]').

>>> with Federation(receiver="qwen3-0.6b", senders=["llama-1b"]) as fed:
...     lm_eval.simple_evaluate(FederationLM(fed), tasks=["openbookqa"])

What a task calls its context is the user's message here: every member puts it into the chat template of its own,
whatever `apply_chat_template` says, and an answer begins without the space that tasks put in front of it. A member
without a chat template goes on with the context, behind that space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lm_eval.api.model import LM
from tqdm import tqdm

from fedray.errors import MemberFailed
from fedray.evaluation.measure import ANSWER_TOKENS
from fedray.federation.federation import Federation
from fedray.types import FedrayError, Generation, Plan, Request, Row

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

MAX_TOKENS = 256  # of a free answer, where a task does not say
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature"}


class FederationLM(LM):
    """The federation's receiver, with the help that its plan gives it.

    plan: another one of the federation's (`Federation.plan_for`); batch_size: contexts at a time, None is the
    settings'. Raises FedrayError where a request cannot be meant, and MemberFailed where the receiver fails: a
    harness that went on would count what nobody answered.
    """

    def __init__(self, federation: Federation, plan: Plan | None = None, batch_size: int | None = None) -> None:
        super().__init__()
        self.federation, self.plan = federation, plan or federation.plan
        self.batch_size = batch_size or federation.settings.task.batch_size

    @property
    def tokenizer_name(self) -> str:
        """What names the templates in the harness's caches."""
        members = (self.federation.members[name] for name in (self.plan.receiver, *self.plan.senders))
        return "+".join(f"{member.name}-{member.tokenizer_hash}-{member.prompting}" for member in members)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The user's message as it is: members know their templates. Raises FedrayError on several turns."""
        asked = [message["content"] for message in chat_history if message["role"] != "assistant"]
        if len(asked) < len(chat_history) or [m["role"] for m in chat_history].count("user") != 1:
            raise FedrayError("a federation reads one message of the user's: set fewshot_as_multiturn=False")
        return "\n\n".join(asked)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after the fused prompt, and whether greedy decoding would say it."""
        choices: dict[str, dict[str, int]] = {}  # context -> continuation -> its place in the row
        for context, continuation in map(_args, requests):
            row = choices.setdefault(_message(context), {})
            row.setdefault(continuation.lstrip(), len(row))
        if any(not text for row in choices.values() for text in row):
            raise FedrayError("a continuation is empty: there is nothing to score")
        contexts = sorted(choices, key=lambda context: len(choices[context]))  # rows of a batch are scored side by side
        found: dict[str, Row] = {}
        for batch in _batches(contexts, self.batch_size, "scoring", disable_tqdm):
            request = self.federation.request(*batch, choices=[tuple(choices[context]) for context in batch])
            found |= zip(batch, self._rows(request), strict=True)
        results = []
        for context, continuation in map(_args, requests):
            row, place = found[_message(context)], choices[_message(context)][continuation.lstrip()]
            results.append((row.scores[place], bool(row.greedy) and row.greedy[place]))
            self.cache_hook.add_partial("loglikelihood", (context, continuation), results[-1])
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Refused: it asks how likely a text is that answers nothing."""
        raise FedrayError(
            "a federation answers prompts, and loglikelihood_rolling scores a text without one: choose tasks of type "
            "multiple_choice, loglikelihood or generate_until"
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Free answers, cut where the first stop text begins."""
        found: dict[int, str] = {}
        for generation, places in self._by_generation(requests).items():
            size = max(1, min(self.batch_size, ANSWER_TOKENS // generation.max_tokens))
            for batch in _batches(places, size, "generating", disable_tqdm):
                prompts = [_message(_args(requests[place])[0]) for place in batch]
                rows = self._rows(self.federation.request(*prompts, generation=generation))
                for place, row in zip(batch, rows, strict=True):
                    context, how = _args(requests[place])
                    found[place] = _until(row.text, how.get("until"))
                    self.cache_hook.add_partial("generate_until", (context, how), found[place])
        return [found[place] for place in range(len(requests))]

    def _rows(self, request: Request) -> tuple[Row, ...]:
        answer = self.federation.run(request, self.plan)
        if any(row.failed for row in answer.rows):
            raise MemberFailed("; ".join(f"{missing.member}: {missing.reason}" for missing in answer.missing))
        return answer.rows

    def _by_generation(self, requests: Sequence[Instance]) -> dict[Generation, list[int]]:
        """Requests that are decoded alike, by their places."""
        groups: dict[Generation, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._generation(_args(request)[1]), []).append(place)
        return groups

    def _generation(self, how: Mapping[str, Any]) -> Generation:
        sampled = bool(how.get("do_sample", how.get("temperature", 0)))
        unknown = sorted(how.keys() - _KNOWN)
        if sampled and unknown:
            raise FedrayError(f"a federation samples by temperature alone: leave {', '.join(unknown)} out")
        temperature = float(how.get("temperature", 1.0)) if sampled else 0.0
        return Generation(int(how.get("max_gen_toks", MAX_TOKENS)), temperature, self.federation.settings.seed)


def _args(request: Instance) -> tuple[Any, Any]:
    """Context and continuation, or context and how to decode."""
    return cast(tuple[Any, Any], request.args)


def _message(context: str) -> str:
    if not context.strip():
        raise FedrayError("a context is empty, and a federation answers prompts: choose a task that asks something")
    return context


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    """The text in front of the first stop text in it."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        text = text.partition(stop)[0] if stop else text
    return text


def _batches(rows: Sequence[Any], size: int, what: str, silent: bool) -> Iterator[Sequence[Any]]:
    starts = range(0, len(rows), size)
    yield from (rows[start : start + size] for start in tqdm(starts, desc=what, disable=silent))
