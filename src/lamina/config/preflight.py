"""Checks of a composed config before anything slow: all problems at once, torch not imported."""

import inspect
from collections.abc import Iterator
from functools import reduce
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from lamina.depth.quantities import count, size
from lamina.errors import ConfigError, LaminaError, joined, nearest

ALLOWED_TARGETS = (
    "lamina.",
    "trl.",
    "peft.",
    "transformers.",
    "torch.optim.",
    "torch.utils.tensorboard.",
)
"""Prefixes of what a config may instantiate."""

CHOICES = {
    "dtype": ("auto", "bfloat16", "float32"),
    "resume": ("auto", "never"),
    "export.form": ("auto", "adapter", "merged", "both"),
    "export.dtype": ("auto", "bfloat16", "float32"),
    "data.loss_on": ("auto", "assistant", "completion", "all"),
    "data.on_bad_row": ("error", "skip"),
    "data.format": ("csv", "json", "jsonl", "parquet"),
    "logger.wandb.mode": ("auto", "online", "offline"),
    "adapter.bias": ("none", "all", "lora_only"),
    "selector.token": ("last", "mean"),
    "scan.rows": ("joined", "apart"),
    "scan.stream": ("auto", "true", "false", "True", "False"),
}
"""Keys with a few allowed values; those of an option that was not chosen are absent."""


def preflight(config: DictConfig) -> None:
    """Refuse a config that cannot run, naming every problem it has.

    Args:
        config: The composed config; its interpolations are resolved here.

    Raises:
        ConfigError: Values are missing, unknown, out of range or contradict each other, or a
            `_target_` is not one of ours.
    """
    content = resolved(config)
    if problems := [*_ranges(content), *_contradictions(content)]:
        raise ConfigError(joined(problems))


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return a composed config's content, if it has every value and no unknown key or target.

    Raises:
        ConfigError: It has not.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if problems := [f"{key} is missing: give {key}=VALUE" for key in missing]:
        raise ConfigError(joined(problems))
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)
    if problems := list(_unknown_keys(content, "")):
        raise ConfigError(joined(problems))
    return content


def _unknown_keys(node: dict[str, Any], path: str) -> Iterator[str]:
    """Targets off the allow-list, and keys that their targets do not take (`++` adds such)."""
    target = node.get("_target_")
    if target is not None:
        if not str(target).startswith(ALLOWED_TARGETS):
            allowed = ", ".join(ALLOWED_TARGETS)
            yield f"{path}_target_={target}: not allowed; targets begin with {allowed}"
            return
        if str(target).startswith("lamina."):
            parameters = inspect.signature(get_class(target)).parameters
            for key in node:
                if not key.startswith("_") and key not in parameters:
                    yield f"{path}{key}={node[key]}: no such key{nearest(key, parameters)}"
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _unknown_keys(value, f"{path}{key}.")


def _ranges(content: dict[str, Any]) -> Iterator[str]:
    positive = [
        "max_seq_length",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "eval_steps",
        "gradient_accumulation_steps",
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "learning_rate",
    ]
    for key in positive:
        if not content[key] > 0:
            yield f"{key}={content[key]}: give more than 0"
    for key in ("r", "alpha"):
        if content["lora"][key] < 1:
            yield f"lora.{key}={content['lora'][key]}: give 1 or more"
    for key in ("sets", "candidates"):
        if content["scan"][key] < 1:
            yield f"scan.{key}={content['scan'][key]}: give 1 or more"
    for read, key in ((count, "tokens"), (size, "memory")):
        try:
            read(f"scan.{key}", content["scan"][key])
        except ConfigError as error:
            yield str(error)
    if not 0 <= content["warmup_ratio"] < 1:
        yield f"warmup_ratio={content['warmup_ratio']}: give a share of all steps, 0 to below 1"
    if content["max_steps"] != -1 and content["max_steps"] < 1:
        yield f"max_steps={content['max_steps']}: give 1 or more, or -1 for no limit"
    if content["max_steps"] == -1 and not content["num_train_epochs"] > 0:
        yield f"num_train_epochs={content['num_train_epochs']}: give more than 0"
    yield from _data_ranges(content["data"])
    for dotted, allowed in CHOICES.items():
        value: Any = reduce(lambda node, key: node.get(key, {}), dotted.split("."), content)
        if value != {} and value not in allowed:
            names = list(dict.fromkeys(str(choice).lower() for choice in allowed))
            yield f"{dotted}={value}: give {', '.join(names[:-1])} or {names[-1]}"


def _data_ranges(data: dict[str, Any]) -> Iterator[str]:
    """Shares and counts of the chosen data source; the generator has fewer of them."""
    if "eval_fraction" in data and not 0 < data["eval_fraction"] < 1:
        yield f"data.eval_fraction={data['eval_fraction']}: give a share above 0 and below 1"
    count = data.get("max_train_samples")
    if count is not None and count < 1:
        yield f"data.max_train_samples={count}: give 1 or more, or null for all rows"
    if not 0 <= data["max_dropped"] <= 1:
        yield f"data.max_dropped={data['max_dropped']}: give a share, 0 to 1"


def _contradictions(content: dict[str, Any]) -> Iterator[str]:
    arguments = content["trainer"].get("args", {})
    save, evaluate = arguments.get("save_steps"), arguments.get("eval_steps")
    if arguments.get("load_best_model_at_end") and save and evaluate and save % evaluate:
        yield (
            f"save_steps={save} is not a multiple of eval_steps={evaluate}: the best checkpoint "
            "could not be chosen; make it one"
        )
    if arguments.get("eval_packing") and not arguments.get("packing"):
        yield (
            "trainer.args.eval_packing=True needs packing=true: without it TRL lets packed "
            "documents see each other"
        )
    by_position = content["selector"]["_target_"].endswith(".First")
    if not by_position and not content["model"]["_target_"].endswith(".Pruned"):
        yield "selector chooses the layers of model=pruned: leave it out, or choose model=pruned"
    if content["adapter"]["_target_"].endswith("Full") and content["export"]["form"] in (
        "adapter",
        "both",
    ):
        yield f"export.form={content['export']['form']} needs adapter=lora: adapter=full has none"
    for node in ("model", "backend", "adapter"):
        try:
            check = getattr(get_class(content[node]["_target_"]), "check", None)
            if check is not None:
                check()
        except LaminaError as error:
            yield str(error)
