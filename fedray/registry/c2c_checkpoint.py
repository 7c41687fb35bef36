"""Fusers as Cache-to-Cache publishes them (arXiv 2510.03215): per receiver layer a state dict and its arguments.

    <pair>/final/projector_{p}.pt        a state dict
    <pair>/final/projector_{p}.json      {"class": "C2CProjector", "init_args": {...}}, only arguments that were given
    <pair>/final/projector_config.json   {"0": {"1": {"<receiver layer>": [[sender layer, p]]}}}
    <pair>/config.json                   the training recipe

A .pt file is a pickle: only its tensors are read, nothing in it is run. What is missing, unexpected, of another shape
or of an unknown kind is refused by name.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedray.fusion.c2c import C2CFuser
from fedray.fusion.fuser import FuserConfig
from fedray.llm.alignment import align_layers
from fedray.registry.manifest import parse_json
from fedray.types import FedrayError, MemberInfo

FILES = "final/projector_*"  # what a download needs, below the pair's folder, besides config.json
RECIPE = "config.json"
MAP = "projector_config.json"
_SIZES = {"hidden": "hidden_dim", "intermediate": "intermediate_dim", "num_layers": "num_layers"}  # ours, and theirs
_HEADS = ("source_num_heads", "target_num_heads")
_DEFAULTS = {**dict.fromkeys(_HEADS, 1), "hidden_dim": 1024, "intermediate_dim": 1024, "num_layers": 3}
# Arguments that change nothing at inference.
_OF_TRAINING = ("dropout", "initial_temperature", "final_temperature", "anneal_steps", "dtype", "zero_init")
_TRAINED_FOR = ("teacher_model", "base_model")
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError)


def read_checkpoint(folder: Path, sender: MemberInfo, receiver: MemberInfo) -> tuple[C2CFuser, dict[str, Any]]:
    """Read the fuser of a published pair, its tensors in their own dtype, and its training recipe ({} if unknown).

    folder: the pair's, or its `final`. Raises FedrayError: not the layout, damaged, of another pair.
    """
    final = _final(folder)
    if not (final / MAP).is_file():
        raise FedrayError(f"{folder} is no published C2C fuser: it has no final/{MAP}; name the pair's folder")
    recipe = read_recipe(folder)
    model = recipe.get("model", {})
    if model.get("include_response"):
        raise FedrayError(f"{final} was trained to fuse the answer too (include_response), which fedray does not do")
    sources, projectors = _mapping(final / MAP)
    arguments = _arguments([final / f"projector_{p}.json" for p in projectors])
    _check_pair(final, sources, arguments, sender, receiver)
    shape: dict[str, Any] = {ours: arguments[theirs] for ours, theirs in _SIZES.items()}
    tokens = "text" if model.get("is_do_alignment") else "ids"
    try:
        config = FuserConfig(
            "c2c", "mix", sender.spec, receiver.spec, layer_alignment="last_aligned", token_alignment=tokens, **shape
        )
    except FedrayError as error:
        raise FedrayError(f"{final} describes no fuser that can be built: {error}") from error
    with torch.device("meta"):
        fuser = C2CFuser(config)
    for projector, p in zip(fuser.projectors, projectors, strict=True):
        path = final / f"projector_{p}.pt"
        tensors = _tensors(path)
        _check_tensors(path, tensors, projector.state_dict())
        projector.load_state_dict(tensors, strict=True, assign=True)
    return fuser.eval(), recipe


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read the training recipe beside `final`; {} where there is none. Raises FedrayError where it is damaged."""
    path = _final(folder).parent / RECIPE
    recipe = _json(path) if path.is_file() else {}
    if not isinstance(recipe, dict) or not isinstance(recipe.get("model", {}), dict):
        raise FedrayError(f"{path} is no training recipe of C2C; download it again")
    return recipe


