"""From the older form to an experiment file: the same values, with their comments."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lamina.legacy.form import OlderForm
from lamina.legacy.yaml_files import Entry
from lamina.runtime.paths import conf_dir

PLACES = {
    **{key: f"depth.{key}" for key in ("layer_to_drop", "keep_layers")},
    **{key: f"trainer.args.{key}" for key in ("eval_strategy", "save_strategy", "fp16")},
    **{f"lora.{key}": f"adapter.{key}" for key in ("dropout", "bias", "target_modules")},
    **{key: f"data.{key}" for key in ("max_train_samples", "max_eval_samples")},
    "wandb_run_name": "logger.wandb.name",
    "dataset_path": "data.path",
    "dataset_name": "data.name",
    "dataset_config": "data.config",
    "train_split": "data.train",
    "eval_split": "data.eval",
}
"""Today's places of the keys that were renamed."""

CHOICES = ("model_type", "use_lora", "load_in_4bit", "report_to")
"""Keys that choose an option of a group."""

NULL_MEANS_SOMETHING = ("eval_split", "dataset_config", "max_train_samples", "max_eval_samples")
"""Keys whose null is a value today; that of other renamed keys leaves the default."""

OLDER_RATE = 2.0e-4
"""The older form's learning rate where a file has none, whatever is trained."""

KEPT_RATE = (
    f"learning_rate={OLDER_RATE:g}, the older form's default, since the file sets none; today's "
    "default for adapter=full is 2e-05: set learning_rate to choose"
)

_NO_NAMES = ("null", "true", "false", "nan", "inf")

_LOGGERS = {
    (): "none",
    ("none",): "none",
    ("tensorboard",): "tb",
    ("wandb",): "wandb",
    ("tensorboard", "wandb"): "both",
}


@dataclass(frozen=True)
class Line:
    """A line of the experiment, without indentation, and its comments."""

    text: str
    above: Sequence[str] = ()
    beside: str = ""

    def indented(self, indent: str) -> Iterator[str]:
        """Yield the comments and the line."""
        yield from (f"{indent}{comment}" for comment in self.above)
        yield f"{indent}{self.text}   {self.beside}" if self.beside else f"{indent}{self.text}"


def experiment_name(path: Path) -> str:
    """Return the name of a file's experiment: the file's own, or with old_ in front.

    Hydra does not read every name, and prefers a shipped experiment to one of --config-dir.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", path.stem)
    readable = re.match(r"[A-Za-z]", name) and name.lower() not in _NO_NAMES
    shipped = (conf_dir() / "experiment" / f"{name}.yaml").is_file()
    return name if readable and not shipped else f"old_{name}"


def experiment(older: OlderForm) -> str:
    """Return the text of the experiment file that composes to the older form's values.

    Keys that the older form leaves out have Lamina's defaults, except where these contradict it:
    bf16 with fp16, and the choice of the best checkpoint with an eval_strategy other than steps.
    """
    names = " ".join(" < ".join(read.path.name for read in older.files).split())
    # Hydra stops reading its own header at the second line.
    lines = ["# @package _global_", f"# From a config of the older form: {names}"]
    lines += [*older.files[0].header, "defaults:"]
    for line in _defaults(older):
        lines += line.indented("  ")
    if body := list(_body(_values(older))):
        lines += ["", *body]
    return "\n".join([*lines, *older.files[0].footer]) + "\n"


def _defaults(older: OlderForm) -> Iterator[Line]:
    values, entries = older.values, older.entries
    yield _line(f"- override /model: {values['model_type']}", entries["model_type"])
    if values["model_type"] == "pruned":  # it had no other choice of layers
        yield Line("- override /selector: first")
    in_4bit = "load_in_4bit" if values.get("load_in_4bit") else "use_lora"
    adapter = (
        "qlora"
        if values.get("load_in_4bit")
        else "lora"
        if values.get("use_lora", True)
        else "full"
    )
    yield _line(f"- override /adapter: {adapter}", entries.get(in_4bit))
    if values.get("dataset_path") is not None:
        yield Line("- override /data: disk")
    if "report_to" in values:
        logger = _LOGGERS[tuple(sorted(values["report_to"]))]
        yield _line(f"- override /logger: {logger}", entries["report_to"])


def _line(text: str, entry: Entry | None) -> Line:
    return Line(text, entry.above, entry.beside) if entry else Line(text)


def _values(older: OlderForm) -> dict[str, Line]:
    """Return each value's line by its dotted place."""
    values, lines = older.values, dict[str, Line]()
    for key, value in values.items():
        unset = value is None and key in PLACES and key not in NULL_MEANS_SOMETHING
        if key in CHOICES or unset:
            continue
        place = PLACES.get(key, key)
        text = f"{place.rpartition('.')[2]}: {scalar(value)}"
        if key == "wandb_run_name" and "wandb" not in values.get("report_to", ()):
            place, text = key, f"# {key}: {scalar(value)} has no effect without the logger wandb"
        if PLACES.get(key, "").startswith("adapter.") and not values.get("use_lora", True):
            place = key.rpartition(".")[2]
            text = f"# {key}: {scalar(value)} has no effect without LoRA"
        lines[place] = _line(text, older.entries[key])
    if values.get("fp16") and "bf16" not in values:
        lines["bf16"] = Line("bf16: false", beside="# contradicts fp16")
    if keeps_older_rate(older):
        rate = Line(f"learning_rate: {OLDER_RATE}", beside="# the older form's; today's is 2e-5")
        lines["learning_rate"] = rate
    evaluated = values.get("eval_strategy", "steps")
    beside = "# the best checkpoint must be one that is evaluated"
    if evaluated == "epoch" and "save_strategy" not in values:
        lines["trainer.args.save_strategy"] = Line("save_strategy: epoch", beside=beside)
    elif evaluated == "no" or values.get("save_strategy", "steps") != evaluated:
        best = Line("load_best_model_at_end: false", beside=beside)
        lines["trainer.args.load_best_model_at_end"] = best
    return lines


def keeps_older_rate(older: OlderForm) -> bool:
    """Whether all weights are trained at a rate that the file leaves to the older form."""
    return not older.values.get("use_lora", True) and "learning_rate" not in older.values


def _body(lines: dict[str, Line]) -> Iterator[str]:
    """Yield the lines in their sections; those without a section come first."""
    opened: list[str] = []
    for place in sorted(lines, key=lambda place: place.split(".")[:-1]):
        sections = place.split(".")[:-1]
        for depth in range(len(sections)):
            if opened[: depth + 1] != sections[: depth + 1]:
                yield f"{'  ' * depth}{sections[depth]}:"
        opened = sections
        yield from lines[place].indented("  " * len(sections))


def scalar(value: Any) -> str:
    """Return a value as one line of YAML that OmegaConf reads as that very value."""
    if not isinstance(value, str):
        return json.dumps(value)
    # In the older form an interpolation is plain text.
    text = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    if re.fullmatch(r"[A-Za-z./][\w./-]*", text, re.ASCII) and yaml.safe_load(text) == text:
        return text
    return str(
        yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf"))
    ).strip()
