"""`lamina init NAME OVERRIDES`: write an experiment file of one's own."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.commands.app import errors_in_one_line, parse
from lamina.commands.migrate import GROUP, train_command, write_experiment
from lamina.errors import ConfigError
from lamina.legacy.experiment_file import experiment_name
from lamina.runtime.paths import conf_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig

CALLS = """\
usual calls:
  lamina init mine model=pruned model.keep_layers=24
  lamina init mine experiment=quickstart max_steps=500
  lamina init mine model_name=PATH data=jsonl data.train=FILE adapter=full
  lamina init mine model=layers 'model.drop=[16,17]' seed=1 logger=both
  python -m train --config-dir . experiment=mine learning_rate=1e-4     runs it; overrides win

keys: all those of python -m train --help
"""

LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*?)(?P<comment>#.*)?$")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        "lamina init",
        description="Write overrides to experiment/NAME.yaml in the current folder, with comments, "
        "and print the command that runs it.",
        epilog=CALLS,
    )
    parser.add_argument("name", metavar="NAME", help="letters, digits, - and _")
    parser.add_argument(
        "overrides", metavar="OVERRIDE", nargs="*", help="GROUP=OPTION or KEY=VALUE"
    )
    given = parse(parser)
    with errors_in_one_line():
        if experiment_name(Path(f"{given.name}.yaml")) != given.name:
            raise ConfigError(
                f"{given.name}: use a name of letters, digits, - and _ that starts with a letter "
                "and is not that of a shipped experiment"
            )
        text = experiment(given.overrides)
        written = write_experiment(text, Path(), given.name, "NAME")
    sys.stdout.write(f"{written}\n{train_command(written)}\n")


def experiment(overrides: Sequence[str]) -> str:
    """Return the experiment file of some overrides, with each key's comment.

    Raises ConfigError if they do not compose, or take something away.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf

    from lamina.config.composition import problems
    from lamina.config.schema import register

    if taken := [override for override in overrides if override.startswith("~")]:
        raise ConfigError(f"{taken[0]}: an experiment file only adds and replaces keys")
    setup_globals()
    register()
    if found := problems(overrides, "config"):
        raise ConfigError("\n".join(found))
    defaults: list[str] = []
    body = OmegaConf.create()
    known = dict(_comments(overrides))
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        is_group = (conf_dir() / key).is_dir() and isinstance(value, str)
        option = conf_dir() / key / f"{value}.yaml"
        if key == GROUP:
            defaults.insert(0, f"  - {value}")
        elif is_group or "/" in key:
            about = description(option) if option.is_file() else ""
            defaults.append(f"  - override /{key}: {value}   # {about}".rstrip("# "))
        else:
            OmegaConf.update(body, key, value, force_add=True)
    lines = ["# @package _global_", "# Written by lamina init; docs/parameters.md has every key."]
    lines += ["defaults:", *defaults, ""] if defaults else [""]
    for key, line in _with_keys(_dumped(body)):
        takes_one = key in known and "\n" not in str(OmegaConf.select(body, key))
        lines.append(f"{line}   # {known[key]}" if takes_one else line)
    return "\n".join(lines) + "\n"


def _dumped(body: "DictConfig") -> list[str]:
    """Return the lines of a config in YAML, with long text on one line.

    OmegaConf.to_yaml would break it, and a comment behind a part would end it.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf._utils import get_omega_conf_dumper

    content, dumper = OmegaConf.to_container(body), get_omega_conf_dumper()
    given: dict[str, Any] = {"default_flow_style": False, "allow_unicode": True, "width": inf}
    return yaml.dump(content, Dumper=dumper, sort_keys=False, **given).splitlines() if body else []


SHARED = {
    "adapter": ["low_rank"],
    "data": ["tokenization", "rows"],
    "trainer": ["training_arguments"],
    "evaluation": ["tasks"],
}
"""Files that the options of a group include."""


def _comments(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each key of the chosen options, and of the shared parameters, with its comment."""
    conf = conf_dir()
    for name in ("base", "reduction", "generator"):
        yield from ((key, comment) for key, _, comment in keys(conf / f"{name}.yaml"))
    chosen = [override.partition("=") for override in overrides]
    for group in (each for each in sorted(conf.iterdir()) if each.is_dir()):
        options = [group / f"{value}.yaml" for name, _, value in chosen if name == group.name]
        shared = SHARED.get(group.name, ())
        files = [*(conf / f"{name}.yaml" for name in shared), *(options or group.glob("*.yaml"))]
        for file in filter(Path.is_file, files):
            yield from ((f"{group.name}.{key}", comment) for key, _, comment in keys(file))


def keys(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield each leaf of a file that has a comment: dotted key, default, comment."""
    lines = file.read_text().splitlines()
    for number, (key, line) in enumerate(_with_keys(lines)):
        match, column = LINE.match(line), line.find("#")
        if not key or match is None or column < 0 or not match["value"].strip():
            continue
        comment = [match["comment"]]
        for further in lines[number + 1 :]:
            if further.find("#") != column or further[:column].strip():
                break
            comment.append(further[column:])
        text = " ".join(part.lstrip("# ").strip() for part in comment)
        yield key, match["value"].strip(), text


def _with_keys(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each line of a YAML file with its dotted key; empty for comments, items and others."""
    parents: list[str] = []
    for line in lines:
        match: Any = None if line.lstrip().startswith(("#", "-")) else LINE.match(line)
        if match:
            parents[len(match["indent"]) // 2 :] = [match["key"]]
        yield ".".join(parents) if match else "", line


def description(file: Path) -> str:
    """Return the comment at the head of a file, without its command."""
    head = takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    texts = (line.lstrip("# ") for line in head)
    commands = ("@package", "python -m train", "lamina ")
    return " ".join(text for text in texts if not text.startswith(commands))