def trained_for(recipe: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Read the sender and the receiver of a recipe, as hub ids or paths."""
    model = recipe.get("model", {})
    sender, receiver = (name if isinstance(name := model.get(key), str) else None for key in _TRAINED_FOR)
    return sender, receiver


def _final(folder: Path) -> Path:
    return folder / "final" if (folder / "final").is_dir() else folder


def _mapping(path: Path) -> tuple[list[int], list[int]]:
    """Read per receiver layer the sender layer it reads and the number of its projector."""
    try:
        ((_, senders),) = _json(path).items()
        ((_, layers),) = senders.items()
        found = {int(layer): [(int(source), int(p)) for source, p in pairs] for layer, pairs in layers.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise FedrayError(f"{path} is damaged, or maps more than one sender; import one pair at a time") from error
    if sorted(found) != list(range(len(found))) or any(len(pairs) != 1 for pairs in found.values()):
        raise FedrayError(f"{path} does not give every receiver layer exactly one projector, as C2C publishes them")
    pairs = [found[layer][0] for layer in range(len(found))]
    return [source for source, _ in pairs], [p for _, p in pairs]


def _arguments(paths: list[Path]) -> dict[str, Any]:
    """Read the arguments of all projectors. Raises FedrayError where they differ or are of another class."""
    read = [_json(path) for path in paths]
    for path, made in zip(paths, read, strict=True):
        kind = made.get("class") if isinstance(made, dict) else None
        if kind != "C2CProjector" or not isinstance(made.get("init_args"), dict):
            raise FedrayError(f"{path} describes no C2CProjector (class {kind!r}): nothing else can be imported")
        if made != read[0]:
            raise FedrayError(f"{path} differs from {paths[0].name}: the projectors of a pair must be alike")
    given = {name: value for name, value in read[0]["init_args"].items() if name not in _OF_TRAINING}
    strange = given.keys() - {"source_dim", "target_dim"} - _DEFAULTS.keys()
    if strange:
        raise FedrayError(f"{paths[0]} has an argument that fedray does not know: {min(strange)}")
    arguments = {**_DEFAULTS, **given}
    absent = [name for name in ("source_dim", "target_dim") if name not in arguments]
    wrong = [name for name, value in arguments.items() if type(value) is not int or value < 1]
    if absent or wrong or arguments["num_layers"] < 3:
        raise FedrayError(f"{paths[0]} does not say what it was built with: {[*absent, *wrong, 'num_layers'][0]}")
    return arguments


def _check_pair(
    final: Path, sources: list[int], arguments: Mapping[str, Any], sender: MemberInfo, receiver: MemberInfo
) -> None:
    """Validate that these two LLMs have the shapes of the two it was trained for. Raises FedrayError."""
    own = f"{arguments['source_num_heads']}x{arguments['source_dim']} into {len(sources)} layers of "
    own += f"{arguments['target_num_heads']}x{arguments['target_dim']}"
    s, r = sender.spec, receiver.spec
    asked = f"{s.kv_heads}x{s.head_dim} into {r.layers} layers of {r.kv_heads}x{r.head_dim}"
    remedy = "name the pair it was trained for, and the zoo that has it"
    if own != asked:
        raise FedrayError(
            f"{final} is of another pair: it maps heads of {own}, {sender.name} -> {receiver.name} is {asked}; {remedy}"
        )
    if sources != align_layers(s.layers, r.layers, "last_aligned"):
        raise FedrayError(
            f"{final} is of another pair, or its layers are mapped in another way than last_aligned: it reads sender "
            f"layers {sources[0]} to {sources[-1]}, and {sender.name} has {s.layers} layers; {remedy}"
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FedrayError(f"{path} is missing; download the whole pair") from error
    except _UNREADABLE as error:
        raise FedrayError(f"{path} is damaged or holds more than tensors (none was run); download it again") from error
    if not isinstance(read, dict) or not all(isinstance(tensor, Tensor) for tensor in read.values()):
        raise FedrayError(f"{path} holds no state dict; download it again")
    return dict(read)


def _check_tensors(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for problem, names in (("lacks", wanted.keys() - found.keys()), ("also has", found.keys() - wanted.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise FedrayError(f"{path} is no C2C projector: it {problem} {min(names)}{more}")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape or not found[name].is_floating_point():
            got = f"{tuple(found[name].shape)} of {str(found[name].dtype).removeprefix('torch.')}"
            raise FedrayError(f"{path}: {name} should be {tuple(tensor.shape)} of a float type, and is {got}")


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FedrayError(f"{path} is missing or damaged; download the whole pair") from error
