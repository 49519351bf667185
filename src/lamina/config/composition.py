"""Hydra's composition errors, said in one or two lines with the nearest right name."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lamina.config.fields import fields_of
from lamina.config.paths import conf_dir
from lamina.config.schema import OPTIONS, schema_of
from lamina.errors import nearest

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)
"""What Hydra and OmegaConf raise when a config cannot be composed or read."""

DERIVED = {
    "use_lora": "choose adapter=lora or adapter=full",
    "report_to": "choose logger=tb, wandb, both or none",
}
"""Keys of an older form that a group decides now."""

_KINDS = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "String": "a text",
}


def explain(error: Exception, overrides: Sequence[str], config_name: str) -> str:
    """Say in at most three lines what is wrong with the command line or a config file.

    Args:
        error: What Hydra or OmegaConf raised.
        overrides: The command line's arguments.
        config_name: The command's primary config.
    """
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: not of the form NAME=VALUE (quote values with commas or brackets)"
        )
    text = "\n".join(str(e) for e in (error, error.__cause__) if e is not None)
    if match := re.search(
        r"Value '(?P<value>.*?)'.* (?:could not be converted to|is not a valid) (\w+)", text
    ):
        key = _full_key(text) or "?"
        return f"{key}={match['value']}: expected {_KINDS.get(match[2], match[2])}"
    if match := re.search(r"Key '(?P<key>[^']+)' (?:is )?not in", text):
        return _unknown_key(match["key"], text, overrides, config_name)
    if match := re.search(r"You must specify '([^']+)', e\.g, (.*)", text):
        return f"{match[1]} is missing: give {match[2]}"
    return "\n".join(text.splitlines()[:3])


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or ())
    if not group or not options:
        return str(error).splitlines()[0]
    there_are = f"There are {', '.join(options)}."
    return f"{group}={option}: no such option{nearest(option, options)}\n{there_are}"


def _unknown_key(key: str, text: str, overrides: Sequence[str], config_name: str) -> str:
    dotted = _full_key(text) or key
    given = next((o for o in overrides if o.lstrip("+~").split("=")[0] == dotted), dotted)
    given = given.lstrip("+")
    if key in DERIVED:
        return f"{given}: no longer a key, {DERIVED[key]}"
    if owner := _owner(dotted):
        chosen = re.search(r"not in '(\w+)'", text)
        instead = _keys_of(dotted.split(".")[0], chosen[1]) if chosen else ""
        return f"{given}: this key goes with {owner}{instead}"
    where = re.search(r"In '([^']+)'", text)
    place = f"conf file {where[1]}: " if where and given == dotted else ""
    known = _known_keys(overrides, config_name)
    guess = nearest(dotted, known) or nearest(key, known)
    return f"{place}{given}: no such key{guess or '; see README.md for the parameters'}"


def _owner(dotted: str) -> str:
    """Return the options of a key's group that have this key, such as `model=dropped`."""
    group, _, key = dotted.partition(".")
    options = OPTIONS.get(group, {}).items()
    having = [name for name, settings in options if key in _names(settings)]
    if group == "adapter" and key in fields_of("LoraConfig"):
        having = ["lora"]
    return " or ".join(f"{group}={name}" for name in having)


def _keys_of(group: str, class_name: str) -> str:
    """Say which keys the chosen option has, which an error knows by the name of its class."""
    for name, settings in OPTIONS[group].items():
        if settings.__name__ == class_name and _names(settings):
            return f"; {group}={name} has {', '.join(_names(settings))}"
    return ""


def _names(settings: Any) -> list[str]:
    return [entry.name for entry in fields(schema_of(settings)) if entry.name != "_target_"]


def _full_key(text: str) -> str | None:
    match = re.search(r"full_key: (\S+)", text)
    return match[1] if match else None


def _known_keys(overrides: Sequence[str], config_name: str) -> list[str]:
    """All dotted keys of the config with the groups that the command line chooses."""
    groups = [o for o in overrides if re.fullmatch(r"[\w/]+=\w+", o)]
    for chosen in (groups, []):
        try:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                return list(_dotted(compose(config_name, overrides=chosen)))
        except (ValueError, *COMPOSITION_ERRORS):
            continue
    return []


def _dotted(node: DictConfig, prefix: str = "") -> Iterator[str]:
    content: dict[Any, Any] = OmegaConf.to_container(node, resolve=False)
    for key in content:
        yield f"{prefix}{key}"
        if isinstance(content[key], dict):
            yield from _dotted(OmegaConf.create(content[key]), f"{prefix}{key}.")
