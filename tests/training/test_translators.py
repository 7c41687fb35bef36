"""Translators of drafts: what they are trained on is what the receiver would hold, and a training can stop anywhere."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import random_llm, world

from fedray.fusion.build import build_fuser
from fedray.fusion.draft import DraftFuser, targets_of
from fedray.fusion.fuser import FuserConfig
from fedray.llm import decoding
from fedray.llm.loading import describe
from fedray.llm.model import LLM
from fedray.llm.rotary import unrotate
from fedray.methods.method import FuserChoice, Method
from fedray.prompts import NOTES
from fedray.protocols import METHOD
from fedray.registry.store import Registry
from fedray.training import dictation
from fedray.training.checkpoint import Checkpoint
from fedray.training.contributions import Contributions
from fedray.training.conversations import LabelledPrompt, about_two, conversations
from fedray.training.fuser_trainer import FuserTraining, losses
from fedray.training.recipe import FuserRecipe
from fedray.training.text_pair import TextPair
from fedray.types import Artifact, Generation, Request

SENDER, RECEIVER = "llama-1b", "qwen3-0.6b"
RECIPE = FuserRecipe("draft", hidden=16, steps=40, batch_size=64, learning_rate=2e-2, layers="first")
TEXTS = ("white", "tall", "the tree kalomi, is huge.", "drustivor", "no i do")


def talks(count: int = 60) -> list[LabelledPrompt]:
    return dictation.of_world(world(), "train", count, 0)


def texts(*said: str) -> list[LabelledPrompt]:
    return [LabelledPrompt("what is the color of the bird dika?", text) for text in said]


def note(llm: LLM, text: str) -> torch.Tensor:
    """What an LLM holds of a text's tokens, read as a note: (T, L, 2F), and its tokens' texts."""
    head = llm.encode_part("".join(NOTES[:2]), first=True, last=False)
    ids = llm.encode_answer(f" {text}")
    cache, _ = decoding.prefill(llm.model, [[*head, *ids]], llm.pad_id)
    keys = unrotate(llm.model, cache.keys, cache.positions)
    return targets_of(*(tuple(x[:, :, len(head) :] for x in side) for side in (keys, cache.values)))


def test_between_twins_every_token_is_its_own_note() -> None:
    llm = random_llm(RECEIVER)
    pair = TextPair(llm, llm, texts("red", "the tree is huge"), RECIPE)
    assert pair.slots == 1 and len(pair) == sum(len(llm.encode_answer(text)) for text in ("red", "the tree is huge"))
    wanted = torch.cat([note(llm, text) for text in ("red", "the tree is huge")])
    torch.testing.assert_close(pair.targets(slice(None))[:, 0], wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("sender", "receiver"), [(SENDER, RECEIVER), (RECEIVER, SENDER)])
def test_tokenizers_meet_by_the_text(sender: str, receiver: str) -> None:
    """A text's last slots are the receiver's last token, and every token of the receiver is somebody's target."""
    one, two = random_llm(sender), random_llm(receiver)
    for text in TEXTS:
        pair, held = TextPair(one, two, texts(text), RECIPE, like=SimpleNamespace(slots=4)), note(two, text)
        targets = pair.targets(slice(None)).flatten(0, 1)
        torch.testing.assert_close(targets[-1], held[-1], atol=1e-4, rtol=0)
        distances = (held.flatten(1)[:, None] - targets.flatten(1)[None]).abs().amax(2).amin(1)
        blank = len(two.decode(two.encode_answer(f" {text}")[:1]).strip()) == 0  # a space of its own is nobody's
        assert float(distances[int(blank) :].max()) < 1e-3


def test_as_many_slots_as_the_receiver_needs() -> None:
    pairs = (
        TextPair(random_llm(a), random_llm(b), talks(), RECIPE) for a, b in ((RECEIVER, SENDER), (SENDER, RECEIVER))
    )
    finer, coarser = (pair.slots for pair in pairs)
    assert finer > coarser == 1


def test_texts_hold_no_answer_to_their_question() -> None:
    drawn = dictation.of_world(world(), "train", 400, 0)
    right = {(talk.prompt, talk.answer) for talk in conversations(world(), "train", 6)}
    told = [talk for talk in drawn if talk.group == dictation.WORD and (talk.prompt, talk.answer) in right]
    assert len(told) <= 0.03 * len(drawn), "no more than chance"
    assert {talk.group for talk in drawn} == {dictation.WORD, dictation.STRING}
    names = {fact.name for split in ("validation", "test") for fact in world().split(split)}
    assert not names & {word.strip(",.?:") for talk in drawn for word in talk.answer.split()}, "names of training alone"


def test_it_learns_and_can_stop_anywhere(tmp_path: Path) -> None:
    pair = TextPair(random_llm(SENDER), random_llm(RECEIVER), talks(), RECIPE)
    whole = FuserTraining(pair, RECIPE)
    before = float(losses(pair, whole.fuser)[0].mean())
    whole.run()
    assert float(losses(pair, whole.fuser)[0].mean()) < 0.9 * before
    assert float(losses(pair, None)[0].mean()) == 1.0

    class Stop(BaseException):
        pass

    def stop(step: int, of: int, figures: Mapping[str, float]) -> None:
        if step == 17:
            raise Stop

    where = Checkpoint(tmp_path, "a translator", {}, {})
    with pytest.raises(Stop):
        FuserTraining(pair, RECIPE, checkpoint=where, save_every=10).run(stop)
    again = FuserTraining(pair, RECIPE, checkpoint=where, save_every=10)
    assert again.resumed_at == 10
    again.run()
    for name, tensor in whole.fuser.state_dict().items():
        assert torch.equal(tensor, again.fuser.state_dict()[name]), name


