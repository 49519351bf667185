"""Finds every mistake in a command line and its config files; Hydra stops at the first.

The files are composed again: defaults lists keep only entries that exist, and a file that does not
merge as a whole is merged value by value. Then each command-line argument is tried by itself.
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
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from lamina.config import messages, quoting
from lamina.config.messages import COMPOSITION_ERRORS
from lamina.config.preflight import preflight, refuse_incomplete
from lamina.config.security import refuse_unsafe
from lamina.errors import LaminaError, closest, did_you_mean, either
from lamina.runtime.paths import conf_dir

Keys = tuple[Any, ...]
"""Keys from the root of the config down to a value."""


def explain(error: Exception, arguments: Sequence[str], config_name: str) -> str:
    """Return every problem of a command line and its config files, one a line.

    `error` is what Hydra or OmegaConf raised.
    """
    return "\n".join(problems(arguments, config_name)) or messages.describe(error)


def problems(arguments: Sequence[str], config_name: str) -> list[str]:
    """Compose a command line; return what is wrong with it and its config files.

    A sweep is checked by its first job.
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
            loader.problems += (messages.swept(each, config) for each in loader.swept)
        refuse_unsafe(config)
        HydraConfig.instance().set_config(config)
        content = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        (refuse_incomplete if config_name == "cut" else preflight)(content)
    except (LaminaError, *COMPOSITION_ERRORS) as found:
        loader.problems.append(messages.describe(found))
    lines = dict.fromkeys("\n".join(loader.problems).splitlines())
    # A key whose value was refused is not missing, too.
    missing = {f"{(key := line.partition('=')[0])} is missing: set {key}=VALUE" for line in lines}
    return [line for line in lines if line not in missing]


class _Repository(CachingConfigRepository):
    """Config files without the entries of their defaults lists that do not exist."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        super().__init__(loader.repository)
        self.problems: list[str] = []
        self.dropped: set[str] = set()
        """Groups whose unknown option resembles no other; values below them are not tried."""

    @override
    def load_config(self, config_path: str) -> Any:
        is_new = f"config_path={config_path}" not in self.cache
        loaded = super().load_config(config_path)
        if loaded is not None and is_new:
            entries = loaded.defaults_list or ()
            loaded.defaults_list = [each for each in entries if self._keeps(each, config_path)]
        return loaded

    def existing_option(self, group: str, option: str) -> str | None:
        """Return the given option if it exists, else the most similar one, if any."""
        if self.config_exists(f"{group}/{option}"):
            return option
        options = self.get_group_options(group)
        self.problems.append(messages.no_option(group, option, options))
        if meant := closest(option, options):
            return meant
        self.dropped.add(group)
        return None

    def _keeps(self, entry: Any, config_path: str) -> bool:
        """Whether an entry of a defaults list stays; a misspelt one is corrected in place."""
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
            advice = did_you_mean(group, groups)
            self.problems.append(
                f"conf file {config_path}: override /{group}: no such group{advice}"
            )
            return False
        if meant := self.existing_option(group, option):
            if meant != option and is_group:
                entry.value = meant
            elif meant != option:
                entry.path = f"/{group}/{meant}"
        return meant is not None


class _Loader(ConfigLoaderImpl):
    """Composes what is valid, and collects the problems of the rest."""

    def __init__(self, config_dir: str | None) -> None:
        search_path = create_config_search_path(str(conf_dir()))
        if config_dir and Path(config_dir).is_dir():
            url = f"file://{Path(config_dir).absolute()}"
            search_path.prepend("command-line", url, SearchPathQuery(provider="schema"))
        super().__init__(search_path)
        self.files = _Repository(self)
        self.problems = self.files.problems
        self.choices = ["hydra.runtime.output_dir=."]
        self.values: list[Override] = []
        self.swept: list[str] = []

    def sort(self, config_name: str, arguments: Sequence[str]) -> None:
        """Split arguments into chosen options and values; of swept values take the first."""
        parser, parsed = OverridesParser.create(self), []
        for given in quoting.read(arguments, parser):
            if isinstance(given, str):
                self.problems.append(given)
            elif problem := messages.no_value(given):
                self.problems.append(problem)
            elif given.is_sweep_override():
                self.swept.append(str(given.input_line))
                first = next(given.sweep_string_iterator())
                parsed += parser.parse_overrides([f"{given.get_key_element()}={first}"])
            else:
                parsed.append(given)
        self._process_config_searchpath(config_name, parsed, self.files)
        entries = self.files.load_config(config_name).defaults_list
        groups = [each.group for each in entries if isinstance(each, GroupDefault)]
        for given in parsed:
            self._sort(given, [group for group in groups if not group.startswith("hydra/")])

    def _sort(self, given: Override, groups: Sequence[str]) -> None:
        """Sort one argument of a command that has some groups, and those of Hydra."""
        group, value = given.key_or_group, given.value()
        if group == "hydra.searchpath":
            self.choices.append(str(given.input_line))
        elif isinstance(value, dict) or not self.files.group_exists(group):
            self.values.append(given)
        elif group not in groups and not group.startswith("hydra/"):
            advice = f"not a group of this command; use {either(sorted(groups))}"
            self.problems.append(f"{given.input_line}: {advice}")
        elif given.is_delete():
            self.choices.append(str(given.input_line))
        elif not isinstance(value, str) or not value:
            options = self.files.get_group_options(group)
            self.problems.append(f"{given.input_line}: choose {either(options)}")
            self.files.dropped.add(group)
        elif option := self.files.existing_option(group, value):
            self.choices.append(f"{given.get_key_element()}={option}")

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
        """Merge one value of a file into the config composed so far."""
        if keys[0] in self.files.dropped:
            return
        node = value
        for key in reversed(keys):
            node = {key: node}
        try:
            config.merge_with(OmegaConf.create(node))
        except OmegaConfBaseException as error:
            key, above = (".".join(map(str, each)) for each in (keys, keys[:-1]))
            if keys[0] == "experiment":
                problem = "its first line must be: # @package _global_"
            elif error.full_key:
                given = value if error.full_key == key else None  # not a part of what is wrong
                problem = messages.setting_problem(error, config, given=given)
            elif above and isinstance(OmegaConf.select(config, above), ListConfig):
                problem = f"{key}={value}: no such key; {above} takes a list"
            else:  # what OmegaConf raises for a value in place of a group
                problem = messages.not_a_group(key, value)
            self.problems.append(f"conf file {name}: {problem}")

    def try_values(self, config: DictConfig) -> None:
        """Apply each of the command line's values to a composed config by itself."""
        for value in self.values:
            if value.key_or_group.partition(".")[0] in self.files.dropped:
                continue
            if problem := messages.misplaced(value, config):
                self.problems.append(problem)
                continue
            try:
                self._apply_overrides_to_config([value], config)
            except COMPOSITION_ERRORS as error:
                argument = str(value.input_line).lstrip("+~")
                self.problems.append(messages.describe(error, config, argument))


def _leaves(node: dict[Any, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield each value that is not a non-empty mapping, with its keys from the root."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value
