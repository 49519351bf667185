"""The older form of a config: flat keys, `_extends`, and the values that each key takes."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, did_you_mean, either
from lamina.legacy.yaml_files import Entry, OlderFile, read_chain

MODEL_TYPES = ("original", "dropped", "pruned")
REPORTS = ("none", "tensorboard", "wandb", "all")

_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

Kind = Callable[[Entry], Any]
"""Returns an entry's meaning, or raises a ConfigError that says what is expected."""


@dataclass(frozen=True, kw_only=True)
class OlderForm:
    """A file of the older form, resolved with all that it extends."""

    values: dict[str, Any]
    """Of each key given, in the order of the files; those of `lora` are dotted."""
    entries: dict[str, Entry]
    files: tuple[OlderFile, ...]
    """The file itself, then those it extends."""
    dropped: tuple[str, ...]
    """A message for each unknown key."""


def resolve(
    path: Path, *, drop_unknown: bool = False, today: Callable[[str], str | None] = lambda key: None
) -> OlderForm:
    """Read a file and all that it extends; the child wins. One ConfigError names all mistakes.

    `today` says what to write today for a library's field.
    """
    files = read_chain(path)
    merged: dict[str, Entry] = {}
    for older in reversed(files):
        merged |= older.entries
    values, problems = _values(merged)
    problems += _contradictions(path, merged, values)
    unknown = tuple(
        f"{entry.file}: {key}={entry.shown}: no such key{_counterpart(key, today)}"
        for key, entry in merged.items()
        if key not in (*KEYS, "lora")
    )
    if unknown and not drop_unknown:
        problems += [*unknown, "lamina migrate --force leaves out unknown keys"]
    if problems:
        raise ConfigError("\n".join(problems))
    return OlderForm(values=values, entries=merged, files=tuple(files), dropped=unknown)


def _values(merged: dict[str, Entry]) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, entry in merged.items():
        try:
            if kind := KEYS.get(key):
                values[key] = kind(entry)
        except ConfigError as error:
            problems.append(f"{entry.file}: {key}={entry.shown}: {error}")
    lora = merged.get("lora")
    if lora is not None and lora.value != {}:
        problems.append(f"{lora.file}: lora={lora.shown}: expected a mapping with r and alpha")
    return values, problems


def _counterpart(key: str, today: Callable[[str], str | None]) -> str:
    """Say how to write an unknown key; a merely similar name may mean something else."""
    if answer := ANSWERS.get(key):
        return f"; write {answer}"
    if answer := today(key):
        return f"; {answer}"
    return did_you_mean(key, KEYS, cutoff=0.8)


def _contradictions(path: Path, merged: dict[str, Entry], values: dict[str, Any]) -> list[str]:
    problems = []
    if "model_type" not in merged:
        problems.append(f"{path}: model_type is missing: use {either(MODEL_TYPES)}")
    for model_type, key in (("dropped", "layer_to_drop"), ("pruned", "keep_layers")):
        if values.get("model_type") == model_type and values.get(key, key) is None:
            where = merged[key].file
            problems.append(f"{where}: {key}=null: model_type={model_type} needs a whole number")
    if values.get("load_in_4bit") and values.get("use_lora") is False:
        problems.append(f"{path}: load_in_4bit=true and use_lora=false: 4-bit weights need LoRA")
    if None not in (values.get("dataset_path"), values.get("dataset_name")):
        problems.append(f"{path}: dataset_path and dataset_name: set only one of them")
    if values.get("fp16") and values.get("bf16"):
        problems.append(f"{path}: fp16=true and bf16=true: set only one of them")
    return problems


def _text(entry: Entry) -> str:
    if entry.text is None:
        raise ConfigError("expected text" + _no_null(entry))
    # To OmegaConf this text is a missing value; it cannot be escaped.
    if entry.text == "???":
        raise ConfigError("expected a value")
    return entry.text


def _decimal(entry: Entry, expected: str) -> int | float:
    text = (entry.text or "").replace("_", "")
    if not _DECIMAL.fullmatch(text):
        raise ConfigError(f"expected {expected}" + _no_null(entry))
    number = float(text) if re.search("[.eE]", text) else int(text)
    if abs(number) == math.inf:
        raise ConfigError("expected a finite number")
    # 010 is 8 to YAML and ten to people.
    if isinstance(entry.value, int | float) and entry.value != number:
        raise ConfigError(f"YAML reads this as {entry.value}: write it without leading zeros")
    return number


def _number(entry: Entry) -> float:
    return float(str(_decimal(entry, "a number")))


def _whole(entry: Entry) -> int:
    number = _decimal(entry, "a whole number")
    if number != int(number):
        raise ConfigError("expected a whole number")
    return int(number)


def _flag(entry: Entry) -> bool:
    if not isinstance(entry.value, bool):
        raise ConfigError("expected true or false" + _no_null(entry))
    return entry.value