def test_untrained_it_gives_the_mean_of_the_notes() -> None:
    pair = TextPair(random_llm(SENDER), random_llm(RECEIVER), talks(), RECIPE)
    fuser = build_fuser(pair.config(RECIPE))
    assert isinstance(fuser, DraftFuser)
    pair.fit(fuser, random.Random(0))
    torch.nn.init.zeros_(fuser.net[-1].weight)  # pyright: ignore
    torch.nn.init.zeros_(fuser.net[-1].bias)  # pyright: ignore
    made = fuser.translated(pair._inputs_MI[:3])
    torch.testing.assert_close(made, pair.targets(slice(None)).mean(0).expand(3, -1, -1, -1))


def test_a_token_sees_the_one_before_it_in_its_own_row() -> None:
    spec = random_llm(SENDER).spec
    fuser = build_fuser(
        FuserConfig("draft", "concat", spec, spec, hidden=8, layer_alignment="first", rotary="removed", tokens="draft")
    )
    side = tuple(torch.randn(1, spec.kv_heads, 5, spec.head_dim) for _ in range(spec.layers))
    flat = fuser.project_rows(side, side, torch.tensor([[0, 1, 2, 0, 1]])).keys[0]
    alone = fuser.project_rows(*(tuple(x[:, :, 3:] for x in side),) * 2, torch.tensor([[0, 1]])).keys[0]
    torch.testing.assert_close(flat[:, :, 3:], alone)
    joined = fuser.project_rows(side, side, torch.tensor([[0, 1, 2, 3, 4]])).keys[0]
    assert not torch.allclose(joined[:, :, 3], flat[:, :, 3])


def test_what_each_sender_brings(tmp_path: Path) -> None:
    """A gain is what goes with a sender: those who are asked a part are left out in turn, others are added."""
    senders = {name: random_llm(name) for name in (SENDER, "qwen2.5-1.5b")}
    receiver, registry, fusers = random_llm(RECEIVER), Registry(tmp_path, embedded=None), {}
    for name, llm in senders.items():
        how = {"rotary": "removed", "tokens": "draft", "layer_alignment": "first"}
        fuser = build_fuser(FuserConfig("draft", "concat", llm.spec, receiver.spec, hidden=8, **how))
        fusers[name] = registry.add_fuser(fuser, describe(llm), describe(receiver), {})
    method = METHOD.read({"fuser": FuserChoice("draft", 3), "fusion": {"read": "prompt", "slots": "inline"}})
    asking = Contributions(receiver, senders, fusers, method)
    single = LabelledPrompt("what is the color of the bird dika?", "red")
    two = about_two(world(), "train", 4)[0]
    two = LabelledPrompt(
        two.prompt, two.answer, asked=((SENDER, "what is the size of the gem x?"), ("qwen2.5-1.5b", "y"))
    )
    gains_QS = asking.measure([single, two])
    alone = _alone(receiver, [single, two])
    both = _probability(asking, two, (1.0, 1.0))
    assert gains_QS[0].tolist() == pytest.approx(
        [_probability(asking, single, w) - alone[0] for w in ((1.0, 0.0), (0.0, 1.0))], abs=1e-5
    )
    assert gains_QS[1].tolist() == pytest.approx(
        [both - _probability(asking, two, w) for w in ((0.0, 1.0), (1.0, 0.0))], abs=1e-5
    )
    assert gains_QS.abs().max() > 1e-6


def _probability(asking: Contributions, talk: LabelledPrompt, weights: tuple[float, ...]) -> float:
    asking._session = f"again {talk.prompt} {weights}"
    request = Request((talk.prompt,), ((talk.answer,),), generation=Generation())
    payloads = [asking._payload(name, (0,), [talk]) for name in asking._plan.senders]
    return float(asking._probability(request, torch.tensor([weights]), payloads)[0])


def _alone(llm: LLM, asked: list[LabelledPrompt]) -> list[float]:
    found = []
    for talk in asked:
        ids, answer = llm.encode(talk.prompt).ids, llm.encode_answer(talk.answer)
        logits = decoding.step(
            llm.model, decoding.empty_context(1, llm.device), torch.tensor([[*ids, *answer]]), all_logits=True
        )
        logp = torch.log_softmax(logits[0], -1)
        of_answer = [float(logp[len(ids) - 1 + i, token]) for i, token in enumerate(answer)]
        found.append(float(torch.tensor(sum(of_answer) / len(answer)).exp()))
    return found


def test_methods_keep_the_draft_apart() -> None:
    made = Method(fuser=FuserChoice("draft", 4)).canonical()
    assert (
        made.fuser == FuserChoice("draft", 4)
        and Method(fuser=FuserChoice("mlp", 4)).canonical() == Method().canonical()
    )
    assert Artifact("a--b", "0", "").tokens == "prompt"
