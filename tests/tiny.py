"""Random-weight LLMs of all three families in the embedded zoo's shapes: no training, no files, milliseconds."""

from __future__ import annotations

from functools import cache

import torch

from fedray.fusion.build import build_fuser
from fedray.fusion.fuser import FuserConfig
from fedray.llm.decoding import ATTENTION
from fedray.llm.loading import wrap
from fedray.llm.model import LLM
from fedray.member.member import Member
from fedray.world.world import World
from fedray.zoo.pretrain import RECIPES, build_model, build_tokenizer


@cache
def world() -> World:
    return World(0)


@cache
def tokenizer(family: str):
    return build_tokenizer(family, world())


@cache
def random_llm(name: str) -> LLM:
    """An LLM of the zoo's shape with seeded random weights."""
    model = build_model(name, tokenizer(RECIPES[name].family)).eval()
    model.set_attn_implementation(ATTENTION)
    return wrap(name, model, tokenizer(RECIPES[name].family), f"random-{name}")


def random_member(name: str) -> Member:
    return Member(name, llm=random_llm(name))


def random_fuser(sender: LLM, receiver: LLM, operator: str, kind: str = "mlp", seed: int = 0):
    """An untrained fuser, open enough to change every answer."""
    torch.manual_seed(seed)
    fuser = build_fuser(FuserConfig(kind, operator, sender.spec, receiver.spec, hidden=32, intermediate=32))
    return fuser.eval()


QUESTIONS = (
    "what is the color of the bird dika?",
    "tell me which mood the tree kruropos has.",
    "the gem forer has which home?",
)
