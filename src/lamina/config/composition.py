"""Hydra's composition errors, all of a command line's at once, with the nearest right names."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from lamina.config.paths import conf_dir
from lamina.config.preflight import preflight, resolved
from lamina.config.wording import COMPOSITION_ERRORS, full_key, given, no_name, said, text_of
from lamina.errors import LaminaError, joined


def explain(error: Exception, arguments: Sequence[str], config_name: str) -> str:
    """Say what is wrong with the command line or a config file, all of it.

    Hydra stops at the first mistake: each that the command line made is taken out, and the rest is
    composed again and checked.

    Args:
        error: What Hydra or OmegaConf raised.
        arguments: The command line's.
        config_name: The command's primary config.
    """
    line = get_args_parser().parse_args(list(arguments))
    overrides = list(line.overrides)
    problems = []
    found: Exception | None = error
    while found is not None:
        lines = said(found, overrides, config_name).splitlines()
        problems += [each for each in lines if each not in problems]
        wrong = _culprit(found, overrides)
        if wrong is None or line.multirun:
            break
        overrides = _without(wrong, overrides)
        found = _attempt(overrides, line.config_dir, config_name)
    return joined(problems)


def _attempt(
    overrides: Sequence[str], config_dir: str | None, config_name: str
) -> Exception | None:
    """Compose and check; return what is raised."""
    runtime = ["hydra.runtime.output_dir=."]
    if config_dir:
        runtime.append(f"hydra.searchpath=[file://{Path(config_dir).absolute()}]")
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose(config_name, [*overrides, *runtime], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        content = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        (preflight if config_name == "config" else resolved)(content)
    except (LaminaError, *COMPOSITION_ERRORS) as error:
        return error
    return None


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


def _without(wrong: str, overrides: Sequence[str]) -> list[str]:
    """Leave out an argument; with a group's choice, what is set below it goes, too."""
    below = f"{wrong.lstrip('+~').split('=')[0]}."
    return [o for o in overrides if o != wrong and not o.lstrip("+~").startswith(below)]
