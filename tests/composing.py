"""Compositions that keep what they share with those before them in the same process: hundreds of tests compose a
command line, nearly all of them from the same files."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import TYPE_CHECKING, Any

from fedray.command_line import CONF

if TYPE_CHECKING:
    import pytest
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository, IConfigRepository
    from hydra.core.default_element import ResultDefault
    from hydra.plugins.config_source import ConfigResult


class _Copying:
    """A repository whose configs may be changed."""

    def __init__(self, repository: IConfigRepository) -> None:
        self.repository = repository

    def load_config(self, config_path: str) -> ConfigResult | None:
        return copy.deepcopy(self.repository.load_config(config_path))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.repository, name)


def compose_briefly(patch: pytest.MonkeyPatch) -> None:
    """Read each file of a command line once, and merge each choice of files once. What the command line itself says is
    parsed, applied, validated and written anew."""
    import omegaconf.base
    from hydra._internal import defaults_list
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository
    from hydra._internal.hydra import Hydra
    from hydra.core.object_type import ObjectType
    from omegaconf import OmegaConf
    from omegaconf.base import Metadata

    read: dict[tuple[str, str], ConfigResult] = {}
    merged: dict[tuple[Any, ...], bytes] = {}
    load, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    known_choices = defaults_list._create_interpolation_map

    def load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or not (source.path == str(CONF) or config_path.startswith("hydra/")):
            return load(self, config_path)  # entries of other packages, for one, are stored anew by each command line
        key = (source.path, config_path)
        if key not in read:
            read[key] = load(self, config_path)  # type: ignore[assignment]
        return read[key]

    def compose(self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> Any:
        results = [repo.load_config(default.config_path or "") for default in defaults]
        known = {id(result) for result in read.values()}
        if not all(id(result) in known for result in results):
            return merge(self, defaults, _Copying(repo))  # type: ignore[arg-type]
        chosen = zip(defaults, results, strict=True)
        key = tuple((id(result), default.package, default.primary) for default, result in chosen)
        if key not in merged:
            merged[key] = pickle.dumps(merge(self, defaults, _Copying(repo)))  # type: ignore[arg-type]
        return pickle.loads(merged[key])

    def interpolation_map(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
        return known_choices(overrides, defaults, self_added) if defaults else OmegaConf.create()  # else of no use

    def copied(self: Metadata, memo: dict[int, Any]) -> Metadata:
        made = object.__new__(type(self))
        made.__dict__ |= self.__dict__  # types and words, and two dictionaries
        made.flags, made.resolver_cache = copy.copy(self.flags), copy.deepcopy(self.resolver_cache, memo)
        return made

    # Half of the time of a composition is spent on copies of what is known of each of its values.
    patch.setattr(Metadata, "__deepcopy__", copied, raising=False)
    # Hydra composes all of a command line once more beforehand, to see whether hydra.mode is set.
    patch.setattr(Hydra, "get_mode", lambda *args, **kwargs: None)
    patch.setattr(ConfigRepository, "load_config", load_config)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose)
    patch.setattr(defaults_list, "_create_interpolation_map", interpolation_map)
    patch.setattr(omegaconf.base, "parse", functools.lru_cache(omegaconf.base.parse))
