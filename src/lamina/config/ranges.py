"""Values that must lie in a range or be one of a few."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lamina.config.library_fields import either, fields_of
from lamina.errors import ConfigError
from lamina.units import count, size

CHOICES = {
    "dtype": ("auto", "bfloat16", "float32"),
    "attention": ("auto", "flash", "flex", "sdpa", "eager"),
    "kernels": ("none", "liger"),
    "parallel": ("auto", "ddp", "fsdp"),
    "export.form": ("auto", "adapter", "merged", "both"),
    "export.dtype": ("auto", "bfloat16", "float32"),
    "data.loss_on": ("auto", "assistant", "completion", "all"),
    "data.on_bad_row": ("error", "skip"),
    "data.format": ("csv", "json", "jsonl", "parquet"),
    "trainer.args.loss_type": ("nll", "dft", "chunked_nll"),
    "logger.wandb.mode": ("auto", "online", "offline"),
    "adapter.bias": ("none", "all", "lora_only"),
    "selector.token": ("last", "mean"),
    "scan.rows": ("joined", "apart"),
    "scan.stream": ("auto", "true", "false", "True", "False"),
}
"""Keys with a few allowed values; those of an option that was not chosen are absent."""

ABOVE_ZERO = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "learning_rate",
)

AT_LEAST_ONE = (
    "lora.r",
    "lora.alpha",
    "adapter.r",
    "adapter.alpha",
    "generator.train_rows",
    "generator.eval_rows",
    "scan.sets",
    "scan.candidates",
    "num_threads",
    "callbacks.early_stopping.patience",
    "trainer.args.dataloader_prefetch_factor",
)

NOT_NEGATIVE = (
    "weight_decay",
    "seed",
    "evaluation.num_samples",
    "evaluation.max_new_tokens",
    "trainer.args.max_grad_norm",
    "trainer.args.dataloader_num_workers",
)

SHARES = (
    "adapter.dropout",
    "trainer.args.adam_beta1",
    "trainer.args.adam_beta2",
    "trainer.args.label_smoothing_factor",
)
"""From 0 to below 1."""

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(ABOVE_ZERO, (lambda value: value > 0, "give more than 0")),
    **dict.fromkeys(AT_LEAST_ONE, (lambda value: value >= 1, "give 1 or more")),
    **dict.fromkeys(NOT_NEGATIVE, (lambda value: value >= 0, "give 0 or more")),
    **dict.fromkeys(SHARES, (lambda value: 0 <= value < 1, "give 0 to below 1")),
    "data.max_dropped": (lambda value: 0 <= value <= 1, "give 0 to 1"),
    "data.max_train_samples": (lambda value: value >= 1, "give 1 or more, or null for all rows"),
}
"""Keys of numbers: what fits, and what to give."""

TOKEN_COUNTS = ("max_seq_length", "scan.tokens", "evaluation.max_new_tokens")
"""Keys that take a suffix: 16k, 1.6M."""


def problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Name each value that is out of its range; a key without a value is named elsewhere.

    Args:
        content: The resolved config.
    """
    for key, (fits, advice) in RANGES.items():
        value = at(content, key)
        if type(value) in (int, float) and not fits(value):
            yield f"{key}={value}: {advice}"
    for key in (*TOKEN_COUNTS, "scan.memory"):
        yield from _quantity(content, key, size if key == "scan.memory" else count)
    yield from _index(content)
    for key, allowed in CHOICES.items():
        value = at(content, key)
        if value is not None and value not in allowed:
            yield f"{key}={value}: give {either(list(dict.fromkeys(map(str.lower, allowed))))}"
    yield from _training(content)
    processes = content.get("distributed")
    if processes not in ("auto", "none", None) and not (type(processes) is int and processes >= 1):
        yield (
            f"distributed={processes}: give auto for one process a GPU, none, or a number of 1 or "
            "more"
        )


def read_counts(config: DictConfig) -> None:
    """Make whole numbers of a config's token counts; what cannot be read stays, and is named."""
    for key in TOKEN_COUNTS:
        value = OmegaConf.select(config, key)
        if isinstance(value, str):
            with suppress(ConfigError):
                OmegaConf.update(config, key, count(key, value))


def _quantity(
    content: Mapping[str, Any], key: str, read: Callable[[str, Any], int]
) -> Iterator[str]:
    try:
        if (value := at(content, key)) is not None:
            read(key, value)
    except ConfigError as error:
        yield str(error)


def _index(content: Mapping[str, Any]) -> Iterator[str]:
    """The one index that is no number: auto."""
    keys = ("model.layer_to_drop", "depth.layer_to_drop")
    for key in [key for key in keys if at(content, key) is not None][:1]:
        value = at(content, key)
        if value != "auto" and type(value) is not int:
            yield (
                f"{key}={value}: expected a whole number (0-based), or auto for the layer that "
                "costs least"
            )


def _training(content: Mapping[str, Any]) -> Iterator[str]:
    warmup, steps, epochs = (
        at(content, key) for key in ("warmup_ratio", "max_steps", "num_train_epochs")
    )
    if warmup is not None and not 0 <= warmup < 1:
        yield f"warmup_ratio={warmup}: give a share of all steps, 0 to below 1"
    if steps is not None and steps != -1 and steps < 1:
        yield f"max_steps={steps}: give 1 or more, or -1 for no limit"
    if steps == -1 and epochs is not None and not epochs > 0:
        yield f"num_train_epochs={epochs}: give more than 0"
    fraction = at(content, "data.eval_fraction")
    if fraction is not None and at(content, "data.eval") is None and not 0 < fraction < 1:
        yield f"data.eval_fraction={fraction}: give a share of the training rows, above 0, below 1"
    for key in ("lr_scheduler_type", "optim"):
        value = at(content, key)
        if value is not None and (said := fields_of("SFTConfig")[key].refusal(value)):
            yield f"{key}={value}: {said}"


def at(content: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None where there is none, or none was given."""
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value == "???" else value
