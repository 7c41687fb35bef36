"""Fusers of random weights, for zoo=shapes: they cost what a trained one costs and mean nothing."""

from __future__ import annotations

import hashlib
import json

import torch

from fedray.fusion.build import build_fuser, fuser_class
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.llm.catalogue import slug
from fedray.registry.layers_read import layers_read
from fedray.types import Artifact, MemberInfo

WIDTH = 1024  # hidden and intermediate, as published for LLMs of 0.5 to 8 billion parameters (arXiv 2510.03215)


def random_config(sender: MemberInfo, receiver: MemberInfo, kind: str, operator: str) -> FuserConfig:
    """Make the configuration a pair's fuser would be trained with."""
    layers = fuser_class(kind).default_layers
    return FuserConfig(kind, operator, sender.spec, receiver.spec, WIDTH, WIDTH, layer_alignment=layers)


def random_artifact(sender: MemberInfo, receiver: MemberInfo, kind: str, operator: str) -> Artifact:
    """Make the artifact of an untrained fuser, whose hash begins with random-."""
    config = random_config(sender, receiver, kind, operator)
    fields = config.to_dict()
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    name = f"{slug(sender.name)}--{slug(receiver.name)}"
    return Artifact(name, f"random-{digest[:9]}", "", layers=layers_read(config), random=fields)


def build_random(artifact: Artifact, device: str) -> Fuser:
    """Build a fuser deterministically from its artifact; every gate is open, so that nothing is skipped."""
    assert artifact.random is not None
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.device(device):
        torch.manual_seed(int(artifact.hash.rpartition("-")[2], 16))
        fuser = build_fuser(FuserConfig.from_dict(dict(artifact.random)))
    with torch.no_grad():
        for name, parameter in fuser.named_parameters():
            if name.endswith("gate_logit"):
                parameter.fill_(1.0)
    return fuser.eval()
