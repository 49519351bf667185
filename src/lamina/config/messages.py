"""One composition error of Hydra or OmegaConf, said in at most three lines."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from lamina.config.library_fields import either, fields_of
from lamina.config.schema import OPTIONS, is_open, schema_of
from lamina.errors import LaminaError, nearest
from lamina.limits import WHOLE_TOKENS
from lamina.runtime.paths import conf_dir

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
"""What Hydra and OmegaConf raise when a config cannot be composed or read."""

DERIVED = {
    "use_lora": "choose adapter=lora or adapter=full",
    "report_to": "choose logger=tb, wandb, both or none",
}
"""Keys of an older form that a group decides now."""

TOKEN_COUNTS = ("max_seq_length", "evaluation.max_new_tokens")
"""Keys that take plain numbers only: 4k would be 4000 tokens, and people mean 4096."""

_KINDS = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "String": "a text",
}


def said(error: Exception, overrides: Sequence[str], known: Sequence[str]) -> str:
    """Say in at most three lines what one error is about.

    Args:
        error: What was raised.
        overrides: The command line's.
        known: The dotted keys that there are.
    """
    if isinstance(error, LaminaError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not YAML ({error.problem})"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: not of the form NAME=VALUE (quote values with commas or brackets)"
        )
    text = text_of(error)
    if match := re.search(
        r"Value '(?P<value>.*?)'.* (?:could not be converted to|is not a valid) (\w+)", text
    ):
        key = full_key(text) or "?"
        advice = f"expected {_KINDS.get(match[2], match[2])}"
        if key in TOKEN_COUNTS:
            advice = WHOLE_TOKENS.advice
        return f"{_place(text, key, overrides)}{key}={match['value']}: {advice}"
    if match := re.search(r"Key '(?P<key>[^']+)' (?:is )?not in", text):
        return _unknown_key(match["key"], text, overrides, known)
    if match := re.search(r"You must specify '([^']+)', e\.g, (.*)", text):
        return f"{match[1]} is missing: give {match[2]}"
    return _other(error, text, overrides)


def _place(text: str, key: str, overrides: Sequence[str]) -> str:
    """The file that an error is in, unless an argument set the key."""
    where = re.search(r"In '([^']+)'", text)
    return f"conf file {where[1]}: " if where and given(key, overrides) is None else ""


def _other(error: Exception, text: str, overrides: Sequence[str]) -> str:
    """Say the rarer ones in our words, the rest in those of the library."""
    key = full_key(text) or ""
    if match := re.search(r"In '([^']+)': Could not override '([^']+)'", text):
        groups = [path.name for path in conf_dir().iterdir() if path.is_dir()]
        return (
            f"conf file {match[1]}: override /{match[2]}: no such group{nearest(match[2], groups)}"
        )
    if "is not Optional" in text or "Incompatible value 'None'" in text:
        return f"{key}=null: give a value"
    if match := re.search(r"Invalid type assigned: .* value: (.*)", text):
        return f"{key}={match[1]}: a group of keys; give {key}.NAME=VALUE"
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{key}: refers to {match[1]}, which is not there"
    if type(error.__cause__) in (TypeError, ValueError) and (choice := no_name(overrides)):
        group = choice.lstrip("+~").split("=")[0]
        options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        return f"{choice}: choose {either(options)}"
    return "\n".join(text.splitlines()[:3])


def no_name(overrides: Sequence[str]) -> str | None:
    """The choice of a group that is no option's name, such as adapter=null."""
    for override in overrides:
        name, _, value = override.partition("=")
        if (conf_dir() / name).is_dir() and (value in ("", "null") or value[0] in "[{"):
            return override
    return None


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or ())
    if not group or not options:
        return str(error).splitlines()[0]
    there_are = f"There are {', '.join(options)}."
    return f"{group}={option}: no such option{nearest(option, options)}\n{there_are}"


def _unknown_key(key: str, text: str, overrides: Sequence[str], known: Sequence[str]) -> str:
    dotted = full_key(text) or key
    written = (given(dotted, overrides) or dotted).lstrip("+")
    if dotted == "experiment":
        name = (given(dotted, overrides) or "experiment=NAME").replace("=", "/")
        return f"conf file {name}: its first line must be: # @package _global_"
    if key in DERIVED:
        return f"{written}: no longer a key, {DERIVED[key]}"
    if owner := _owner(dotted):
        chosen = re.search(r"not in '(\w+)'", text)
        instead = _keys_of(dotted.split(".")[0], chosen[1]) if chosen else ""
        return f"{written}: this key goes with {owner}{instead}"
    place = _place(text, dotted, overrides)
    return f"{place}{written}: no such key{_advice(dotted, known)}"


def _advice(dotted: str, known: Sequence[str]) -> str:
    """Name the nearest key, first among those that stand where this one was looked for."""
    parent, _, name = dotted.rpartition(".")
    beside = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == parent]
    names = [key for key in beside if not key.startswith("_")]
    if guess := nearest(name, names):
        return guess.replace("mean ", f"mean {parent}.") if parent else guess
    if parent and names:
        return f"; there is {either(names)}"
    ending = [key for key in known if key.endswith(f".{name}")]
    if ending or (guess := nearest(dotted, known)):
        return f"; did you mean {ending[0]}?" if ending else guess
    return (
        f"; see {'--cfg hydra' if dotted.startswith('hydra.') else 'the parameters in README.md'}"
    )


def _owner(dotted: str) -> str:
    """Return the options of a key's group that have this key, such as `model=dropped`."""
    group, _, key = dotted.partition(".")
    options = OPTIONS.get(group, {}).items()
    having = [name for name, settings in options if key in _names(settings)]
    if group == "adapter" and key in fields_of("LoraConfig"):
        having = [name for name, settings in options if is_open(settings)]
    return f"{group}={either(having)}" if having else ""


def _keys_of(group: str, class_name: str) -> str:
    """Say which keys the chosen option has, which an error knows by the name of its class."""
    for name, settings in OPTIONS[group].items():
        if settings.__name__ == class_name and _names(settings):
            return f"; {group}={name} has {', '.join(_names(settings))}"
    return ""


def _names(settings: Any) -> list[str]:
    return [entry.name for entry in fields(schema_of(settings)) if entry.name != "_target_"]


def full_key(text: str) -> str | None:
    """Return the key that an error's text names."""
    match = re.search(r"full_key: (\S+)", text)
    return match[1] if match else None


def dotted_keys(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a config's content, groups included, each from its root."""
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{key}.")


def given(key: str, overrides: Sequence[str]) -> str | None:
    """The last argument that sets a key, or something below it."""
    wanted = key.lstrip("+~")
    named = {o.lstrip("+~").split("=")[0]: o for o in overrides}
    below = (o for name, o in named.items() if name.startswith(f"{wanted}."))
    return named.get(wanted) or next(below, None)


def text_of(error: Exception) -> str:
    """Return an error's text and that of what caused it."""
    return "\n".join(str(e) for e in (error, error.__cause__) if e is not None)
