"""Extract the answer of a free reply: a letter, a choice named by its text, a number, a few words.

The last answer that is *stated* counts ("the answer is B", \\boxed{B}, 故选B, a line that is only B), whatever else is
mentioned around it. Several at once ("A or B", "18 or 20") are none, and so is one that is not there ("E" of four).
Where nothing is stated, what alone is left counts: the one letter or choice that is named and not ruled out, the last
number.

Thinking (<think>...</think>) is dropped, also where only its end or its beginning is there: what an unfinished thought
holds states nothing. Base LLMs go on with another question after their answer: what comes from there on is not read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise

from fedray.data.numbers import NUMBER, plain_number, plain_text
from fedray.data.rows import LETTERS
from fedray.questions import phrases as say

_NEAR = 120  # characters before a place that are looked at
_NUMBER = re.compile(NUMBER)
Numeral = tuple[str | None] | tuple[()]  # (): no number is stated; (None,): what is stated is no number, or several
Choice = tuple[int | None] | tuple[()]  # the same of choices
Places = Iterator[tuple[int, int | None]]  # where something is stated, and which choice


def letter(reply: str, choices: Sequence[str]) -> int | None:
    """Extract the choice that a reply states by its letter or by its text; None: none of them, or several."""
    for part in _parts(reply):
        if found := _Reading(_plain(part), [_plain(choice) for choice in choices]).choice():
            return found[0]
    return None


def named(reply: str, choices: Sequence[str]) -> int | None:
    """Find the one choice whose text is in a reply and not denied; None: none is, or several are."""
    return _Reading(reply, choices).named()


def number(reply: str) -> str | None:
    """Extract the number a reply states as its answer, or else its last one, normalized; None: there is none.

    >>> number("... so the answer is $1,200.50")
    '1200.5'
    """
    for part in _parts(reply):
        if found := _number(plain_text(_marked(part))):
            return found[0]
    return None


def short(reply: str) -> str | None:
    """Extract the few words that a reply states as its answer, or else its first line; None: there is none.

    >>> short("She starred in Kiss and Tell.\\nAnswer: **Chief of Protocol**")
    'Chief of Protocol'
    """
    for part in _parts(reply):
        before, *stated = say.SHORT_CUES.split(say.EMPHASIS.sub("", _marked(part)))
        lines = (line.strip(' "“”') for said in (*reversed(stated), before) for line in said.splitlines())
        if found := next(filter(None, lines), None):
            return found
    return None


def _parts(reply: str) -> Iterator[str]:
    """Split a reply, without its thoughts, where another question begins."""
    for thinking in say.THINKING:
        reply = thinking.sub("\n", reply)
    yield from say.NEXT.split(reply)


def _marked(text: str) -> str:
    """Remove markup of LaTeX and HTML; what it marks as the answer is put in words."""
    for pattern, plain in say.MARKUP:
        text = pattern.sub(plain, text)
    return text


def _plain(text: str) -> str:
    """Remove all markup, and normalize characters."""
    return say.EMPHASIS.sub("", _marked(unicodedata.normalize("NFKC", text)))


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Find where a pattern that may be empty ends."""
    m = pattern.match(text, start)
    return start if m is None else m.end()


def _holds(text: str, place: int) -> bool:
    """Check whether what is stated here is neither denied nor supposed."""
    return not say.SUPPOSED.search(say.CLAUSE.split(text[max(0, place - _NEAR) : place])[-1])


# -- letters ----------------------------------------------------------------------------------------------------------


