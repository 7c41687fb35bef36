"""Convert a GGUF file into an LLM's folder (config.json, safetensors, tokenizer.json), once, in a cache by its content.

Which value of the metadata is which of a configuration, which tensor is which, how tensors are laid out and which
tokenizer the metadata describe is transformers' knowledge (integrations.gguf, modeling_gguf_pytorch_utils); blocks are
dequantized by the package gguf. Its own loader parses the metadata several times, and holds the weights twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from fedray.files import flush_all, locked, moved, staged
from fedray.llm import hub
from fedray.llm.explained import explained
from fedray.llm.families import build_config
from fedray.llm.files import GENERATION, INDEX, WEIGHTS
from fedray.llm.gguf_header import AGAIN, GGUFHeader, GGUFTensor, block_of, bytes_of, check_gguf, read_header
from fedray.llm.opening import outline
from fedray.types import FedrayError

KINDS = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}  # GGUF's word -> transformers'
_NEEDED = ("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count")
_SHARD = 2 << 30  # bytes, so that a conversion takes little memory
_FORM = "1"  # of the folders; another where they are written otherwise
_OTHER = "take the LLM's safetensors, as in hf:org/name"


def read_config(title: str, file: Path) -> Any:
    """Validate a file, and build the configuration that its metadata describe. Raises FedrayError."""
    header = check_gguf(title, file)
    kind, values = header.architecture, header.values
    if kind not in KINDS:
        raise FedrayError(
            f"{title} cannot take part: GGUF files of {kind} are not read; choose one of {', '.join(KINDS)}"
        )
    if missing := [f"{kind}.{key}" for key in _NEEDED if type(values.get(f"{kind}.{key}")) is not int]:
        raise FedrayError(f"{title}: the metadata of {file.name} have no {missing[0]}; {AGAIN}")
    if not 0 < values[f"{kind}.block_count"] <= len(header.tensors):
        raise FedrayError(f"{title}: the metadata of {file.name} have a wrong {kind}.block_count; {AGAIN}")
    if (scaling := values.get(f"{kind}.rope.scaling.type", "none")) != "none":
        raise FedrayError(
            f"{title} cannot take part: transformers leaves out the {scaling} RoPE of GGUF files; {_OTHER}"
        )
    config: dict[str, Any] = {"model_type": KINDS[kind], "tie_word_embeddings": "output.weight" not in _named(header)}
    for prefix, of in (("tokenizer", "tokenizer"), (kind, kind)):
        for key, name in GGUF_CONFIG_MAPPING[of].items():
            if name is not None and f"{prefix}.{key}" in values:
                config[name] = values[f"{prefix}.{key}"]
    config.setdefault("vocab_size", len(values.get("tokenizer.ggml.tokens", ())) or None)
    if lists := [key for key, value in config.items() if isinstance(value, range)]:
        raise FedrayError(f"{title} cannot take part: its {lists[0]} differs from layer to layer; choose another LLM")
    return build_config(title, config)


def check_tensors(title: str, file: Path, config: Any) -> None:
    """Validate that a file holds exactly the tensors of its configuration, in types that can be read.

    Raises FedrayError naming one that is missing, left over, of another shape or of a type that is not read.
    """
    from gguf import GGMLQuantizationType, dequantize

    header = read_header(file)
    places, shapes = _places(title, header, config)
    for tensor in header.tensors:
        place = places.get(tensor.name)
        if place is None:
            raise FedrayError(
                f"{title} cannot take part: transformers leaves out {tensor.name} of {file.name}; {_OTHER}"
            )
        if tensor.shape != shapes[place]:
            found, wanted = ("x".join(map(str, shape)) for shape in (tensor.shape, shapes[place]))
            raise FedrayError(
                f"{title}: {tensor.name} of {file.name} is {found}, and by its metadata {wanted}; {AGAIN}"
            )
    held = {places[tensor.name] for tensor in header.tensors} | (
        {"lm_head.weight"} if config.tie_word_embeddings else set()
    )
    if missing := sorted(shapes.keys() - held):
        raise FedrayError(f"{title}: {file.name} lacks {missing[0]} ({len(missing)} tensors in all); {AGAIN}")
    for kind in {tensor.kind for tensor in header.tensors}:
        try:
            dequantize(np.zeros((1, block_of(kind)[1]), np.uint8), GGMLQuantizationType(kind))
        except NotImplementedError:
            name = GGMLQuantizationType(kind).name
            raise FedrayError(
                f"{title}: {file.name} is quantized as {name}, which the package gguf cannot read; take the LLM in "
                "another quantization, such as Q4_K_M or Q8_0"
            ) from None


def read_tokenizer(title: str, file: Path) -> Any:
    """Build the tokenizer that a file's metadata describe, or None where they describe none. Raises FedrayError."""
    stat = file.stat()
    with explained(title, f"the tokenizer of {file.name} cannot be built", "take another conversion of the LLM"):
        return _tokenizer(file, title, stat.st_size, stat.st_mtime_ns)


