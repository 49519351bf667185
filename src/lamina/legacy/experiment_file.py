"""From the older form to an experiment file: the same values, with their comments."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lamina.legacy.form import OlderForm
from lamina.legacy.yaml_files import Entry
from lamina.runtime.paths import conf_dir

PLACES = {
    "layer_to_drop": "depth.layer_to_drop",
    "keep_layers": "depth.keep_layers",
    "dataset_path": "data.path",
    "eval_strategy": "trainer.args.eval_strategy",
    "fp16": "trainer.args.fp16",
    "wandb_run_name": "logger.wandb.name",
}
"""Where a value goes that had another name."""

_NO_NAMES = ("null", "true", "false", "nan", "inf")

_LOGGERS = {
    (): "none",
    ("none",): "none",
    ("tensorboard",): "tb",
    ("wandb",): "wandb",
    ("tensorboard", "wandb"): "both",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the experiment, with its comments."""

    text: str
    """Without indentation."""

    above: tuple[str, ...] = ()
    """Comment lines, from `#` on."""

    beside: str = ""
    """A comment, from `#` on."""

    def indented(self, indent: str) -> Iterator[str]:
        """Give its lines."""
        yield from (f"{indent}{comment}" for comment in self.above)
        yield f"{indent}{self.text}   {self.beside}" if self.beside else f"{indent}{self.text}"


def experiment_name(path: Path) -> str:
    """Return the name of a file as that of an experiment, with old_ where it cannot stay.

    It cannot where Hydra would not read it as a name, or has an experiment of this name itself:
    what ships wins over a folder of --config-dir.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)
    readable = re.match(r"[A-Za-z]", name) and name.lower() not in _NO_NAMES
    shipped = (conf_dir() / "experiment" / f"{name}.yaml").is_file()
    return name if readable and not shipped else f"old_{name}"


def experiment(older: OlderForm) -> str:
    """Return the text of the experiment file that composes to the older form's values.

    What the older form leaves out is left out here, too: Lamina's defaults apply. Two values are
    added where these would contradict: bf16 with fp16, and how the best checkpoint is chosen with
    an eval_strategy other than steps.
    """
    names = " ".join(" < ".join(read.path.name for read in older.files).split())
    # Hydra stops reading its own header at the second line.
    lines = ["# @package _global_", f"# From a config of the older form: {names}"]
    lines += [*older.files[0].header, "defaults:"]
    for line in _defaults(older):
        lines += line.indented("  ")
    body = list(_body(_lines(older)))
    return "\n".join([*lines, "", *body] if body else lines) + "\n"


def _defaults(older: OlderForm) -> Iterator[Line]:
    """The groups that the older form chooses; adapter=lora is Lamina's default."""
    values, entries = older.values, older.entries
    yield _choice("model", values["model_type"], entries["model_type"])
    chosen = "lora" if values.get("use_lora", True) else "full"
    yield _choice("adapter", chosen, entries.get("use_lora"))
    if values.get("dataset_path") is not None:
        yield Line(text="- override /data: disk")
    if "report_to" in values:
        logger = _LOGGERS[tuple(sorted(values["report_to"]))]
        yield _choice("logger", logger, entries["report_to"])


def _choice(group: str, option: str, entry: Entry | None) -> Line:
    text = f"- override /{group}: {option}"
    return Line(text=text, above=entry.comments, beside=entry.beside) if entry else Line(text=text)


def _lines(older: OlderForm) -> dict[str, Line]:
    """Every value's line by its dotted place; those of one section stand together."""
    found: dict[str, Line] = {}
    for key, value in older.values.items():
        if key in ("model_type", "use_lora", "report_to") or (value is None and key in PLACES):
            continue
        entry, place = older.entries[key], PLACES.get(key, key)
        text = f"{place.rpartition('.')[2]}: {scalar(value)}"
        if key == "wandb_run_name" and "wandb" not in older.values.get("report_to", ()):
            place, text = key, f"# {key}: {scalar(value)} has no effect without the logger wandb"
        found[place] = Line(text=text, above=entry.comments, beside=entry.beside)
    return found | _added(older.values)


def _added(values: dict[str, Any]) -> dict[str, Line]:
    """What keeps Lamina's defaults from contradicting the older form's values."""
    added: dict[str, Line] = {}
    if values.get("fp16") and "bf16" not in values:
        added["bf16"] = Line(text="bf16: false", beside="# with fp16 there is no bf16")
    if values.get("eval_strategy") == "no":
        beside = "# nothing is evaluated that could be the best"
        line = Line(text="load_best_model_at_end: false", beside=beside)
        added["trainer.args.load_best_model_at_end"] = line
    if values.get("eval_strategy") == "epoch":
        beside = "# the best is chosen where it is evaluated"
        line = Line(text="save_strategy: epoch", beside=beside)
        added["trainer.args.save_strategy"] = line
    return added


def _body(lines: dict[str, Line]) -> Iterator[str]:
    """The lines in their sections; those without a section come first."""
    opened: list[str] = []
    for place in sorted(lines, key=lambda place: place.split(".")[:-1]):
        sections = place.split(".")[:-1]
        for depth in range(len(sections)):
            if opened[: depth + 1] != sections[: depth + 1]:
                yield f"{'  ' * depth}{sections[depth]}:"
        opened = sections
        yield from lines[place].indented("  " * len(sections))


def scalar(value: Any) -> str:
    """Return a value as YAML that Hydra reads as that very value, on one line."""
    if not isinstance(value, str):
        return json.dumps(value)
    # An interpolation is a text like any other in the older form: it is not resolved.
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    if re.fullmatch(r"[A-Za-z./][\w./-]*", text, re.ASCII) and yaml.safe_load(text) == text:
        return text
    return str(
        yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf"))
    ).strip()
