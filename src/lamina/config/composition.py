"""What is wrong with a command line and its config files, all of it, with the nearest right names.

Hydra stops at the first mistake. Here the choices of options are composed without the values of
files that have a mistake, and then each value is tried by itself.
"""

import re
from collections.abc import Iterator, Sequence

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lamina.config.copies import ConfigCopies, FileValues
from lamina.config.messages import (
    COMPOSITION_ERRORS,
    dotted_keys,
    given,
    no_name,
    said,
    text_of,
)
from lamina.config.preflight import preflight, resolved
from lamina.config.security import look_at
from lamina.errors import LaminaError, joined, most_like


def explain(error: Exception, arguments: Sequence[str], config_name: str) -> str:
    """Say what is wrong with the command line and the config files, all of it.

    Of a sweep the first job is looked at.

    Args:
        error: What Hydra or OmegaConf raised.
        arguments: The command line's.
        config_name: The command's primary config.
    """
    line = get_args_parser().parse_args(list(arguments))
    with ConfigCopies(line.config_dir) as files:
        search = _Search(files, config_name, line.overrides)
        search.put_aside(error)
        problems = [files.named(each) for each in search.problems(line.multirun)]
    return joined(list(dict.fromkeys(problems)) or [said(error, line.overrides, ())])


NO_GROUP = re.compile(
    r"Merge error: \w+ is not a subclass of|Cannot merge DictConfig with|Cannot assign \w+ to Dict"
)
"""What OmegaConf says, without the key, where a file gives a value in place of a group."""


class _Search:
    """Looks for the mistakes of a command line and of copies of the config files."""

    def __init__(self, files: ConfigCopies, config_name: str, overrides: Sequence[str]) -> None:
        self.files, self.config_name, self.overrides = files, config_name, overrides
        self.choices: list[str] = []
        self.values: list[Override] = []
        self.swept: list[str] = []
        self.config = OmegaConf.create()

    def problems(self, multirun: bool) -> Iterator[str]:
        """Name the mistakes.

        Args:
            multirun: Whether the command line asks for a sweep; a file may do so, too.
        """
        for override in self.overrides:
            yield from self._parsed(override)
        yield from self._of_choices()
        if not self.config:
            return
        content = OmegaConf.masked_copy(self.config, [key for key in self.config if key != "hydra"])
        known = list(dotted_keys(OmegaConf.to_container(content, resolve=False)))
        for values in self.files.emptied:
            yield from self._of_file(values, known)
        right = []
        for value in self.values:
            if problem := self._of_value(value, known):
                yield problem
            else:
                right.append(str(value.input_line))
        if not multirun and self.config.hydra.mode != RunMode.MULTIRUN:
            for swept in self.swept:
                yield f"{swept}: several values need --multirun; a list stands in brackets"
        yield from self._of_all([*self.choices, *right] if self.files.emptied else None)

    def _parsed(self, override: str) -> Iterator[str]:
        """Sort an argument into choices of options and values; of several values take the first."""
        parser = OverridesParser.create()
        try:
            (parsed,) = parser.parse_overrides([override])
        except OverrideParseException as error:
            yield said(error, self.overrides, ())
            return
        if parsed.is_sweep_override():
            self.swept.append(override)
            first = f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"
            (parsed,) = parser.parse_overrides([first])
        if self.files.has_group(parsed.key_or_group):
            self.choices.append(str(parsed.input_line))
        else:
            self.values.append(parsed)

    def _of_choices(self) -> Iterator[str]:
        """Compose the chosen options, and put files whose values do not go with them aside."""
        while not self.config:
            try:
                self.config = self._composed(self.choices)
            except LaminaError as error:
                yield str(error)
                return
            except COMPOSITION_ERRORS as error:
                if self.put_aside(error):
                    continue
                yield said(error, self.overrides, ())
                if not self._mended(error):
                    return

    def put_aside(self, error: Exception) -> bool:
        """Put the values of the file aside that an error is in; say whether it is in any."""
        where = re.search(r"In '([^']+)': \w+ raised while composing", text_of(error))
        return where is not None and self.files.empty(where[1])

    def _mended(self, error: Exception) -> bool:
        """Take a wrong choice out of the command line or of the files; say whether it was there."""
        wrong, meant = None, None
        if isinstance(error, MissingConfigException):
            group, _, option = (error.missing_cfg_file or "").rpartition("/")
            wrong, meant = given(group, self.choices), most_like(option, error.options or ())
            if wrong is None:
                return self.files.choose(group, option, meant)
        elif match := re.search(r"Could not override '([^']+)'", str(error)):
            return self.files.choose(match[1], None, None)
        elif type(error.__cause__) in (TypeError, ValueError):  # OmegaConf's own are subclasses
            wrong = no_name(self.choices)
        if wrong is None:
            return False
        name = wrong.lstrip("+~").split("=")[0]
        instead = [f"{name}={meant}"] if meant else []
        place = self.choices.index(wrong)
        self.choices[place : place + 1] = instead
        if not meant:
            self.values = [v for v in self.values if not v.key_or_group.startswith(f"{name}.")]
        return True

    def _of_file(self, values: FileValues, known: Sequence[str]) -> Iterator[str]:
        """Try each value of a file that was emptied, and put the right ones back."""
        place = f"conf file {values.name}: "
        OmegaConf.set_struct(self.config, None)  # as it is while Hydra merges the files
        for keys, value in values.leaves():
            node = value
            for key in reversed(keys):
                node = {key: node}
            try:
                self.config.merge_with(OmegaConf.create(node))
            except OmegaConfBaseException as error:
                values.leave_out(keys)
                if NO_GROUP.search(str(error)):
                    key = ".".join(map(str, keys))
                    yield f"{place}{key}={value}: a group of keys; give {key}.NAME=VALUE"
                else:
                    found = ConfigCompositionException(f"In '{values.name}': {error}")
                    yield said(found, self.overrides, known)
        OmegaConf.set_struct(self.config, True)
        values.write_back()

    def _of_value(self, value: Override, known: Sequence[str]) -> str | None:
        """Try one argument that sets a value; say what is wrong with it."""
        try:
            ConfigLoaderImpl._apply_overrides_to_config([value], self.config)
        except COMPOSITION_ERRORS as error:
            return said(error, self.overrides, known)
        return None

    def _of_all(self, overrides: list[str] | None) -> Iterator[str]:
        """Check what is left as a whole; None: of the config as it is."""
        try:
            config = self.config if overrides is None else self._composed(overrides)
            look_at(config)
            HydraConfig.instance().set_config(config)
            content = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
            (preflight if self.config_name == "config" else resolved)(content)
        except (LaminaError, *COMPOSITION_ERRORS) as error:
            yield said(error, self.overrides, ())

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        runtime = ["hydra.runtime.output_dir=."]
        if self.files.added.is_dir():
            runtime.append(f"hydra.searchpath=[file://{self.files.added}]")
        with initialize_config_dir(str(self.files.conf), version_base="1.3"):
            return compose(self.config_name, [*overrides, *runtime], return_hydra_config=True)
