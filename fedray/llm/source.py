"""Resolve where an LLM comes from: a zoo's folder, a local folder, the Hugging Face hub, or its architecture alone.

Commit, architecture and tokenizer are found and validated without weights. Every failure is a sentence that names the
LLM and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedray.llm import gguf_conversion, hub, shapes
from fedray.llm.catalogue import EMBEDDED, file_of, original_of, repo_of, shown
from fedray.llm.explained import explained
from fedray.llm.families import build_config, check_config
from fedray.llm.files import AGAIN, CONFIG, TOKENIZER, WEIGHTS, check_files, gguf_of, hash_file, parse_config, titled
from fedray.llm.letters import letters_of
from fedray.llm.model import check_known, encode
from fedray.llm.opening import open_model, outline, try_out
from fedray.llm.templates import template_of
from fedray.types import FedrayError, Prompting

_SAMPLE = "what is the color of the bird?"
HASHES = "hashes.json"  # LLM name -> sha256 of its model.safetensors


@dataclass(frozen=True, slots=True)
class Source:
    """The source of one LLM of a zoo, and of its copies (NAME#2).

    folder: a zoo built elsewhere, which holds llms/NAME; None is the embedded one, or the hub's cache. revision: of the
    repository: a branch, a tag or a commit; None is main. prompting: None is what the tokenizer implies (templates.py).
    """

    name: str
    zoo: str = "tiny"
    folder: Path | None = None
    revision: str | None = None
    prompting: Prompting | None = None

    @property
    def llm(self) -> str:
        """The name of the LLM whose files these are."""
        return original_of(self.name)

    @property
    def local(self) -> Path | None:
        """The folder with its files, where they are not the hub's."""
        if self.zoo == "shapes":
            return None
        if self.zoo == "tiny":
            return (self.folder or EMBEDDED) / "llms" / self.llm
        own = self.folder and self.folder / "llms" / self.llm
        if own and own.is_dir():
            return own
        return Path(self.llm) if repo_of(self.llm) is None else None

    @property
    def repository(self) -> hub.Repository | None:
        """Its repository, where its files are the hub's."""
        repo = repo_of(self.llm)
        if self.zoo != "hub" or self.local is not None or repo is None:
            return None
        revision = {} if self.revision is None else {"revision": self.revision}
        return hub.Repository(self.name, repo, file=file_of(self.llm), **revision)

    @property
    def title(self) -> str:
        """The LLM and its folder in a sentence."""
        return shown(self.llm) if self.local is None else titled(self.llm, self.local)

    @property
    def remedy(self) -> str:
        """The remedy where its files cannot be read."""
        if self.zoo == "tiny":
            return "reinstall fedray"
        return AGAIN if self.repository is None and gguf_header(self) is None else "delete the folder and load again"


def gguf_header(source: Source) -> Path | None:
    """Find the GGUF file that an LLM is converted from, on the hub its header; None where there is none."""
    if source.repository is not None:
        return hub.gguf(source.repository, whole=False) if source.repository.file else None
    return gguf_of(source.local) if source.zoo == "hub" and source.local is not None else None


def pin(source: Source) -> Source:
    """Pin a source to a commit, and validate what needs no weights of the hub's. Raises FedrayError.

    Refused are: weights of the embedded zoo that are damaged, repositories and folders that are not there or lack
    files, architectures whose caches cannot be exchanged or that do not run, folders whose files do not go together.
    """
    if source.zoo == "tiny":
        check_weights(source.llm, source.folder)
        return source
    repository = source.repository
    if repository is not None:
        source = replace(source, revision=hub.pin(repository).revision)
    elif source.revision is not None:
        raise FedrayError(f"{source.name} comes from no repository that has revisions: leave {source.revision} out")
    if (file := gguf_header(source)) is not None:
        _check_gguf(source, file)
    elif source.local is None:
        try_out(source.title, outline(source.title, config_of(source)))
    else:
        _check_local(source, source.local)
    return source


def _check_local(source: Source, folder: Path) -> None:
    check_files(source.llm, folder)
    config = config_of(source)
    outline(source.title, config)  # what is wrong with it alone
    try_out(source.title, open_model(source.llm, folder, config, "meta", torch.float32))
    _check_tokenizer(source, read_tokenizer(source, folder), config)


def _check_gguf(source: Source, file: Path) -> None:
    config = config_of(source)
    gguf_conversion.check_tensors(source.title, file, config)
    try_out(source.title, outline(source.title, config))
    _check_tokenizer(source, tokenizer_of(source), config)


def _check_tokenizer(source: Source, tokenizer: Any, config: Any) -> None:
    if tokenizer is None:
        return
    pieces = template_of(tokenizer, source.prompting).around((_SAMPLE,))
    ids = encode(tokenizer, pieces, _SAMPLE).ids
    if not ids:
        raise FedrayError(f"{source.title}: its tokenizer makes no token of {_SAMPLE!r}; {source.remedy}")
    letters = letters_of(tokenizer)
    own = set(tokenizer.get_vocab().values()) - letters.control.keys() - letters.kept.keys()
    check_known(source.llm, [*sorted(own)[-1:], *ids], config.vocab_size)


def config_of(source: Source) -> Any:
    """Read and validate the transformers configuration. Raises FedrayError."""
    if source.zoo == "shapes":
        config = shapes.config_of(source.llm)
    elif (file := gguf_header(source)) is not None:
        config = gguf_conversion.read_config(source.title, file)
    elif source.repository is not None:
        config = build_config(source.title, hub.read_config(source.repository))
    else:
        assert source.local is not None
        config = build_config(source.title, parse_config(source.llm, source.local / CONFIG, source.remedy))
    if source.zoo != "tiny":
        check_config(source.title, config)
    return config


def tokenizer_of(source: Source) -> Any:
    """Load the tokenizer, downloaded if need be. Raises FedrayError."""
    if source.zoo == "shapes":
        return shapes.build_tokenizer(config_of(source))
    if (file := gguf_header(source)) is not None:
        return gguf_conversion.read_tokenizer(source.title, file)
    return read_tokenizer(source, folder_of(source, weights=False))


def folder_of(source: Source, *, weights: bool = True, arrived: Callable[[int], None] = lambda size: None) -> Path:
    """Find the folder with the files, downloaded if they are the hub's and not cached, and converted if they are GGUF.

    arrived: receives the bytes of a GGUF file that are converted. Raises FedrayError.
    """
    if gguf_header(source) is not None:
        return gguf_conversion.convert(source.title, whole_gguf(source), config_of(source), arrived)
    if source.repository is not None:
        return hub.snapshot(source.repository, weights=weights)
    assert source.local is not None
    return source.local


def whole_gguf(source: Source) -> Path:
    """Find the GGUF file that an LLM is converted from, downloaded if it is the hub's. Raises FedrayError."""
    file = gguf_header(source) if source.repository is None else hub.gguf(source.repository)
    assert file is not None
    return file


def weights_hash(source: Source) -> str:
    """Compute the content hash of the weights, without a download where the hub lists hashes. Raises FedrayError."""
    if source.zoo == "tiny":
        return check_weights(source.llm, source.folder)
    if source.repository is not None and not source.repository.file:
        return hub.weights_hash(source.repository)
    return hub.content_hash(hub.weight_files(source.name, folder_of(source)))


def read_tokenizer(source: Source, folder: Path) -> Any:
    """Load the tokenizer of a folder; None where it has none, and its LLM reads token ids only.

    Raises FedrayError where it cannot be read or gives no offsets.
    """
    if not any((folder / file).is_file() for file in TOKENIZER):
        return None
    with explained(source.title, "its tokenizer cannot be loaded", source.remedy):
        # A GGUF file's is read again as it is, and not as its architecture has it.
        kind: Any = AutoTokenizer if gguf_header(source) is None else PreTrainedTokenizerFast
        tokenizer = kind.from_pretrained(
            folder, config=config_of(source), local_files_only=True, trust_remote_code=False
        )
        if tokenizer.is_fast:
            letters_of(tokenizer).encode(_SAMPLE)
    if not tokenizer.is_fast:
        raise FedrayError(f"{source.title} has no tokenizer.json; save its tokenizer as a fast one")
    return tokenizer


def check_weights(name: str, folder: Path | None = None) -> str:
    """Hash an LLM's weight file and compare it with the recorded hash. Raises FedrayError naming the file."""
    root = (folder or EMBEDDED) / "llms"
    weights, record = root / name / WEIGHTS, root / HASHES
    if not weights.is_file():
        raise FedrayError(
            f"{name}: {weights} does not exist; rebuild the zoo with jobs/build_zoo.py or reinstall fedray"
        )
    try:
        expected = json.loads(record.read_text()).get(name) if record.is_file() else None
    except ValueError as error:
        raise FedrayError(f"{record} is damaged ({error}); rebuild the zoo or reinstall fedray") from error
    digest = hash_file(weights)
    if expected and expected != digest:
        raise FedrayError(
            f"{name}: {weights} is damaged (hash {digest[:12]}, expected {expected[:12]}); reinstall fedray"
        )
    return digest
