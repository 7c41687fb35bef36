"""Pin, list and download repositories of the Hugging Face hub.

Cache, locks, retries and checks of size are huggingface_hub's, which reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when
it is imported. A revision becomes a commit once, on the driver, so that every node loads the same files.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from logging import CRITICAL
from pathlib import Path
from typing import Any

from huggingface_hub import (
    DryRunFileInfo,
    HfApi,
    constants,
    errors,
    get_cached_repo_tree,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # of httpx or httpx2
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    build_hf_headers,
    disable_progress_bars,
    get_session,
    hf_raise_for_status,
    logging,
    tqdm,
)

from fedray.files import flush, staged, write_whole
from fedray.llm.catalogue import is_gguf, safe_name
from fedray.llm.files import CONFIG, GENERATION, INDEX, WEIGHTS, hash_file, parse_config, weight_files
from fedray.llm.gguf_header import read_header
from fedray.types import FedrayError

WORKERS = 8  # files downloaded at a time
_TEXTS = [CONFIG, GENERATION, "tokenizer*", "special_tokens_map.json", "added_tokens.json"]
_TEXTS += ["vocab.json", "merges.txt", "chat_template.*"]
_SHARDS = [WEIGHTS, INDEX, "model-?????-of-?????.safetensors"]
_ALL = _TEXTS + _SHARDS
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_HEADER = 8 << 20  # bytes of a GGUF file to begin with: vocabulary and merges are some millions
_SHA256 = re.compile(r"[0-9a-f]{64}")

disable_progress_bars()  # fedray shows its own
logging.set_verbosity(CRITICAL)  # and what goes wrong is raised, and said in one sentence


@dataclass(frozen=True, slots=True)
class Repository:
    """member: whose weights these are; repo: org/name; revision: a branch, a tag or a commit; file: the GGUF file that
    they are, "" where they are safetensors."""

    member: str
    repo: str
    revision: str = constants.DEFAULT_REVISION
    file: str = ""

    @property
    def at(self) -> dict[str, Any]:
        """The repository at its revision, as huggingface_hub takes both."""
        return {"repo_id": self.repo, "revision": self.revision}


@dataclass(frozen=True, slots=True)
class File:
    """A file of a repository that a member needs."""

    repository: Repository
    name: str
    size: int
    cached: bool


def pin(repository: Repository) -> Repository:
    """Resolve a repository's revision to a commit. Raises FedrayError where it cannot be had."""
    with _explained(repository):
        if repository.file:
            commit = _about(repository).commit_hash
            if commit != repository.revision:  # huggingface_hub remembers it with a download, and here is none
                folder = repo_folder_name(repo_id=repository.repo, repo_type="model")
                write_whole(Path(constants.HF_HUB_CACHE, folder, "refs", repository.revision), commit)
            return replace(repository, revision=commit)
        path = hf_hub_download(**repository.at, filename=CONFIG)
    return replace(repository, revision=Path(path).parent.name)


def read_config(pinned: Repository) -> dict[str, Any]:
    """Read config.json. Raises FedrayError."""
    with _explained(pinned):
        path = Path(hf_hub_download(**pinned.at, filename=CONFIG))
    return parse_config(pinned.member, path, "delete it and load again")


def files(pinned: Repository) -> list[File]:
    """List the files that a member needs of its repository; none where the hub cannot be asked: the cache decides."""
    with _explained(pinned):
        if pinned.file:
            about = _about(pinned)
            return [File(pinned, pinned.file, about.file_size or 0, Path(about.local_path).is_file())]
        try:
            found = snapshot_download(**pinned.at, allow_patterns=_ALL, ignore_patterns=["*/*"], dry_run=True)
        except errors.DryRunError:
            return []
    return [File(pinned, info.filename, info.file_size or 0, not info.will_download) for info in found]


def download(wanted: Sequence[File], arrived: Callable[[int], None] = lambda size: None) -> None:
    """Download files into the cache, several at a time; arrived: is called with the bytes. Raises FedrayError."""

    class Meter(tqdm):
        """A disabled progress bar that passes its updates on."""

        def update(self, n: float | None = 1) -> None:
            arrived(int(n or 0))

    def fetch(file: File) -> None:
        with _explained(file.repository):
            hf_hub_download(**file.repository.at, filename=file.name, tqdm_class=Meter)

    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(fetch, [file for file in wanted if not file.cached]):
            pass


def snapshot(pinned: Repository, *, weights: bool = True) -> Path:
    """Download a repository's files unless they are cached, and return their folder. Raises FedrayError."""
    patterns = _ALL if weights else _TEXTS
    with _explained(pinned):
        folder = Path(snapshot_download(**pinned.at, allow_patterns=patterns, ignore_patterns=["*/*"]))
    if weights:
        _check_sizes(pinned, folder)
    return folder


def gguf(pinned: Repository, *, whole: bool = True) -> Path:
    """Find a repository's GGUF file in the cache, downloaded if need be.

    whole: or else its header suffices, in a file as long. Raises FedrayError.
    """
    with _explained(pinned):
        if whole:
            return Path(hf_hub_download(**pinned.at, filename=pinned.file))
        if (beginning := _beginning(pinned)).is_file():
            return beginning
        about = _about(pinned)
        path, at = Path(about.local_path), replace(pinned, revision=about.commit_hash)
        return path if path.is_file() else _fetch_beginning(at, about.file_size or 0)


def _about(repository: Repository) -> DryRunFileInfo:
    """Ask about a repository's GGUF file, or find it in the cache."""
    return hf_hub_download(**repository.at, filename=repository.file, dry_run=True)


