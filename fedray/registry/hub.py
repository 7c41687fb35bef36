"""Fusers and gates on the Hugging Face hub: one version is one repository, and a folder of its own on disk.

    config.json         the manifest (registry.py): what it is, the LLMs it fits, how it was trained
    model.safetensors   its weights, byte for byte those of the registry
    README.md           the model card

Downloads are untrusted: names, hashes, shapes and weights are validated before anything is stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData, errors, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from fedray.files import whole_folder
from fedray.fusion.norms import RECORD
from fedray.registry.manifest import Manifest
from fedray.registry.versions import read_weights
from fedray.types import FedrayError

CONFIG, WEIGHTS, CARD = FILES = ("config.json", "model.safetensors", "README.md")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def is_repo(text: str) -> bool:
    """Check whether a text has the form of a repository's id, such as org/name."""
    return _REPO.fullmatch(text) is not None


def write(manifest: Manifest, version: Path, folder: Path, repo: str = "ORG/NAME") -> Path:
    """Write a version as a repository into `folder`, which it replaces. Raises FedrayError where it cannot."""
    blob = read_weights(manifest, version)
    try:
        with whole_folder(folder) as new:
            (new / CONFIG).write_text(manifest.to_json(), encoding="utf-8")
            (new / WEIGHTS).write_bytes(blob)
            (new / CARD).write_text(card(manifest, repo), encoding="utf-8")
    except OSError as error:
        raise FedrayError(f"{folder} cannot be written ({error.strerror}); choose another folder: to=DIR") from error
    return folder


def push(folder: Path, repo: str, message: str, *, private: bool) -> str:
    """Commit a folder of `write` to a repository, which is made if there is none; returns the commit's address."""
    with _hub_errors(repo, "write to"):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        files = [CommitOperationAdd(name, folder / name) for name in FILES]
        return api.create_commit(repo, files, commit_message=message).commit_url


def download(repo: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Download the files of a repository that match into the hub's cache; the folder is named by the commit.

    Raises FedrayError with the remedy: unknown, gated, no such revision, out of reach.
    """
    with _hub_errors(repo, "read", revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))


def read(folder: Path) -> tuple[Manifest, bytes]:
    """Read and validate a version that `write` made, from its name to its last tensor. Raises FedrayError."""
    path = folder / CONFIG
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FedrayError(
            f"{path} is missing or describes no fuser or gate of fedray ({_short(error)}): name a folder that `export "
            "form=hub` has made, TO/NAME"
        ) from error
    blob = read_weights(manifest, folder)
    with torch.device("meta"):
        module = manifest.build()
    try:
        found = {name: tuple(tensor.shape) for name, tensor in load_tensors(blob).items()}
    except SafetensorError as error:
        raise FedrayError(f"{folder / WEIGHTS} is no safetensors file ({error})") from error
    if found != {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}:
        raise FedrayError(f"{folder / WEIGHTS} does not hold the tensors that {CONFIG} describes; it cannot be used")
    return manifest, blob


def card(manifest: Manifest, repo: str) -> str:
    """Write the model card: what it is, how to use it, which LLMs it fits, how it was trained."""
    *senders, receiver = _llms(manifest)
    zoo = "zoo=hub " if manifest.training.get("revisions") else ""
    front = ModelCardData(library_name="fedray", tags=["kv-cache", "cache-to-cache", manifest.role]).to_yaml()
    fits = "\n".join(f"| {name} | `{h['weights']}` | `{h['tokenizer']}` |" for name, h in sorted(manifest.llms.items()))
    if manifest.role == "fuser":
        what = f"Maps the KV cache of **{senders[0]}** into that of **{receiver}** (fuser `{manifest.kind}`)."
        choose = f"fuser={manifest.kind} fusion={manifest.operator}"
    else:
        what = f"Weighs for **{receiver}**, question by question, what {', '.join(senders)} send."
        choose = f"gate=learned fusion={manifest.operator}"
    use = f"{zoo}receiver={receiver} '+senders=[{','.join(senders)}]' {choose}"
    return f"""---
{front}
---
# {manifest.name}

{what} Operator `{manifest.operator}`, version `{manifest.hash}`, made with fedray {manifest.code}.
The method is that of *Federated Inference for Heterogeneous LLM Communication and Collaboration* (arXiv 2603.28772).

## Use

    python jobs/registry.py load {repo} registry.path=outputs/registry
    python jobs/federate.py {use} registry.path=outputs/registry

## The LLMs it fits

Others are refused: a fuser or gate means nothing for weights that it was not trained with.

| LLM | weights (SHA-256) | tokenizer (SHA-256) |
|---|---|---|
{fits}

## Training

```json
{json.dumps({key: value for key, value in manifest.training.items() if key != RECORD}, indent=1, sort_keys=True)}
```
"""


def _llms(manifest: Manifest) -> list[str]:
    """List the senders' names, then the receiver's."""
    if manifest.role == "gate":
        return [*manifest.config["senders"], manifest.config["receiver"]]
    sender, _, receiver = manifest.name.partition("--")
    return [sender, receiver]


@contextmanager
def _hub_errors(repo: str, doing: str, revision: str | None = None) -> Iterator[None]:
    """Translate the hub's errors to FedrayError with the remedy."""
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise FedrayError(f"{repo} is gated: accept its terms on its page on the hub, then {login}") from error
    except errors.RevisionNotFoundError as error:
        raise FedrayError(f"{repo} has no revision {revision!r}: name a branch, a tag or a commit") from error
    except errors.RepositoryNotFoundError as error:
        raise FedrayError(f"there is no repository {repo} that you may {doing}: check its name, and {login}") from error
    except errors.HFValidationError as error:
        raise FedrayError(f"{repo!r} is no folder that is there, and no repository's id: write ORG/NAME") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise FedrayError(
            f"cannot {doing} {repo}: the hub is out of reach or HF_HUB_OFFLINE is set, and it is not in the cache; go "
            f"online once, or name a folder"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = login if status in (401, 403) else "try again later"
        raise FedrayError(f"cannot {doing} {repo}: the hub answers {status}; {remedy}") from error
    except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
        raise FedrayError(f"cannot {doing} {repo} ({_short(error)}); see that the hub can be reached") from error


def _short(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