def _reports(entry: Entry) -> tuple[str, ...]:
    given = entry.value if isinstance(entry.value, list) else [entry.text]
    names = tuple(dict.fromkeys(str(name) for name in given))
    if not set(names) <= set(REPORTS) or ("none" in names and len(names) > 1):
        raise ConfigError(f"use {either(REPORTS)}, or a list of them without none")
    return ("tensorboard", "wandb") if "all" in names else names


def _modules(entry: Entry) -> Any:
    if isinstance(entry.value, list) and all(isinstance(name, str) for name in entry.value):
        return [str(name) for name in entry.value]
    return _text(entry)


def _choice(allowed: tuple[str, ...], entry: Entry) -> str:
    # The text as written: YAML reads no as false.
    if entry.text not in allowed:
        raise ConfigError(f"use {either(allowed)}{did_you_mean(entry.text or '', allowed)}")
    return entry.text


def _unset_or(kind: Kind) -> Kind:
    return lambda entry: None if entry.value is None else kind(entry)


def _no_null(entry: Entry) -> str:
    return "; leave the key out for Lamina's default" if entry.value is None else ""


_NAMES: tuple[tuple[Kind, str], ...] = (
    (partial(_choice, MODEL_TYPES), "model_type"),
    (partial(_choice, ("no", "steps", "epoch")), "eval_strategy save_strategy"),
    (_reports, "report_to"),
    (_modules, "lora.target_modules"),
    (_number, "learning_rate warmup_ratio weight_decay num_train_epochs lora.dropout"),
    (_unset_or(_text), "dataset_path dataset_name dataset_config eval_split wandb_run_name"),
    (_unset_or(_whole), "num_threads layer_to_drop keep_layers max_train_samples max_eval_samples"),
    (
        _whole,
        "max_seq_length per_device_train_batch_size per_device_eval_batch_size max_steps "
        "gradient_accumulation_steps eval_steps save_steps save_total_limit logging_steps seed "
        "lora.r lora.alpha",
    ),
    (
        _text,
        "model_name lr_scheduler_type dtype run_dir output_dir logging_dir wandb_project resume "
        "lora.bias optim attention kernels train_split",
    ),
    (
        _flag,
        "use_lora packing bf16 fp16 gradient_checkpointing load_in_4bit torch_compile "
        "activation_offloading",
    ),
)
KEYS = {name: kind for kind, names in _NAMES for name in names.split()}
"""Every key of the older form. One that conf/base.yaml has as well means the same there."""

_OTHER_NAMES = {
    "lora: {r}": "lora_r lora.rank",
    "lora: {alpha}": "lora_alpha lora.lora_alpha",
    "lora: {dropout}": "lora_dropout lora.lora_dropout",
    "lora: {target_modules}": "lora_target_modules target_modules",
    "load_in_4bit": "use_qlora",
    "attention (flash, flex, sdpa, eager)": "attn_implementation",
    "attention: flash": "use_flash_attention use_flash_attention_2",
    "dtype": "torch_dtype",
    "model_name": "model base_model model_name_or_path",
    "max_seq_length": "max_length",
    "learning_rate": "lr",
    "per_device_train_batch_size": "batch_size",
    "num_train_epochs": "epochs num_epochs",
    "warmup_ratio, a share of all steps": "warmup_steps",
    "eval_strategy": "evaluation_strategy",
    "dataset_name of the hub, or dataset_path of save_to_disk": "dataset",
    "train_split": "dataset_split",
    "eval_split": "test_split",
    "wandb_run_name": "run_name",
    "resume": "resume_from_checkpoint",
    "evaluation=tasks evaluation.tasks=[FILE] on the command line": "eval_tasks tasks",
    "evaluation.task_settings.few_shot=NUMBER on the command line": "num_fewshot few_shot",
    "keep_layers, or give model.target_parameters on the command line": "target_parameters",
    "keep_layers, or give model.target_bytes on the command line": "target_bytes",
    "keep_layers, or give ladder.keep_layers on the command line": "ladder keep_layers_schedule "
    "pruning_schedule",
    "max_steps, or give budget.tokens=NUMBER on the command line": "max_tokens train_tokens "
    "token_budget",
    "repair=magnitude or repair=closed_form on the command line": "repair",
    "trainer=none or trainer=distill on the command line": "trainer",
    "trainer=distill on the command line": "distill distillation teacher teacher_model",
    "trainer.cache=auto or PATH with trainer=distill on the command line": "teacher_cache",
    "data.answers=original on the command line": "answers",
    "data=blend data.sources=... on the command line": "blend data_mix datasets sources",
    "adapter=partial, and adapter.head=untied for a tied head, on the command line": "adapter "
    "partial train_head head",
}
ANSWERS = {name: answer for answer, names in _OTHER_NAMES.items() for name in names.split()}
"""What other names for the keys of the older form, and for its values, are written as."""
