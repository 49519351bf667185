"""Describes an error of Hydra, OmegaConf or YAML in Lamina's words, in one line if possible."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, nodes
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from lamina.config.library_fields import fields_of
from lamina.config.parameters import PROCESSES
from lamina.config.quoting import NO_PAIR, as_text, for_shell
from lamina.config.schema import OPTIONS, is_open, own_fields
from lamina.errors import LaminaError, did_you_mean, either, in_yaml, reason_of
from lamina.limits import WHOLE_TOKENS

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
"""What Hydra and OmegaConf raise when a config cannot be composed or read."""

REPLACED_KEYS = {
    "use_lora": "choose adapter=lora or adapter=full",
    "report_to": "choose logger=tb, wandb, both or none",
}
"""Keys of the older form that a group has replaced."""

EXPECTED_AT = {
    # Plain numbers only: 4k would be 4000 tokens, and people mean 4096.
    "max_seq_length": WHOLE_TOKENS.advice,
    "evaluation.max_new_tokens": WHOLE_TOKENS.advice,
    "distributed": PROCESSES.advice,
}
"""What to use at keys whose type says too little."""

MOST_JOBS = 10_000
"""Jobs of the largest sweep."""

EXPECTED = {
    nodes.IntegerNode: "a whole number",
    nodes.FloatNode: "a number",
    nodes.BooleanNode: "true or false",
    nodes.StringNode: "text",
}


def describe(
    error: Exception, config: DictConfig | None = None, argument: str | None = None
) -> str:
    """Describe an error in at most three lines.

    `config` is what was composed before it, `argument` the command-line argument that caused it.
    """
    if isinstance(error, LaminaError):
        return str(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: not YAML ({error.problem})"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {NO_PAIR}"
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException) and cause.full_key and config is not None:
        return setting_problem(cause, config, argument)
    lines = str(error).splitlines() + str(cause or "").splitlines()
    return "\n".join(dict.fromkeys(lines[:3]))


def setting_problem(
    error: OmegaConfBaseException,
    config: DictConfig,
    argument: str | None = None,
    given: object = None,
) -> str:
    """Describe a wrong key or value, the `given` one of a file; the rest is as for `describe`."""
    key, value = str(error.full_key), error.value
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        content = OmegaConf.to_container(config, resolve=False)
        hydra = key.startswith("hydra.")
        known = [each for each in dotted_keys(content) if each.startswith("hydra.") == hydra]
        return _unknown_key(key, argument or key, getattr(error.object_type, "__name__", ""), known)
    node = error.child_node or OmegaConf.select(config, key, throw_on_resolution_failure=False)
    if given is not None:
        value = in_yaml(given)
    elif str(value) == "None":  # or a node without a value; also where a list meets a mapping
        value = (argument or "").partition("=")[2] or "null"
    if isinstance(node, DictConfig):
        return not_a_group(key, value)
    # A list without a value is no node.
    if isinstance(node, ListConfig) or "is not a ListConfig" in str(error):
        return f"{key}={value}: expected a list"
    if key in EXPECTED_AT:
        return f"{key}={value}: {EXPECTED_AT[key]}"
    if value == "null":
        return f"{key}=null: set a value"
    if expected := EXPECTED.get(type(node)):
        line = f"{key}={value}: expected {expected}"
        return f"{line}; quote it: {as_text(argument)}" if argument and expected == "text" else line
    return f"{argument or key}: {reason_of(error)}"


def swept(argument: str, config: DictConfig) -> str:
    """Say that an argument gives several values outside of a sweep, and how to write one value."""
    line = f"{argument}: several values need --multirun"
    key, _, values = argument.lstrip("+").partition("=")
    parent, _, name = key.rpartition(".")
    group = OmegaConf.select(config, parent) if parent else config
    node = group._get_node(name, validate_access=False) if isinstance(group, DictConfig) else None
    if isinstance(node, nodes.StringNode):
        return f"{line}; if it is one text, quote it: {as_text(argument)}"
    if isinstance(node, (nodes.AnyNode, ListConfig)):
        return f"{line}; if it is a list: {for_shell(f'{key}=[{values}]')}"
    return line


def misplaced(given: Override, config: DictConfig) -> str | None:
    """Say that an argument adds a key that exists, or deletes one that does not."""
    if not (given.is_add() or given.is_delete()):
        return None
    key = given.key_or_group
    known = list(dotted_keys(OmegaConf.to_container(config, resolve=False)))
    merges = isinstance(given.value(), dict | list) or OmegaConf.select(config, key) is None
    if given.is_add() and key in known and not merges:
        return f"{given.input_line}: this key exists: leave out the +"
    if given.is_delete() and key not in known:
        return f"{given.input_line}: no such key{_advice(key, known)}"
    return None


def no_value(given: Override) -> str | None:
    """Say why an argument's sweep has no value, if it has none."""
    line = given.input_line
    if given.is_interval_sweep():
        return (
            f"{line}: an interval does not say which of its values to run: list them, separated by "
            "commas, or use range(START,STOP,STEP)"
        )
    if not given.is_sweep_override() or next(given.sweep_string_iterator(), None) is not None:
        return None
    if given.is_range_sweep():
        return f"{line}: an empty range; range(START,STOP,STEP) ends before STOP: use another STOP"
    if options := given.config_loader.get_group_options(given.key_or_group):
        return f"{line}: matches no option\nThe options are {', '.join(options)}."
    return f"{line}: glob chooses options of a group; list the values, separated by commas"


