"""Where FedAttn cuts a prompt: no part is blank, and the parts' tokens are the prompt's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny import random_llm
from tokenizers_made import made

from fedray.member.member import Member
from fedray.methods.fedattn import FedAttn, segments
from fedray.types import FedrayError

TEXTS = (
    "a is b.\r\n\r\nc is d.\r\nwhat is a?",
    "a is b\n \nc is d\nwhat is a?",
    "a is b.\n\t\nc is d.\nwhat is a?",
    "a is b.\n\n\n  - c is d!\n  \n    - e is 17.\nwhat is a?",
    "x\n\r\ny is z. 'T is 22 of (3) , isn't it?\n\tdef f(x):\n    return x\nwhat is x?",
    "naïve café.\n\u3000全角。\n\u00a0\nwhat? 为什么 ?\n\x0b\n\u2028\nwhy?",
)


@pytest.mark.parametrize("by", ["sentence", "even"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_cut_changes_no_token(text: str, by: Any) -> None:
    """All cuts there are, at once; pre-tokenizers of Qwen 2 and 3, and of Llama 3."""
    with pytest.raises(FedrayError) as refused:
        segments(text, FedAttn(64, segments=by))
    there = int(str(refused.value).partition("which has ")[2].split()[0])
    parts = segments(text, FedAttn(there, segments=by))
    assert len(parts) == there > 1 and "".join(parts) == text
    assert all(part.strip() for part in parts)
    for kind in ("qwen2", "llama"):
        ids = [made(kind)(part, add_special_tokens=False)["input_ids"] for part in parts]
        assert [i for part in ids for i in part] == made(kind)(text, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_marks_the_beginning_of_every_text_is_refused() -> None:
    llm = replace(random_llm("qwen3-0.6b"), tokenizer=made("unigram"))
    member = Member("p", llm=llm)
    with pytest.raises(FedrayError, match=r"cannot take part in protocol=fedattn: .* give token ids") as refused:
        member.hold("s", ("a is b.\n",), FedAttn(2), 0)
    assert str(refused.value).count("\n") == 0 and member.stats()["sessions"] == 0
    assert member.hold("s", ((5, 6, 7),), FedAttn(2), 0).lengths == (3,)
