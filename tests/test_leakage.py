"""What a rephrase gives away: figures worked out by hand, and laws that hold for any text."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedray.privacy.leakage import POOLED, linkability, measure, one_and_pooled, rare_words
from fedray.privacy.overlap import overlap, words
from fedray.types import FedrayError
from fedray.world.world import PHRASINGS, World

texts = st.text(max_size=30)
latin = st.lists(st.text("abcde", min_size=1, max_size=5), min_size=1, max_size=6).map(" ".join)
greek = st.lists(st.text("αβγδ", min_size=1, max_size=5), min_size=1, max_size=6).map(" ".join)
cases = st.lists(st.tuples(latin, st.lists(latin, max_size=3)), min_size=1, max_size=6)


def pieces(word: str) -> int:
    """A tokenizer that cuts after four characters."""
    return -(-len(word) // 4)


def test_figures_by_hand():
    told = overlap("the color of the bird breno", ["of the bird breno the hue"], pieces=pieces)
    assert told.jaccard == 4 / 6  # the, of, bird, breno of those, color and hue
    assert told.rouge_l == pytest.approx(2 * 4 / 12)  # of the bird breno
    assert told.words_kept == 4 / 5
    assert (told.copied_words, told.copied_share) == (4, 4 / 6)
    assert told.entities_kept == 1 / 2  # color and breno have two pieces
    assert not told.exact_copy and told.template_copy is None


@pytest.mark.parametrize(
    ("one", "two", "fmeasure"),  # as the package rouge-score 0.1.2 has them
    [
        ("what is the color of the bird breno?", "which color does the bird breno have?", 0.5333333333333333),
        ("the cat sat on the mat", "on the mat sat a cat", 0.5),
    ],
)
def test_rouge_l_is_the_published_one(one, two, fmeasure):
    assert overlap(one, [two]).rouge_l == pytest.approx(fmeasure)


def test_several_rewrites_are_put_together():
    told = overlap("red bird breno 7", ["a bird", "red breno", ""], pieces=pieces)
    assert told.words_kept == 3 / 4
    assert told.entities_kept == 1 / 2  # breno, not 7
    assert told.jaccard == 2 / 4 and told.copied_words == 1


@given(texts)
def test_a_text_gives_itself_away(text):
    told = overlap(text, [text], pieces=pieces, known=lambda rewrite: True)
    assert told.jaccard == told.rouge_l == told.words_kept == told.copied_share == 1
    assert told.copied_words == len(words(text))
    assert told.exact_copy and told.template_copy is False  # the original is no *other* phrasing
    assert told.entities_kept == (1 if rare_words(text, pieces) else None)


@given(st.lists(st.tuples(latin, greek), min_size=1, max_size=5))
def test_other_words_give_nothing_away(pairs):
    told = measure([one for one, _ in pairs], [two for _, two in pairs], pieces=pieces, templates=[])
    assert told.jaccard == told.rouge_l == told.words_kept == told.copied_words == told.copied_share == 0
    assert told.exact_copies == told.template_copies == 0 and not told.entities_kept
    blind = told.linkability
    assert blind.top1 == pytest.approx(blind.chance) and blind.mrr == pytest.approx(blind.chance_mrr)
    assert blind.chance == 1 / len(pairs)


@given(latin, latin)
def test_overlap_has_no_direction(one, two):
    there, back = overlap(one, [two]), overlap(two, [one])
    assert (there.jaccard, there.copied_words) == (back.jaccard, back.copied_words)
    assert there.rouge_l == pytest.approx(back.rouge_l)


@given(cases, st.randoms(use_true_random=False))
def test_order_changes_nothing(case, rng):
    def figures(shuffled):
        told = measure([original for original, _ in shuffled], [seen for _, seen in shuffled], templates=["a", "b"])
        link = told.linkability
        return [
            told.jaccard,
            told.rouge_l,
            told.words_kept,
            told.copied_words,
            told.template_copies,
            link.top1,
            link.mrr,
        ]

    other = [(original, rng.sample(seen, len(seen))) for original, seen in rng.sample(case, len(case))]
    assert figures(other) == pytest.approx(figures(case))


@given(texts, st.lists(texts, max_size=3), texts)
def test_another_rewrite_never_lowers_the_overlap(original, seen, more):
    fewer, all_of_them = (overlap(original, told, pieces=pieces) for told in (seen, [*seen, more]))
    for name in ("jaccard", "rouge_l", "words_kept", "copied_words", "copied_share", "exact_copy"):
        assert getattr(fewer, name) <= getattr(all_of_them, name), name
    assert (fewer.entities_kept or 0) <= (all_of_them.entities_kept or 0)


@given(st.lists(latin, min_size=2, max_size=6, unique_by=lambda text: frozenset(words(text))))
def test_originals_link_to_themselves(originals):
    link = linkability(originals, originals)
    assert (link.n, link.top1, link.mrr, link.chance) == (len(originals), 1, 1, 1 / len(originals))


def test_linkability_by_hand():
    originals = ["color bird breno", "size bird breno", "color bird zubo", "size bird zubo"]
    groups = ["breno", "breno", "zubo", "alone"]
    told = measure(originals, ["breno", "color", "zubo color", ""], groups=groups)
    # a name: one of two; the wrong attribute: third or fourth; both: right; nothing: one of four
    assert told.linkability.top1 == pytest.approx((1 / 2 + 0 + 1 + 1 / 4) / 4)
    assert told.linkability.mrr == pytest.approx(((1 + 1 / 2) / 2 + (1 / 3 + 1 / 4) / 2 + 1 + 25 / 48) / 4)
    # the attributes of breno only; zubo and alone have nothing to choose from
    assert told.in_group is not None
    assert (told.in_group.n, told.in_group.chance) == (2, 1 / 2)
    assert told.in_group.top1 == pytest.approx((1 / 2 + 0) / 2)
    assert told.in_group.mrr == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert measure(originals, originals, groups=list("abcd")).in_group is None


def test_a_rare_word_tells_more_than_a_common_one():
    originals = ["bird breno", *["bird color size mood home taste"] * 5]
    assert linkability(originals, ["mood home breno"] + [""] * 5).top1 == pytest.approx((1 + 5 / 6) / 6)


def test_what_more_senders_saw_weighs_more():
    assert linkability(["bird breno", "star zubo"], [["breno", "breno", "zubo"], ["zubo", "zubo", "breno"]]).top1 == 1


def test_copies():
    originals = ["What color is Breno?", "say b", "say c", "say d"]
    seen = ["what  color is breno", ["x", "Tell b!"], "tell q", []]
    told = measure(originals, seen, templates={"tell b", "tell c", "what color is breno"})
    assert (told.exact_copies, told.template_copies, told.rewrites) == (1 / 4, 1 / 4, 1)
    assert measure(originals, seen, templates=lambda rewrite: rewrite == "tell q").template_copies == 1 / 4
    assert measure(originals, seen).template_copies is None


def test_rare_words_are_names_and_numbers():
    assert rare_words("Ask Who has 7 or 3.5 of Breno, a2?", pieces) == {"7", "3.5", "breno", "a2"}
    assert rare_words("Breno BRENO", lambda word: 1 if word.isupper() else 2) == {"breno"}  # pieces as it is written
    assert rare_words("", pieces) == frozenset()


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("Is Zürich 3.5 km, or 1,000 m away?", "is zürich 3.5 km or 1,000 m away".split()),
        ("東京は2025年。", ["東", "京", "は", "2025", "年"]),
        ("ｶﾅ", ["カ", "ナ"]),
        ("हिन्दी 한국어", ["हिन्दी", "한국어"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("", [""]),
        (" ?! ", ["?!"]),
    ],
)
def test_words(text, split):
    assert list(words(text)) == split


def test_text_without_spaces_is_compared():
    told = overlap("東京の色は何ですか", ["東京は何色ですか"])
    assert told.copied_words == 3 and 0.8 < told.rouge_l < 1 and told.jaccard == 8 / 9
    assert overlap("東京の色は何", ["red bird"]).jaccard == 0


def test_empty_texts_and_one_question():
    nothing = measure(["", "breno"], [[], []], pieces=pieces)
    assert (nothing.rewrites, nothing.jaccard, nothing.words_kept, nothing.entities_kept) == (0, 0, 0, 0)
    assert (nothing.linkability.top1, nothing.linkability.mrr) == (1 / 2, 3 / 4)
    one = measure(["breno"], [""])
    assert (one.jaccard, one.linkability.top1, one.linkability.chance) == (0, 1, 1)
    same = measure(["breno", "breno"], ["breno", "breno"])
    assert (same.jaccard, same.linkability.top1) == (1, 1 / 2)


def test_pooling_adds_what_each_sender_saw():
    originals = ["color bird breno", "size bird zubo", "mood star tiva"]
    seen = {"qwen": ["color", "size", "mood"], "llama": ["breno", (), "tiva"]}
    rows = one_and_pooled(originals, seen, pieces=pieces)
    assert list(rows) == ["qwen", "llama", POOLED]
    assert [round(row.words_kept, 3) for row in rows.values()] == [0.333, 0.222, 0.556]
    assert [row.rewrites for row in rows.values()] == pytest.approx([1, 2 / 3, 5 / 3])
    assert rows["llama"].linkability.top1 == pytest.approx((2 + 1 / 3) / 3)
    shared = one_and_pooled(originals, {sender: ["hue of breno", "zubo", "tiva star"] for sender in "abc"})
    assert shared["a"] == shared[POOLED]  # all saw the same: nothing to pool


def test_the_tiny_world_is_linked_by_its_names():
    facts = World(0).split("test")[:60]
    originals = [fact.ask(6) for fact in facts]
    rng = random.Random(0)
    rewrites = [fact.ask(rng.randrange(6)) for fact in facts]
    every = {fact.ask(i) for fact in facts for i in range(len(PHRASINGS))}
    told = measure(originals, rewrites, groups=[fact.name for fact in facts], templates=every)
    assert told.linkability.top1 == 1 and told.in_group is not None and told.in_group.top1 == 1
    assert (told.template_copies, told.exact_copies) == (1, 0)


def test_figures_are_one_row_and_say_what_was_not_measured():
    originals = ["color bird breno", "size bird zubo"]
    bare, full = measure(originals, originals), measure(originals, ["breno", ""], groups=["a", "a"], pieces=pieces)
    assert bare.figures().keys() == full.figures().keys()
    assert (bare.figures()["linked"], bare.figures()["linked_chance"], bare.figures()["jaccard"]) == (1, 1 / 2, 1)
    unmeasured = {name for name, value in bare.figures().items() if value is None}
    assert unmeasured == {"entities_kept", "template_copies"} | {n for n in bare.figures() if "in_group" in n}
    assert (full.figures()["linked_in_group"], full.figures()["linked_in_group_chance"]) == (3 / 4, 1 / 2)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 2), (2, 1)])
def test_uneven_input_is_refused(sizes):
    originals, seen = (["text"] * size for size in sizes)
    with pytest.raises(FedrayError, match="originals"):
        measure(originals, seen)


def test_other_bad_input_is_refused():
    with pytest.raises(FedrayError, match="groups"):
        measure(["a"], ["a"], groups=[])
    with pytest.raises(FedrayError, match="entries in llama"):
        one_and_pooled(["a"], {"qwen": ["a"], "llama": []})
    with pytest.raises(FedrayError, match="at least one sender"):
        one_and_pooled(["a"], {})
    with pytest.raises(FedrayError, match="at least one original"):
        measure([], [])
