"""Hydra's composition errors, all of a command line's at once, with the nearest right names."""

import re
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from lamina.config.copies import ConfigCopies
from lamina.config.preflight import preflight, resolved
from lamina.config.wording import (
    COMPOSITION_ERRORS,
    full_key,
    given,
    known_keys,
    no_name,
    said,
    text_of,
)
from lamina.errors import LaminaError, joined, most_like

NO_GROUP = re.compile(
    r"Merge error: \w+ is not a subclass of|Cannot merge DictConfig with|Cannot assign \w+ to Dict"
)
"""What OmegaConf says, without the key, where a file gives a value in place of a group."""


def explain(error: Exception, arguments: Sequence[str], config_name: str) -> str:
    """Say what is wrong with the command line and the config files, all of it.

    Hydra stops at the first mistake: each is taken out of the command line or of a copy of its
    file, and the rest is composed again and checked. Of a sweep the first job is.

    Args:
        error: What Hydra or OmegaConf raised.
        arguments: The command line's.
        config_name: The command's primary config.
    """
    line = get_args_parser().parse_args(list(arguments))
    overrides = list(line.overrides)
    problems = []
    found: Exception | None = error
    with ConfigCopies(line.config_dir) as files:
        while found is not None:
            lines = _said(found, overrides, files, config_name)
            problems += [each for each in lines if each not in problems]
            if wrong := _culprit(found, overrides):
                overrides = _without(wrong, overrides, _meant(found))
            elif not _taken_out(found, files, config_name):
                break
            found = _attempt(overrides, files, config_name)
    return joined(problems)


def _said(
    error: Exception, overrides: Sequence[str], files: ConfigCopies, config_name: str
) -> list[str]:
    """Say what one error is about, in lines."""
    name, values = _values_for_groups(error, files, config_name)
    return [
        f"conf file {name}: {key}={value}: a group of keys; give {key}.NAME=VALUE"
        for key, value in values.items()
    ] or files.named(said(error, overrides, config_name)).splitlines()


def _values_for_groups(
    error: Exception, files: ConfigCopies, config_name: str
) -> tuple[str, dict[str, Any]]:
    """Return the file that an error is in, and what it gives in place of groups of keys."""
    text = text_of(error)
    where = re.search(r"In '([^']+)'", text)
    if where is None or not NO_GROUP.search(text):
        return "", {}
    groups = [key for key, value in known_keys((), config_name) if isinstance(value, dict)]
    return where[1], files.values_for_groups(where[1], groups)


def _attempt(overrides: Sequence[str], files: ConfigCopies, config_name: str) -> Exception | None:
    """Compose and check; return what is raised."""
    runtime = ["hydra.runtime.output_dir=."]
    if files.added.is_dir():
        runtime.append(f"hydra.searchpath=[file://{files.added}]")
    try:
        with initialize_config_dir(str(files.conf), version_base="1.3"):
            chosen = [*_first(overrides), *runtime]
            config = compose(config_name, chosen, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        content = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        (preflight if config_name == "config" else resolved)(content)
    except (LaminaError, *COMPOSITION_ERRORS) as error:
        return error
    return None


def _first(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a sweep's first job."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        f"{each.get_key_element()}={next(each.sweep_string_iterator())}"
        if each.is_sweep_override()
        else str(each.input_line)
        for each in parsed
    ]


def _taken_out(error: Exception, files: ConfigCopies, config_name: str) -> bool:
    """Take the mistake that an error is about out of a copied file; say whether it was there."""
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        return files.choose(group, option, _meant(error))
    text = text_of(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return files.choose(match[1], None, None)
    name, values = _values_for_groups(error, files, config_name)
    if values:
        return all(files.without_key(name, key) for key in values)
    where = re.search(r"In '([^']+)'", text)
    key = full_key(text)
    return where is not None and key is not None and files.without_key(where[1], key)


def _culprit(error: Exception, overrides: Sequence[str]) -> str | None:
    """Return the argument that an error is about; None if it is a file's."""
    if isinstance(error, LaminaError):
        return None
    if isinstance(error, OverrideParseException):
        return str(error.override)
    if isinstance(error, MissingConfigException):
        group = (error.missing_cfg_file or "").rpartition("/")[0]
        return given(group, overrides)
    text = text_of(error)
    if type(error.__cause__) in (TypeError, ValueError):  # OmegaConf has subclasses of its own
        return no_name(overrides)
    match = re.search(r"Could not override '([^']+)'|merging override ([^=\s]+)", text)
    key = (match[1] or match[2]) if match else full_key(text)
    return given(key or "", overrides)


def _meant(error: Exception) -> str | None:
    """Return the option that a wrong one was probably meant to be: what is below it stays."""
    if not isinstance(error, MissingConfigException):
        return None
    option = (error.missing_cfg_file or "").rpartition("/")[2]
    return most_like(option, error.options or ())


def _without(wrong: str, overrides: Sequence[str], meant: str | None) -> list[str]:
    """Mend a group's choice, or leave an argument out with all that is set below it."""
    name = wrong.lstrip("+~").split("=")[0]
    if meant:
        return [f"{name}={meant}" if each == wrong else each for each in overrides]
    below = f"{name}."
    return [o for o in overrides if o != wrong and not o.lstrip("+~").startswith(below)]
