"""The four types of Appendix A, of the embedded LLMs."""

from __future__ import annotations

import pytest

from fedray.llm.loading import describe, load
from fedray.protocols import PROTOCOLS

HERE, CODER, LLAMA = "qwen2.5-0.5b", "qwen2.5-coder-0.5b", "llama-1b"


@pytest.mark.parametrize(
    ("protocol", "members", "kind"),
    [
        ("c2c", (HERE, CODER), "homogeneous cache"),
        ("t2t", (HERE, CODER), "homogeneous token"),
        ("c2c", (HERE, LLAMA), "heterogeneous cache"),
        ("t2t", (HERE, CODER, LLAMA), "heterogeneous token"),
        ("standalone", (HERE,), None),
        ("self_refine", (HERE,), None),
    ],
)
def test_the_four_types(protocol: str, members: tuple[str, ...], kind: str | None) -> None:
    assert PROTOCOLS[protocol].type_of([describe(load(name)) for name in members]) == kind