def _beginning(pinned: Repository) -> Path:
    folder = Path(constants.HF_ASSETS_CACHE) / "fedray" / "gguf-headers"
    return folder / f"{pinned.repo}-{pinned.revision}-{pinned.file}".replace("/", "--")


def _fetch_beginning(pinned: Repository, size: int) -> Path:
    """Download a file up to the end of its header; the rest of the new file is a hole."""
    path = _beginning(pinned)
    url = hf_hub_url(**pinned.at, filename=pinned.file)
    with staged(path.parent) as new:
        partial, length = new / path.name, _HEADER
        while True:
            headers = {**build_hf_headers(), "Range": f"bytes=0-{min(length, size) - 1}"}
            response = get_session().get(url, headers=headers, follow_redirects=True)
            hf_raise_for_status(response)
            partial.write_bytes(response.content)
            os.truncate(partial, size)
            try:
                read_header(partial, length)
            except EOFError:
                if length < size:
                    length *= 2
                    continue
            except ValueError:  # whoever reads it says so
                pass
            flush(partial)
            return partial.replace(path)


def content_hash(paths: Sequence[Path]) -> str:
    """Hash an LLM's weights, alike in the hub's cache and in a local copy."""
    return _combined([_digest(path) for path in paths])


def weights_hash(pinned: Repository) -> str:
    """Compute the content hash of a repository's weights, which are downloaded only if its listing lacks theirs.

    Raises FedrayError.
    """
    large = {file.path: file.lfs.sha256 for file in _listing(pinned) if file.lfs is not None}
    shards = [WEIGHTS] if WEIGHTS in large else sorted(path for path in large if _SHARD.fullmatch(path))
    if shards:
        return _combined([large[shard] for shard in shards])
    return content_hash(weight_files(pinned.member, snapshot(pinned)))


def _listing(pinned: Repository, *, deep: bool = False) -> list[RepoFile]:
    """List a repository's files on the hub (the cache's own listing has no hashes); none where it cannot be asked."""
    with suppress(HTTPError, OSError):
        return [file for file in HfApi().list_repo_tree(**pinned.at, recursive=deep) if isinstance(file, RepoFile)]
    return []


def _combined(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(path: Path) -> str:
    """Take the hash by which the cache names a large file; any other file is read."""
    blob = Path(os.readlink(path)).name if path.is_symlink() else ""
    return blob if _SHA256.fullmatch(blob) else hash_file(path)


def _check_sizes(pinned: Repository, folder: Path) -> None:
    """Validate file sizes: a full disk or a killed copy may have truncated one. Raises FedrayError."""
    try:
        listed = {file.path: file.size for file in get_cached_repo_tree(**pinned.at)}
    except errors.CachedRepoTreeNotFoundError:
        return
    for path in folder.iterdir():
        size = path.stat().st_size
        if size != listed.get(path.name, size):
            raise FedrayError(
                f"{pinned.member}: {path} is truncated ({size:,} of {listed[path.name]:,} bytes); delete "
                f"{path.resolve()} and load again"
            )


@contextmanager
def _explained(repository: Repository) -> Iterator[None]:
    """Raise huggingface_hub's errors as FedrayError, with the remedy."""
    try:
        yield
    except (HTTPError, OSError, errors.XetDownloadError, errors.HFValidationError) as error:
        raise FedrayError(f"{repository.member}: {_reason(repository, error)}") from error


def _reason(repository: Repository, error: Exception) -> str:
    repo, revision, hub = repository.repo, repository.revision, constants.ENDPOINT
    setting = f"members.{safe_name(repository.member)}.revision"
    match error:
        case errors.GatedRepoError():
            return f"{repo} is gated: accept its terms at {hub}/{repo}, then `hf auth login` or set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"{repo} has no revision {revision!r}: leave {setting} out for main, or see {hub}/{repo}/commits"
        case errors.RepositoryNotFoundError():
            return f"{hub} has no repository {repo}: check the spelling, or `hf auth login` if it is private"
        case errors.RemoteEntryNotFoundError():
            path = repository.file or str(error.response.url).rpartition("/")[2]
            if named := [f"hf:{repo}/{file.path}" for file in _listing(repository, deep=True) if is_gguf(file.path)]:
                return f"{repo} at {revision} lacks {path}: name {' or '.join(named[:3])}"
            return f"{repo} at {revision} lacks {path}: choose another revision with {setting}, or another LLM"
        case errors.LocalEntryNotFoundError() if constants.is_offline_mode():
            return f"{repo} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set: unset it once"
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, errors.FileMetadataError):
            return f"{hub} does not answer as the Hugging Face hub does: check HF_ENDPOINT"
        case errors.LocalEntryNotFoundError():
            return (
                f"{hub} cannot be reached and {repo} is not in the cache {constants.HF_HUB_CACHE}: check the network "
                f"and HF_ENDPOINT, or give a local folder instead"
            )
        case errors.HfHubHTTPError() if error.response.status_code == 401:
            return f"{hub} does not accept the access token: `hf auth login`, or set HF_TOKEN"
        case errors.HfHubHTTPError():
            return f"{hub} refuses {repo} (HTTP {error.response.status_code}): try again later"
        case OSError() if error.errno is not None:
            return f"{repo} cannot be stored in {constants.HF_HUB_CACHE} ({error.strerror}): free space, or set HF_HOME"
        case _:
            return f"the download of {repo} broke off ({' '.join(str(error).split())}): run the same command again"