def too_many(given: Sequence[Override]) -> str | None:
    """Say that a command line's sweeps make more than `MOST_JOBS` jobs, which are not listed."""
    jobs = 1
    for swept in given:
        if swept.is_sweep_override():
            jobs *= len([*islice(swept.sweep_string_iterator(), MOST_JOBS + 1)])
        if jobs > MOST_JOBS:
            return f"{swept.input_line}: more than {MOST_JOBS:,} jobs; sweep fewer values"
    return None


def not_a_group(key: str, value: Any) -> str:
    """Say that a key holds a value instead of further keys."""
    return f"{key}={in_yaml(value)}: a group of keys; set {key}.NAME=VALUE"


def no_option(group: str, option: str, options: Sequence[str]) -> str:
    """Say that a group lacks an option, and list those that it has."""
    advice = did_you_mean(option, options)
    return f"{group}={option}: no such option{advice}\nThe options are {', '.join(options)}."


def _unknown_key(dotted: str, written: str, settings: str, known: Sequence[str]) -> str:
    """Say that a dotted key does not exist, and what to use instead.

    `written` is the key or the whole argument, `settings` names the class that lacks the key, and
    `known` are all dotted keys of the config.
    """
    if dotted in REPLACED_KEYS:
        return f"{written}: no longer a key; {REPLACED_KEYS[dotted]}"
    group, _, key = dotted.partition(".")
    options = OPTIONS.get(group, {}).items()
    owners = [name for name, option in options if key in _names(option)]
    if group == "adapter" and key in fields_of("LoraConfig"):
        owners = [name for name, option in options if is_open(option)]
    if owners:
        chosen = (pair for pair in options if pair[1].__name__ == settings and _names(pair[1]))
        has = "".join(f"; {group}={name} has {', '.join(_names(each))}" for name, each in chosen)
        return f"{written}: this key belongs to {group}={either(owners)}{has}"
    return f"{written}: no such key{_advice(dotted, known)}"


def _advice(dotted: str, known: Sequence[str]) -> str:
    """Suggest the most similar key; keys of the same parent come first."""
    parent, _, name = dotted.rpartition(".")
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == parent]
    names = [key for key in siblings if not key.startswith("_")]
    if guess := did_you_mean(name, names):
        return guess.replace("mean ", f"mean {parent}.") if parent else guess
    if parent and names:
        return f"; use {either(names)}"
    known = [key for key in known if "._" not in key and not dotted.startswith(f"{key}.")]
    same_name = [key for key in known if key.endswith(f".{name}")]
    if same_name or (guess := did_you_mean(dotted, known)):
        return f"; did you mean {min(same_name, key=len)}?" if same_name else guess
    return f"; see {'--cfg hydra' if dotted.startswith('hydra.') else 'docs/parameters.md'}"


def _names(settings: Any) -> list[str]:
    return [entry.name for entry in own_fields(settings)]


def dotted_keys(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield every key of a config's content from its root, groups included."""
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{key}.")
