"""Every mistake of a command line and its config files, not only the first one that Hydra meets.

The files are composed once more: defaults lists keep what exists, and a file that cannot be merged
as a whole is merged value by value. Then each argument of the command line is tried by itself.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from lamina.config.library_fields import either
from lamina.config.messages import (
    COMPOSITION_ERRORS,
    no_option,
    not_a_group,
    said,
    setting_problem,
)
from lamina.config.preflight import preflight, resolved
from lamina.config.security import look_at
from lamina.errors import LaminaError, joined, most_like, nearest
from lamina.runtime.paths import conf_dir

Keys = tuple[Any, ...]
"""The keys from the root of the config down to a value."""


def explain(error: Exception, arguments: Sequence[str], config_name: str) -> str:
    """Say what is wrong with the command line and the config files, all of it.

    Of a sweep the first job is checked.

    Args:
        error: What Hydra or OmegaConf raised.
        arguments: The command line's.
        config_name: The command's primary config.
    """
    line = get_args_parser().parse_args(list(arguments))
    loader = _Loader(line.config_dir)
    try:
        loader.sort(config_name, line.overrides)
        config = loader.load_configuration(
            config_name=config_name, overrides=loader.choices, run_mode=RunMode.RUN
        )
        loader.try_values(config)
        if not line.multirun and config.hydra.mode != RunMode.MULTIRUN:
            loader.problems += (
                f"{swept}: several values need --multirun; a list stands in brackets"
                for swept in loader.swept
            )
        look_at(config)
        HydraConfig.instance().set_config(config)
        content = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        (preflight if config_name == "config" else resolved)(content)
    except (LaminaError, *COMPOSITION_ERRORS) as found:
        loader.problems.append(said(found))
    return joined(list(dict.fromkeys(loader.problems)) or [said(error)])


class _Repository(CachingConfigRepository):
    """Config files whose defaults lists hold only what exists; the rest is a problem."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        super().__init__(loader.repository)
        self.problems: list[str] = []
        self.dropped: set[str] = set()
        """Groups whose option is unknown and like no other: what is set below them is not tried."""

    @override
    def load_config(self, config_path: str) -> Any:
        is_new = f"config_path={config_path}" not in self.cache
        loaded = super().load_config(config_path)
        if loaded is not None and is_new:
            entries = loaded.defaults_list or ()
            loaded.defaults_list = [each for each in entries if self._keeps(each, config_path)]
        return loaded

    def chosen(self, group: str, option: str) -> str | None:
        """Return an option that exists: the one given, or the one most like it, or nothing."""
        if self.config_exists(f"{group}/{option}"):
            return option
        options = self.get_group_options(group)
        self.problems.append(no_option(group, option, options))
        if meant := most_like(option, options):
            return meant
        self.dropped.add(group)
        return None

    def _keeps(self, entry: Any, config_path: str) -> bool:
        """Whether an entry of a file's defaults list stays; one that is misspelt is corrected."""
        is_group = isinstance(entry, GroupDefault)
        path = f"{entry.group}/{entry.value}" if is_group else str(entry.path)
        if path == "_self_" or "${" in path or (is_group and not isinstance(entry.value, str)):
            return True
        if not path.startswith("/"):
            path = f"{config_path.rpartition('/')[0]}/{path}"
        group, _, option = path.lstrip("/").rpartition("/")
        if entry.is_optional() or not group:
            return True
        if not self.group_exists(group):
            groups = [each.name for each in conf_dir().iterdir() if each.is_dir()]
            self.problems.append(
                f"conf file {config_path}: override /{group}: no such group{nearest(group, groups)}"
            )
            return False
        if meant := self.chosen(group, option):
            if meant != option and is_group:
                entry.value = meant
            elif meant != option:
                entry.path = f"/{group}/{meant}"
        return meant is not None


class _Loader(ConfigLoaderImpl):
    """Composes what is right, and collects what is wrong."""

    def __init__(self, config_dir: str | None) -> None:
        search_path = create_config_search_path(str(conf_dir()))
        if config_dir and Path(config_dir).is_dir():
            place = f"file://{Path(config_dir).absolute()}"
            search_path.prepend("command-line", place, SearchPathQuery(provider="schema"))
        super().__init__(search_path)
        self.files = _Repository(self)
        self.problems = self.files.problems
        self.choices = ["hydra.runtime.output_dir=."]
        self.values: list[Override] = []
        self.swept: list[str] = []

    def sort(self, config_name: str, arguments: Sequence[str]) -> None:
        """Sort arguments into choices of options and values; of several values take the first."""
        parser, parsed = OverridesParser.create(self), []
        for argument in arguments:
            try:
                (given,) = parser.parse_overrides([argument])
                if given.is_sweep_override():
                    self.swept.append(argument)
                    first = next(given.sweep_string_iterator())
                    (given,) = parser.parse_overrides([f"{given.get_key_element()}={first}"])
                parsed.append(given)
            except OverrideParseException as error:
                self.problems.append(said(error))
        self._process_config_searchpath(config_name, parsed, self.files)
        for given in parsed:
            self._sort(given)

    def _sort(self, given: Override) -> None:
        group, value = given.key_or_group, given.value()
        if group == "hydra.searchpath":
            self.choices.append(str(given.input_line))
        elif isinstance(value, dict) or not self.files.group_exists(group):
            self.values.append(given)
        elif given.is_delete():
            self.choices.append(str(given.input_line))
        elif not isinstance(value, str) or not value:
            options = self.files.get_group_options(group)
            self.problems.append(f"{given.input_line}: choose {either(options)}")
            self.files.dropped.add(group)
        elif chosen := self.files.chosen(group, value):
            self.choices.append(f"{given.get_key_element()}={chosen}")

    @override
    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        return OverridesParser.create().parse_overrides(overrides), self.files

    @override
    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        config = OmegaConf.create()
        for default in defaults:
            content = self._load_single_config(default, repo).config
            try:
                config.merge_with(content)
            except OmegaConfBaseException:
                for keys, value in _leaves(OmegaConf.to_container(content, resolve=False)):
                    self._try_leaf(config, str(default.config_path), keys, value)
        return config

    def _try_leaf(self, config: DictConfig, name: str, keys: Keys, value: Any) -> None:
        """Merge one value of a file into what is composed so far."""
        if keys[0] in self.files.dropped:
            return
        node = value
        for key in reversed(keys):
            node = {key: node}
        try:
            config.merge_with(OmegaConf.create(node))
        except OmegaConfBaseException as error:
            if keys[0] == "experiment":
                said = "its first line must be: # @package _global_"
            elif error.full_key:
                said = setting_problem(error, config)
            else:  # what OmegaConf raises for a value in place of a group
                said = not_a_group(".".join(map(str, keys)), value)
            self.problems.append(f"conf file {name}: {said}")

    def try_values(self, config: DictConfig) -> None:
        """Apply the command line's values to a composed config, each by itself."""
        for value in self.values:
            if value.key_or_group.partition(".")[0] in self.files.dropped:
                continue
            try:
                self._apply_overrides_to_config([value], config)
            except COMPOSITION_ERRORS as error:
                argument = str(value.input_line).lstrip("+~")
                self.problems.append(said(error, config, argument))


def _leaves(node: dict[Any, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Each value that is not a mapping of others, with its keys from the root."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value