class _Reading:
    """One part of a reply to a question with choices."""

    def __init__(self, text: str, choices: Sequence[str]) -> None:
        self._text, self._known = text, LETTERS[: len(choices)]
        self._texts = [_pattern(choice) for choice in choices]
        found = [(m.start(), m.end(), i) for i, p in enumerate(self._texts) if p for m in p.finditer(text)]
        self._spans = _longest(found)  # where choices' texts stand
        self._out: set[int | None] = set()  # choices that are ruled out
        self._listed: list[tuple[int, int]] = []  # lines of a list of choices, from where to where

    def choice(self) -> Choice:
        """Find the last choice that is stated, or the only one that is left."""
        alone = [i for i, p in enumerate(self._texts) if p and p.fullmatch(self._text.strip(" \n.。!"))]
        if len(alone) == 1:
            return (alone[0],)
        stated = [*self._called(), *self._lines(), *self._cued()]
        if stated:
            return (max(stated, key=lambda place: place[0])[1],)
        letters = [m for m in self._letters(0, len(self._text)) if self._is_marked(m) or self._is_short(m)]
        letters = [m for m in letters if _holds(self._text, m.start()) and not self._lists(m.start())]
        mentioned = {self._index(m) for m in letters} - self._out - {None}
        if len(mentioned) == 1:
            return (mentioned.pop(),)
        found = self.named()
        return () if found is None else (found,)

    def named(self) -> int | None:
        """Find the one choice whose text is there, not denied, and no part of another's."""
        found = {i for start, _, i in self._spans if not self._denied(start)} - self._out
        return found.pop() if len(found) == 1 else None

    def _cued(self) -> Places:
        """Find what follows "the answer is" and its like."""
        for certain, pattern in say.CUES:
            for cue in pattern.finditer(self._text):
                found = self._at(cue.end(), certain) if _holds(self._text, cue.start()) else None
                if found and not self._lists(found[0], cue.start()):
                    yield found[0], None if self._several(*found[1:]) else found[2]

    def _called(self) -> Places:
        """Find letters and texts that are called right, and rule out those that are called wrong."""
        for group in say.GROUP.finditer(self._text):
            letters = self._letters(group.start(), group.end())
            indices = {self._index(m) for m in letters if m["letter"].isupper() and self._is_letter(m)}
            if indices:
                yield from self._judged(group.start(), self._behind(group.end(), indices), indices)
        for start, end, index in self._spans:
            yield from self._judged(start, end, {index})

    def _judged(self, start: int, end: int, indices: set[int | None]) -> Places:
        if self._denied(start) or say.WRONG.match(self._text, end):
            self._out |= indices
        elif say.RIGHT.match(self._text, end) and _holds(self._text, start):
            yield start, min(indices, key=str) if len(indices) == 1 else None

    def _lines(self) -> Places:
        """Find lines that are only a letter, and the first or last that begins with one and is no part of a list."""
        lines = list(say.LINE.finditer(self._text))
        labels: list[tuple[int, int, int]] = []  # of lines that begin with a letter: number, place, choice
        for number, line in enumerate(lines):
            if m := say.BARE.match(line[0]) if len(line[0]) < _NEAR else None:
                yield line.start(), self._index(m)
            elif say.INLINE.match(line[0]):  # a list in one line
                continue
            elif (
                (a := say.ANSWER.match(line[0])) and (found := self._at(line.start() + a.end(), True)) and found[2] != 0
            ):
                yield found[0], found[2]  # "A:" as in "Q: ... A: ..."
            elif (m := say.LABEL.match(line[0]) or self._own(line[0])) and (index := self._index(m)) is not None:
                end = line.start() + m.end("close")
                if self._several(end, index):
                    yield line.start(), None
                elif not say.WRONG.match(self._text, self._behind(end, {index})):
                    labels.append((number, line.start(), index))
        listed = {pair for one, two in pairwise(labels) if two[2] == one[2] + 1 for pair in (one, two)}
        self._listed = [lines[number].span() for number, _, _ in listed]
        for label in (label for label in labels if label not in listed):
            if label[0] in (0, len(lines) - 1) or label == labels[-1]:
                yield label[1:]

    def _lists(self, place: int, cue: int = -1) -> bool:
        """Check whether this is in a list of the choices, which begins behind the cue."""
        return any(cue < start <= place <= end for start, end in self._listed)

    def _at(self, place: int, certain: bool) -> tuple[int, int, int | None] | None:
        """Match the answer that begins here: place, end and choice, which is None where its letter is none's."""
        text = self._text
        filled = _end(say.FILL, text, place)
        for start in (_end(say.SPACE, text, place), filled):
            begun = [(m.end(), i) for i, p in enumerate(self._texts) if p and (m := p.match(text, start))]
            if begun:
                end, index = max(begun)
                index = None if [e for e, _ in begun].count(end) > 1 else index
                return None if say.ASKED.match(text, end) else (start, end, index)
        m = say.LETTER.match(text, filled)
        if m is None or not self._is_letter(m) or say.ASKED.match(text, m.end()) or say.WRONG.match(text, m.end()):
            return None
        ends = say.ENDS.match(text, m.end()) or say.AND.match(text, m.end())
        return (filled, m.end(), self._index(m)) if certain or (ends and not say.VERB.match(text, m.end())) else None

    def _several(self, place: int, index: int | None) -> bool:
        """Check whether another answer follows this one: "A or B"."""
        joined = say.AND.match(self._text, place)
        other = self._at(joined.end(), False) if joined else None
        return other is not None and other[2] != index

    def _behind(self, place: int, indices: set[int | None]) -> int:
        """Find the end of the choice's own text where it follows its letter, else the place."""
        (index,) = indices if len(indices) == 1 else (None,)
        pattern = None if index is None else self._texts[index]
        own = pattern and pattern.match(self._text, _end(say.POINT, self._text, place))
        return own.end() if own else place

    def _own(self, line: str) -> re.Match[str] | None:
        """Match a line that begins with a letter and the text of its choice."""
        m = say.LETTER.match(line)
        index = self._index(m) if m else None
        pattern = None if index is None else self._texts[index]
        return m if m and pattern and pattern.match(line, _end(say.SPACE, line, m.end())) else None

    def _letters(self, start: int, end: int) -> Iterator[re.Match[str]]:
        """Find letters that are no part of a choice's text."""
        for m in say.LETTER.finditer(self._text, start, end):
            if not any(begins <= m.start("letter") < ends for begins, ends, _ in self._spans):
                yield m

    def _index(self, m: re.Match[str]) -> int | None:
        place = self._known.find(m["letter"].upper())
        return None if place < 0 else place

    def _is_letter(self, m: re.Match[str]) -> bool:
        """Check whether it is no article, no pronoun and no word of another language."""
        rest = self._text[m.end() : m.end() + _NEAR]
        if self._is_marked(m) or m["close"] or self._behind(m.end(), {self._index(m)}) > m.end():
            return True
        if m["letter"] in "AI":
            goes_on = say.GOES_ON.match(rest) or (m["letter"] == "A" and say.VERB.match(rest))
            return bool(goes_on) or not re.match(r"\s+[a-z]", rest)
        return m["letter"].isupper() or m["letter"] not in "ai" or bool(say.ENDS.match(rest))

    def _is_marked(self, m: re.Match[str]) -> bool:
        """Check whether brackets or the word "option" mark it as a letter."""
        return bool((m["open"] and m["close"]) or say.NAMED.search(self._before(m.start())))

    def _is_short(self, m: re.Match[str]) -> bool:
        """Check whether it begins or ends a sentence of a few words."""
        before = say.SENTENCE.split(self._before(m.start()))[-1]
        after = say.SENTENCE.split(self._text[m.end() : m.end() + _NEAR])[0]
        short = say.SHORT.fullmatch(f"{before}\ue000{after}")
        return m["letter"].isupper() and self._is_letter(m) and short is not None

    def _denied(self, place: int) -> bool:
        return say.DENIED.search(self._before(place)) is not None

    def _before(self, place: int) -> str:
        return self._text[max(0, place - _NEAR) : place]


