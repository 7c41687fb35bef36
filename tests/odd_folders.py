"""Odd files that people have in their LLMs' folders: how to make them, and what is said of each."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fedray.llm.files import AGAIN

DEEP = 100_000
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 988097824\n"
Edit = Callable[[Path], Any]


def config(**values: Any) -> Edit:
    return values_of("config.json", **values)


def values_of(file: str, **values: Any) -> Edit:
    """Change values of a .json file; ... takes one out."""

    def edit(folder: Path) -> None:
        path = folder / file
        there = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in there.items() if value is not ...}))

    return edit


def holds(file: str, content: str | bytes) -> Edit:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return edit


def template(text: str) -> Edit:
    return holds("chat_template.jinja", text)


def without(*files: str) -> Edit:
    return lambda folder: [path.unlink() for file in files for path in sorted(folder.glob(file))]


def both(*edits: Edit) -> Edit:
    return lambda folder: [edit(folder) for edit in edits]


# What says nothing about the LLM.
THE_SAME = {
    "return_dict": config(return_dict=False, use_return_dict=False),
    "what it puts out": config(output_attentions=True, output_hidden_states=True),
    "attention": config(_attn_implementation="flash_attention_2", attn_implementation="flash_attention_2"),
    "attention of nobody": config(_attn_implementation="nonesuch/kernel", attn_implementation={"x": 1}),
    "cache": config(use_cache=False),
    "torchscript": config(torchscript=True, gradient_checkpointing=True),
    "dtype": config(dtype="float17", torch_dtype=5),
    "code of its own": config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
    "architectures": config(architectures="?"),
    "byte order mark": lambda f: holds("config.json", b"\xef\xbb\xbf" + (f / "config.json").read_bytes())(f),
    "no generation_config": without("generation_config.json"),
    "generation": holds("generation_config.json", '{"max_new_tokens": -1, "temperature": "hot", "num_beams": 5}'),
    "generation of nobody": holds("generation_config.json", '{"cache_implementation": "nonesuch"}'),
    "names without model.": tensors(lambda t: {name.removeprefix("model."): value for name, value in t.items()}),
    "frequencies": tensors(lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
    "truncation": lambda f: values_of(
        "tokenizer.json",
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    )(f),
    "tokenizer class": values_of("tokenizer_config.json", tokenizer_class="NonesuchTokenizer"),
}


# What is odd, and the sentence it ends in.
NO_LLM = "config.json describes no LLM"
ODD: dict[str, tuple[Edit, str]] = {
    "heads": (config(hidden_size=30, head_dim=...), f"{NO_LLM} .*not a multiple"),
    "context null": (config(max_position_embeddings=None), f"{NO_LLM} .*max_position_embeddings.* got NoneType"),
    "context 0": (config(max_position_embeddings=0), "max_position_embeddings is 0 in config.json and must be"),
    "kv heads": (config(num_key_value_heads=3), "num_key_value_heads=3 does not divide num_attention_heads=4"),
    "no kv heads": (config(num_key_value_heads=0), "num_key_value_heads is 0"),
    "kv heads below 0": (config(num_key_value_heads=-1), "num_key_value_heads is -1"),
    "layers 0": (config(num_hidden_layers=0), "num_hidden_layers is 0"),
    "layers below 0": (config(num_hidden_layers=-2), "num_hidden_layers is -2"),
    "layers without end": (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "hidden 0": (config(hidden_size=0), "hidden_size is 0"),
    "vocabulary 0": (config(vocab_size=0), "vocab_size is 0"),
    "intermediate below 0": (config(intermediate_size=-5), "intermediate_size is -5"),
    "heads 0": (config(num_attention_heads=0), NO_LLM),
    "size as text": (config(hidden_size="32"), f"{NO_LLM} .*expected int, got str"),
    "size as float": (config(num_hidden_layers=2.0), f"{NO_LLM} .*expected int, got float"),
    "size as bool": (config(num_hidden_layers=True), f"{NO_LLM} .*expected int, got bool"),
    "odd heads": (config(head_dim=7), f"{NO_LLM} .*even"),
    "RoPE of nobody": (config(rope_parameters={"rope_type": "nonesuch"}), "knows no RoPE 'nonesuch'"),
    "RoPE as list": (config(rope_parameters=[1]), NO_LLM),
    "RoPE without factor": (config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}), f"{NO_LLM} .*factor"),
    "RoPE of text": (
        config(rope_parameters={"rope_type": "default", "rope_theta": "x"}),
        "no LLM comes of config.json",
    ),
    "activation": (config(hidden_act="swish9"), r"no LLM comes of config.json \(KeyError 'swish9'\); correct"),
    "epsilon": (config(rms_norm_eps="1e-6"), f"{NO_LLM} .*rms_norm_eps"),
    "padding": (config(pad_token_id=9999), "no LLM comes of config.json .*[Pp]adding"),
    "labels": (config(id2label=[1]), NO_LLM),
    "quantized by nobody": (config(quantization_config={"quant_method": "nonesuch"}), "its weights are quantized"),
    "quantized by text": (config(quantization_config="yes"), NO_LLM),
    "no model_type": (config(model_type=...), "names no architecture, it has no model_type"),
    "model_type as list": (config(model_type=["llama"]), r"knows no architecture \['llama'\]"),
    "code of its own": (config(model_type="evil", auto_map={"AutoConfig": "evil.C"}), "knows no architecture 'evil'"),
    "eos as text": (config(eos_token_id="</s>"), f"{NO_LLM} .*eos_token_id"),
    "window 0": (config(model_type="mistral", sliding_window=0), "sliding_window is 0"),
    "config a list": (holds("config.json", "[]"), "config.json holds no keys and values"),
    "config deep": (holds("config.json", "[" * DEEP), "config.json is damaged .brackets in brackets"),
    "config deep inside": (
        holds("config.json", '{"model_type": "llama", "x": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}"),
        "config.json is damaged .brackets in brackets",
    ),
    "config no text": (holds("config.json", b'{"model_type": "\xff\xfe"}'), "config.json is damaged .*utf-8"),
    "config empty": (holds("config.json", ""), "config.json is damaged"),
    "generation damaged": (holds("generation_config.json", "{"), "generation_config.json is damaged"),
    "generation deep": (holds("generation_config.json", "[" * DEEP), "generation_config.json is damaged"),
    "generation a list": (holds("generation_config.json", "[]"), "generation_config.json holds no keys"),
    "generation's eos": (holds("generation_config.json", '{"eos_token_id": "</s>"}'), "eos_token_id is '</s>'"),
    "generation's eos nested": (holds("generation_config.json", '{"eos_token_id": [[1]]}'), "eos_token_id is"),
    "tokenizer damaged": (holds("tokenizer.json", "{"), "its tokenizer cannot be loaded"),
    "tokenizer empty": (holds("tokenizer.json", ""), "its tokenizer cannot be loaded"),
    "tokenizer null": (holds("tokenizer.json", "null"), "its tokenizer cannot be loaded"),
    "tokenizer deep": (holds("tokenizer.json", "[" * DEEP + "]" * DEEP), "its tokenizer cannot be loaded .*in circles"),
    "tokenizer no text": (holds("tokenizer.json", b"\xff\xfe{}"), "its tokenizer cannot be loaded .*utf-8"),
    "tokenizer's model": (holds("tokenizer.json", '{"version": "1.0", "model": {}}'), "its tokenizer cannot be loaded"),
    "tokenizer's tokens": (values_of("tokenizer.json", added_tokens=[{"id": "x"}]), "its tokenizer cannot be loaded"),
    "tokenizer's config a list": (holds("tokenizer_config.json", "[]"), "its tokenizer cannot be loaded"),
    "tokenizer's config deep": (holds("tokenizer_config.json", "[" * DEEP), "its tokenizer cannot be loaded"),
    "tokenizer of another kind": (
        values_of("tokenizer_config.json", tokenizer_class="BertTokenizer"),
        "its tokenizer cannot be loaded .*UNK",
    ),
    "tokenizer of its own code": (
        values_of("tokenizer_config.json", tokenizer_class="Foo", auto_map={"AutoTokenizer": ["x.Y", None]}),
        "its tokenizer cannot be loaded .it wants code of its own to be run, which is never done",
    ),
    "vocabulary too small": (
        both(
            config(vocab_size=300),
            tensors(lambda t: {n: v[:300] if "embed_tokens" in n or "lm_head" in n else v for n, v in t.items()}),
        ),
        "token id .* is none of ./llm's, which go from 0 to 299: it comes from a tokenizer",
    ),
    "template raises": (template("{{ raise_exception('never') }}"), "its chat template fails .*never.*repair or"),
    "template unfinished": (template("{% for m in messages %}"), "its chat template fails .*endfor"),
    "template recurses": (
        template("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"),
        "its chat template fails .it goes round in circles",
    ),
    "template loops": (
        template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages }}"),
        "its chat template fails .it does not come to an end",
    ),
    "template divides": (template("{{ 1 / 0 }}"), "its chat template fails .division by zero"),
    "template too large": (template("{{ 'a' * 10 ** 15 }}"), "its chat template fails .MemoryError"),
    "template nested": (template("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}"), "its chat template fails"),
    "template of parts": (
        template("{% for m in messages %}{% for p in m.content %}{{ p['text'] }}{% endfor %}{% endfor %}"),
        "its chat template holds the user's text 0 times; it must be once: repair or remove it",
    ),
    "template no text": (holds("chat_template.jinja", b"\xff\xfe"), "its tokenizer cannot be loaded .*utf-8"),
    "weights empty": (holds("model.safetensors", b""), f"model.safetensors is empty; {AGAIN[:20]}"),
    "weights cut": (
        lambda f: holds("model.safetensors", (f / "model.safetensors").read_bytes()[:-10])(f),
        "model.safetensors is damaged",
    ),
    "weights a page": (holds("model.safetensors", "<!DOCTYPE html>" * 9), "model.safetensors is damaged"),
    "weights a list": (holds("model.safetensors", struct.pack("<Q", 2) + b"[]"), "model.safetensors is damaged"),
    "weights a pointer": (holds("model.safetensors", POINTER), "model.safetensors is a pointer of git-lfs .*lfs pull"),
    "tokenizer a pointer": (
        holds("tokenizer.json", POINTER),
        "tokenizer.json is a pointer of git-lfs .*`git lfs pull`",
    ),
    "all pointers": (
        both(*(holds(name, POINTER) for name in ("config.json", "model.safetensors", "tokenizer.json"))),
        "config.json, model.safetensors, tokenizer.json are pointers of git-lfs and not the files: run `git lfs pull`",
    ),
    "weights in 8 bit": (
        tensors(lambda t: {name: value.to(torch.int8) for name, value in t.items()}),
        "holds lm_head.weight in I8, and quantized weights are not read",
    ),
    "weights too narrow": (
        config(hidden_size=64),
        r"do not fit config.json: lm_head.weight is 640x32 in the file and 640x64 by config.json \(\d+ such tensors\)",
    ),
    "weights of other heads": (
        config(num_key_value_heads=4),
        "do not fit config.json: model.layers.0.self_attn.k_proj.weight is 16x32 in the file and 32x32 by",
    ),
    "weights of a deeper LLM": (
        config(num_hidden_layers=1),
        "do not fit config.json, which knows nothing of model.layers.1.input_layernorm.weight",
    ),
    "weights of a flatter LLM": (
        config(num_hidden_layers=3),
        "lacks the weights model.layers.2.input_layernorm.weight",
    ),
    "weights without biases": (config(attention_bias=True), "lacks the weights model.layers.0.self_attn.k_proj.bias"),
    "weights with biases": (
        tensors(lambda t: {**t, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}),
        "do not fit config.json, which knows nothing of model.layers.0.self_attn.q_proj.bias",
    ),
    "a pickle": (
        both(without("model.safetensors"), holds("pytorch_model.bin", b"x")),
        r"has no model.safetensors; .*pytorch_model.bin, a pickle: convert it to safetensors with AutoModelForCausalLM."
        r"from_pretrained\('./llm'\).save_pretrained\('./llm'\)",
    ),
    "an adapter": (
        both(without("model.safetensors"), holds("adapter_config.json", '{"base_model_name_or_path": "acme/base"}')),
        r"a LoRA adapter: .*from_pretrained\('acme/base'\), './llm'\).merge_and_unload\(\).save_pretrained\(NEW\)",
    ),
    "GGUF": (
        both(without("model.safetensors"), holds("llm-Q4.GGUF", b"GGUF")),
        "has no model.safetensors; .*, and it holds llm-Q4.GGUF: name the file, as in ./llm/llm-Q4.GGUF$",
    ),
    "no weights": (without("model.safetensors"), "has no model.safetensors; .*save the LLM there with save_pretrained"),
}
INDEX = "model.safetensors.index.json"
ODD_SHARDS: dict[str, tuple[Edit, str]] = {
    "one missing": (
        without("model-00002-of-*"),
        rf"^./llm lacks model-00002-of-\d+.safetensors, which {INDEX} names: copy it there from where",
    ),
    "many missing": (without("model-*"), "lacks .*, model-00002-of-00003.safetensors, .*: copy them there from where"),
    "map null": (values_of(INDEX, weight_map=None), f"{INDEX} does not say in its weight_map"),
    "map a list": (values_of(INDEX, weight_map=["a"]), f"{INDEX} does not say"),
    "map of numbers": (values_of(INDEX, weight_map={"a": 5}), f"{INDEX} does not say"),
    "map elsewhere": (values_of(INDEX, weight_map={"a": "../other/model.safetensors"}), f"{INDEX} does not say"),
    "map empty": (values_of(INDEX, weight_map={}), f"{INDEX} does not say"),
    "index a list": (holds(INDEX, "[]"), f"{INDEX} holds no keys and values"),
    "index deep": (holds(INDEX, "[" * DEEP), f"{INDEX} is damaged .brackets in brackets"),
    "index a pointer": (holds(INDEX, POINTER), f"{INDEX} is a pointer of git-lfs"),
}


NO_FOLDER: dict[str, tuple[Edit, str]] = {
    "an adapter": (holds("adapter_config.json", "{}"), r"it holds a LoRA adapter: merge .*from_pretrained\('BASE'\)"),
    "a damaged adapter": (holds("adapter_config.json", "[" * DEEP), "it holds a LoRA adapter: merge"),
    "GGUFs": (
        both(holds("m.gguf", b"GGUF"), holds("n.GGUF", b"GGUF")),
        r"it holds 2 GGUF files \(m.gguf, n.GGUF\): name the file, as in ./llm/m.gguf$",
    ),
    "a pickle": (holds("consolidated.00.pth", b"x"), "it holds consolidated.00.pth, a pickle"),
    "a folder above": (
        lambda f: both(
            lambda f: (f / "snapshots" / "abc").mkdir(parents=True), holds("snapshots/abc/config.json", "{}")
        )(f),
        "it has no config.json: give ./llm/snapshots/abc$",
    ),
    "nothing": (lambda f: None, "it has no config.json: check the path, or name hf:org/name"),
}
