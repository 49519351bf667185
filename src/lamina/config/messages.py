"""What one error of Hydra or OmegaConf means, in one line where it can be."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf import BooleanNode, DictConfig, FloatNode, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from lamina.config.library_fields import either, fields_of
from lamina.config.schema import OPTIONS, is_open, schema_of
from lamina.errors import LaminaError, nearest
from lamina.limits import WHOLE_TOKENS

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
"""What Hydra and OmegaConf raise when a config cannot be composed or read."""

DERIVED = {
    "use_lora": "choose adapter=lora or adapter=full",
    "report_to": "choose logger=tb, wandb, both or none",
}
"""Keys of an older form that a group decides now."""

TOKEN_COUNTS = ("max_seq_length", "evaluation.max_new_tokens")
"""Keys that take plain numbers only: 4k would be 4000 tokens, and people mean 4096."""

EXPECTED = {
    IntegerNode: "a whole number",
    FloatNode: "a number",
    BooleanNode: "true or false",
    StringNode: "text",
}


def said(error: Exception, config: DictConfig | None = None, argument: str | None = None) -> str:
    """Say in at most three lines what one error is about.

    Args:
        error: What was raised.
        config: What was composed before it.
        argument: Of the command line, if the error comes from one.
    """
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not YAML ({error.problem})"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: not of the form NAME=VALUE (quote values with commas or brackets)"
        )
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException) and cause.full_key and config is not None:
        return setting_problem(cause, config, argument)
    lines = str(error).splitlines() + str(cause or "").splitlines()
    return "\n".join(dict.fromkeys(lines[:3])) if not isinstance(error, LaminaError) else str(error)


def setting_problem(
    error: OmegaConfBaseException, config: DictConfig, argument: str | None = None
) -> str:
    """Say what is wrong with a key or its value.

    Args:
        error: What OmegaConf raised.
        config: What was composed before it.
        argument: Of the command line, if it sets the key.
    """
    key, value = str(error.full_key), error.value
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        content = OmegaConf.to_container(config, resolve=False)
        hydra = key.startswith("hydra.")
        known = [each for each in dotted_keys(content) if each.startswith("hydra.") == hydra]
        return _unknown_key(key, argument or key, getattr(error.object_type, "__name__", ""), known)
    if value is None:
        return f"{key}=null: give a value"
    if isinstance(error.child_node, DictConfig):
        return not_a_group(key, value)
    if key in TOKEN_COUNTS:
        return f"{key}={value}: {WHOLE_TOKENS.advice}"
    if expected := EXPECTED.get(type(error.child_node)):
        return f"{key}={value}: expected {expected}"
    return f"{argument or key}: {str(error).splitlines()[0]}"


def not_a_group(key: str, value: Any) -> str:
    """Say that a value stands where keys belong."""
    return f"{key}={value}: a group of keys; give {key}.NAME=VALUE"


def no_option(group: str, option: str, options: Sequence[str]) -> str:
    """Say that a group has no such option, and which it has."""
    there_are = f"There are {', '.join(options)}."
    return f"{group}={option}: no such option{nearest(option, options)}\n{there_are}"


def _unknown_key(dotted: str, written: str, settings: str, known: Sequence[str]) -> str:
    """Say that there is no such key, and what to give instead.

    Args:
        dotted: The key.
        written: The key or the whole argument.
        settings: Name of the settings class that lacks it.
        known: The dotted keys that there are.
    """
    if dotted in DERIVED:
        return f"{written}: no longer a key, {DERIVED[dotted]}"
    group, _, key = dotted.partition(".")
    options = OPTIONS.get(group, {}).items()
    owners = [name for name, option in options if key in _names(option)]
    if group == "adapter" and key in fields_of("LoraConfig"):
        owners = [name for name, option in options if is_open(option)]
    if owners:
        chosen = (pair for pair in options if pair[1].__name__ == settings and _names(pair[1]))
        has = "".join(f"; {group}={name} has {', '.join(_names(each))}" for name, each in chosen)
        return f"{written}: this key goes with {group}={either(owners)}{has}"
    return f"{written}: no such key{_advice(dotted, known)}"


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
    return f"; see {'--cfg hydra' if dotted.startswith('hydra.') else 'docs/parameters.md'}"


def _names(settings: Any) -> list[str]:
    return [entry.name for entry in fields(schema_of(settings)) if entry.name != "_target_"]


def dotted_keys(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a config's content, groups included, each from its root."""
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{key}.")