def _pattern(text: str) -> re.Pattern[str] | None:
    """Compile a choice's text as whole words; None where it is empty, or a letter that could be a label."""
    words = text.strip().rstrip(".。").split()
    if not words or re.fullmatch("[A-Za-z]", "".join(words)):
        return None
    spaced = r"\s+".join(map(re.escape, words))
    return re.compile(rf"(?<![a-z0-9])(?<![a-z0-9]-)(?<!\d[.,]){spaced}(?![a-z0-9]|-[a-z0-9]|[.,]\d)", re.IGNORECASE)


def _longest(spans: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Remove spans inside a longer one."""
    kept: list[tuple[int, int, int]] = []
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or span[1] > kept[-1][1] or span[:2] == kept[-1][:2]:
            kept.append(span)
    return kept


# -- numbers ----------------------------------------------------------------------------------------------------------


def _number(text: str) -> Numeral:
    """Extract the number that a part of a reply states, or its last one."""
    text = say.TIMES.sub("×", say.NEGATIVE.sub("-", say.STARS.sub("", say.ANNOTATION.sub("", text))))
    if m := _last_hashes(text):
        return _value(m[0]) if say.EXPRESSION.match(text, m.end("number")) else (plain_number(m["number"]),)
    for cue in reversed(list(say.NUMBER_CUES.finditer(text))[-_NEAR:]):
        if found := _stated(text, cue):
            return found
    for sentence in reversed(say.STOP.split(say.LIST.sub("", text))):
        if found := _value(sentence):
            return found
    return ()


def _last_hashes(text: str) -> re.Match[str] | None:
    """Find GSM8K's mark: the first, as base LLMs go on with further problems, or the last that corrects an earlier."""
    last = None
    for m in say.HASHES.finditer(text):
        if last is None or say.CORRECTION.search(text, last.end(), m.start()):
            last = m
    return last


def _stated(text: str, cue: re.Match[str]) -> Numeral:
    """Extract what is stated behind "the answer is"."""
    if not _holds(text, cue.start()):
        return ()
    rest = text[_end(say.NUMBER_FILL, text, cue.end()) :][:1000]
    stop = say.STOP.search(rest)
    sentence, after = (rest[: stop.start()], rest[stop.end() :]) if stop else (rest, "")
    if stop and stop[0] == "?":
        return ()
    first = _NUMBER.match(rest)
    if first and not say.EXPRESSION.match(rest, first.end()):
        return (None,) if say.ALTERNATIVE.match(rest, first.end()) else (plain_number(first[0]),)
    leads_in = not first and _NUMBER.search(after) and not text[: cue.start()].strip()
    if _NUMBER.search(sentence) and not leads_in:
        return _value(sentence)
    return (None,) if ":" in cue[0] and sentence.strip() and not after.strip() else ()


def _value(sentence: str) -> Numeral:
    """Extract a sentence's number: behind its last "=", or else its last that is no aside; (None,): a sum undone."""
    left, *right = say.EQUALS.split(sentence)
    for before, side in reversed(list(pairwise((left, *right)))):
        m = _NUMBER.match(side, _end(say.NUMBER_FILL, side, 0))
        if m and not say.TERM.match(side, m.end()):
            return (None,) if say.OTHERWISE.search(before) else (plain_number(m[0]),)
    numbers = [(m, left[max(0, m.start() - 20) : m.start()]) for m in _NUMBER.finditer(left)]
    numbers = [(m, before) for m, before in numbers if not say.NAME.search(before)]
    if not numbers:
        return ()
    if any(say.TERM.match(left, m.end()) for m, _ in numbers[-2:]):
        return (None,)
    main = [m for m, before in numbers if not say.ASIDE.search(before)]
    return (plain_number((main or [m for m, _ in numbers])[-1][0]),)