def converted(file: Path) -> Path:
    """The folder that a file is converted into, in the cache, whether or not it is there."""
    stat = file.stat()
    digest = _hash(file, stat.st_size, stat.st_mtime_ns)
    return Path(constants.HF_ASSETS_CACHE) / "fedray" / "gguf" / f"{digest}-{_FORM}"


def convert(title: str, file: Path, config: Any, arrived: Callable[[int], None] = lambda size: None) -> Path:
    """Convert a file unless it was, and return its folder. Raises FedrayError where there is no room for it.

    arrived: receives the bytes of the file that are done. Processes that convert one file wait for each other; whatever
    is left of one that was killed is removed by the next.
    """
    folder = converted(file)
    if folder.is_dir():
        return folder
    where = f"it cannot be converted in {constants.HF_ASSETS_CACHE}"
    with explained(title, where, "free space, or set HF_HOME or HF_ASSETS_CACHE"), locked(file):
        if not folder.is_dir():
            with staged(folder.parent) as new:
                _write(title, file, config, new, arrived)
                flush_all(new)
                moved(new, folder)  # or another machine's is there already, of the same content
    return folder


def _write(title: str, file: Path, config: Any, new: Path, arrived: Callable[[int], None]) -> None:
    values = read_header(file).values
    ends = [f"tokenizer.ggml.{token}_token_id" for token in ("eos", "eot")]  # of a text, and of a turn
    (new / GENERATION).write_text(json.dumps({"eos_token_id": [values[end] for end in ends if end in values]}))
    if (tokenizer := read_tokenizer(title, file)) is not None:
        tokenizer.save_pretrained(new)
    _save(_tensors(title, file, config, arrived), new)
    config.save_pretrained(new)


def _save(tensors: Iterator[tuple[str, torch.Tensor]], new: Path) -> None:
    """Save tensors in one file, or in shards and their index."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    places: dict[str, str] = {}

    def save() -> None:
        name = f"model-{len(shards):05d}.safetensors"
        save_file(shards[-1], new / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shards[-1], name))
        shards[-1] = {}

    for name, tensor in tensors:
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > _SHARD and shards[-1]:
            save()
            shards.append({})
        shards[-1][name] = tensor
    save()
    if len(shards) == 1:
        (new / places.popitem()[1]).rename(new / WEIGHTS)
    else:
        (new / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _tensors(title: str, file: Path, config: Any, arrived: Callable[[int], None]) -> Iterator[tuple[str, torch.Tensor]]:
    """Read a file's tensors one by one, in 32 bit, as transformers calls and lays them out."""
    from gguf import GGMLQuantizationType, dequantize

    header = read_header(file)
    places, _ = _places(title, header, config)
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    data = np.memmap(file, np.uint8, "r")
    for tensor in header.tensors:
        weights = dequantize(_rows(data, header, tensor), GGMLQuantizationType(tensor.kind))
        read = processor.process(weights, tensor.name, tensor_key_mapping=places, parsed_parameters={})
        yield places[tensor.name], torch.from_numpy(np.array(read.weights, np.float32, order="C"))
        arrived(bytes_of(tensor))


def _rows(data: Any, header: GGUFHeader, tensor: GGUFTensor) -> Any:
    """A tensor's bytes, row by row."""
    start = header.start + tensor.offset
    return data[start : start + bytes_of(tensor)].reshape(*tensor.shape[:-1], -1)


def _places(title: str, header: GGUFHeader, config: Any) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """GGUF's name of every tensor -> transformers', and that -> its shape. Raises FedrayError."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    shapes = {name: tuple(tensor.shape) for name, tensor in outline(title, config).state_dict().items()}
    split = {name: name.rpartition(".") for name in shapes}
    return {f"{names.get_name(module)}.{what}": name for name, (module, _, what) in split.items()}, shapes


def _named(header: GGUFHeader) -> set[str]:
    return {tensor.name for tensor in header.tensors}


@lru_cache(maxsize=4)
def _tokenizer(file: Path, title: str, size: int, changed: int) -> Any:
    if "tokenizer.ggml.model" not in read_header(file).values:
        return None
    architecture, described, values = get_gguf_tokenizer(str(file))
    backend, more = convert_gguf_tokenizer(architecture, described)
    return PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=title, **values, **more)


@lru_cache(maxsize=16)
def _hash(file: Path, size: int, changed: int) -> str:
    return hub.content_hash([file])
