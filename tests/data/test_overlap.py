"""Training text that gives evaluation questions away."""

from __future__ import annotations

import pytest

from fedray.data.overlap import Contamination
from fedray.data.rows import Item, TrainingTalk

LONG = "a planet rotates faster after a meteorite impact which is the most likely effect of this increase"
SHORT = Item("The sun is responsible for", ("puppies learning", "plants sprouting"), 1)
CHINESE = Item("下列关于位填充方法的说法正确的是哪一项呢", ("甲", "乙"), 0)
OVERLAP = Contamination([Item(LONG, ("longer years", "shorter days"), 1), SHORT, CHINESE])


@pytest.mark.parametrize(
    ("text", "gives_away"),
    [
        (f"Tell me: {LONG.upper()}?", True),
        ("So a planet rotates faster, after a METEORITE impact: which is the most LIKELY; and then?", True),
        ("a planet rotates faster after a meteorite impact which is the worst", False),
        ("The sun is responsible for: (A) puppies learning (B) plants sprouting", True),
        ("The sun is responsible for warmth, and plants sprouting.", False),
        ("请问下列关于位填充方法的说法正确的是什么", True),
        ("位填充方法", False),
        ("", False),
    ],
)
def test_what_gives_a_question_away(text: str, gives_away: bool) -> None:
    assert OVERLAP.gives_away(TrainingTalk((text,), "Well.")) is gives_away
    assert OVERLAP.gives_away(TrainingTalk(("Hello", "Hi.", "Go on"), f"Well: {text}")) is gives_away
