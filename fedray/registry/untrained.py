"""Fusers without a folder in a registry: those that need no training, and, for zoo=shapes, random ones that cost what a
trained one costs and mean nothing."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import torch

from fedray.fusion.build import build_fuser, fuser_class
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.llm.catalogue import slug
from fedray.llm.rotary import check_spaces
from fedray.registry.layers_read import layers_read
from fedray.types import Artifact, MemberInfo

WIDTH = 1024  # hidden and intermediate, as published for LLMs of 0.5 to 8 billion parameters (arXiv 2510.03215)
RANDOM = "random-"  # how the hash of a random fuser begins


def config_of_pair(sender: MemberInfo, receiver: MemberInfo, kind: str, operator: str) -> FuserConfig:
    """Make the configuration a pair's fuser would be trained with, or has without training."""
    cls = fuser_class(kind)
    config = FuserConfig(kind, operator, sender.spec, receiver.spec, WIDTH, WIDTH, layer_alignment=cls.default_layers)
    return replace(config, **cls.reading)


def random_artifact(sender: MemberInfo, receiver: MemberInfo, kind: str, operator: str) -> Artifact:
    """Make the artifact of an untrained fuser, whose hash begins with random-."""
    fields = config_of_pair(sender, receiver, kind, operator).to_dict()
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return _artifact(sender, receiver, f"{RANDOM}{digest[:9]}", fields)


def untrained_artifact(sender: MemberInfo, receiver: MemberInfo, kind: str, operator: str) -> Artifact:
    """Make the artifact of a fuser that needs no training. Raises FedrayError between different cache spaces."""
    fields = config_of_pair(sender, receiver, kind, operator).to_dict()
    check_spaces(kind, (receiver.name, receiver.cache_space), (sender.name, sender.cache_space))
    return _artifact(sender, receiver, kind, fields)


def _artifact(sender: MemberInfo, receiver: MemberInfo, name: str, fields: dict[str, object]) -> Artifact:
    config = FuserConfig.from_dict(fields)
    how = {"tokens": config.tokens, "unrotated": config.rotary == "removed"}
    pair = f"{slug(sender.name)}--{slug(receiver.name)}"
    return Artifact(pair, name, "", layers=layers_read(config), config=fields, **how)


def build_untrained(artifact: Artifact, device: str) -> Fuser:
    """Build a fuser deterministically from its artifact; every gate is open, so that nothing is skipped."""
    assert artifact.config is not None
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.device(device):
        if artifact.hash.startswith(RANDOM):
            torch.manual_seed(int(artifact.hash.removeprefix(RANDOM), 16))
        fuser = build_fuser(FuserConfig.from_dict(dict(artifact.config)))
    with torch.no_grad():
        for name, parameter in fuser.named_parameters():
            if name.endswith("gate_logit"):
                parameter.fill_(1.0)
    return fuser.eval()
