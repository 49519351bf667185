"""Which backend a run has, and what the chosen one cannot do; torch is not imported."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lamina.config.ranges import at
from lamina.errors import ConfigError, LaminaError, joined
from lamina.heal.adapters import Lora
from lamina.heal.backends.transformers import Auto, Transformers
from lamina.heal.backends.unsloth import FAMILIES, LORA_TAKEN, Unsloth, is_installed
from lamina.runtime.device import visible_devices
from lamina.weights.source import resolve

CPU_OPTIMIZERS = (
    "adamw_torch", "adamw_apex_fused", "adamw_8bit", "adamw_bnb_8bit", "adafactor_8bit",
    "lion_8bit", "ademamix_8bit", "rmsprop_bnb_8bit", "paged_adamw", "paged_adamw_8bit",
    "paged_adamw_32bit", "paged_lion_8bit", "paged_lion_32bit", "paged_ademamix_8bit",
    "paged_ademamix_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit",
)  # fmt: skip
"""Optimizers that Unsloth 2026.10.9 replaces on a CPU."""

WITHOUT_PACKING = (
    "packing=false: on a CPU Unsloth keeps packed documents apart only by not packing them; each "
    "sequence is one document, so a step reads fewer tokens"
)


UNDECIDED = ("auto", "none", False)
"""Values that leave a backend its own way."""


def problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Name what Unsloth cannot do, where it was asked for.

    Args:
        content: The resolved config.
    """
    if at(content, "backend._target_") == _target(Unsloth):
        yield from _unfit(content)
        if is_installed() and not _is_scratch(content) and _is_local(content):
            yield from _family(content)


def settle(config: DictConfig, processes: int) -> list[str]:
    """Put the backend that runs in the place of auto, and its ways of doing things into the config.

    Args:
        config: The composed config, checked before; changed here.
        processes: That share the training.

    Returns:
        What is to be said and recorded about it.

    Raises:
        LaminaError: The model cannot be found, or the backend that was asked for cannot train it.
    """
    notes, content = [], OmegaConf.to_container(config, resolve=True)
    if at(content, "backend._target_") == _target(Auto):
        against = _against(content, processes)
        target = {"_target_": _target(Transformers if against else Unsloth)}
        asked = {} if against else {"statistics": config.backend.statistics}
        config.backend = OmegaConf.create({**target, **asked})
        notes.append(
            f"backend=transformers: {against}" if against else "backend=unsloth: it fits this run"
        )
    if config.backend._target_ != _target(Unsloth):
        return notes
    refused = [*_several(config, processes), *_family(content)]
    if refused:
        raise ConfigError(joined(refused))
    if not visible_devices() and config.trainer.args.get("packing"):
        config.packing = config.trainer.args.packing = False
        if "eval_packing" in config.trainer.args:
            config.trainer.args.eval_packing = False
        notes.append(f"backend=unsloth: {WITHOUT_PACKING}")
    return notes


def needs_own_process(config: DictConfig) -> bool:
    """Whether a run's backend patches its process, so that no other run may share it."""
    return bool(config.backend._target_ == _target(Unsloth))


def _against(content: Mapping[str, Any], processes: int) -> str | None:
    """Return the first reason for which auto does not choose Unsloth."""
    if not is_installed():
        return "Unsloth is not installed"
    if not visible_devices():
        return "there is no GPU for Unsloth"
    if processes > 1:
        return f"Unsloth trains in one process, and there are {processes}"
    reasons = [*_unfit(content), *_family(content)]
    return reasons[0].rpartition(": ")[0] if reasons else None


def _unfit(content: Mapping[str, Any]) -> Iterator[str]:
    """What follows from the config alone."""
    if _is_scratch(content):
        yield "model=scratch has no checkpoint that Unsloth could load: choose backend=transformers"
    yield from _lora(content["adapter"])
    for key in Unsloth.decides:
        if (value := content[key]) not in UNDECIDED:
            yield (
                f"{key}={value}, but Unsloth has its own way there: leave it out, or choose "
                "backend=transformers"
            )
    arguments = content["trainer"]["args"]
    if visible_devices() and not arguments.get("bf16"):
        yield (
            "bf16=false, but on a GPU Unsloth computes in bfloat16 all the same: give bf16=true, "
            "or choose backend=transformers"
        )
    if not visible_devices() and arguments.get("fp16"):
        yield (
            "trainer.args.fp16=true, but on a CPU Unsloth computes in bfloat16 instead: give "
            "bf16=true, or choose backend=transformers"
        )
    if not visible_devices() and (optimizer := arguments.get("optim")) in CPU_OPTIMIZERS:
        yield (
            f"optim={optimizer}, but on a CPU Unsloth takes adamw_torch_fused "
            "instead: give that, or choose backend=transformers"
        )


def _lora(adapter: Mapping[str, Any]) -> Iterator[str]:
    own = {field.name for field in fields(Lora)}
    for key, value in adapter.items():
        if key not in {"_target_", *own, *LORA_TAKEN} and value is not None:
            yield (
                f"adapter.{key}={value}: Unsloth's get_peft_model does not take it: leave it out, "
                "or choose backend=transformers"
            )
    embeddings = {"embed_tokens", "lm_head"} & set(_listed(adapter.get("target_modules")))
    if embeddings:
        yield (
            f"adapter.target_modules with {' and '.join(sorted(embeddings))}: Unsloth would train "
            "all of their weights: put them into adapter.modules_to_save, or choose "
            "backend=transformers"
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _several(config: DictConfig, processes: int) -> Iterator[str]:
    if processes > 1:
        yield (
            f"backend=unsloth trains in one process on one GPU, and distributed="
            f"{config.distributed} makes {processes}: give distributed=none, or choose "
            "backend=transformers"
        )


def _family(content: Mapping[str, Any]) -> Iterator[str]:
    """Whether Unsloth has kernels for the model; a hub's config.json is asked for."""
    try:
        family = resolve(content["model_name"]).config.get("model_type")
    except LaminaError as error:
        yield str(error)
        return
    if family not in FAMILIES:
        yield (
            f"model_name={content['model_name']}: Unsloth has no kernels for {family}, only for "
            f"{', '.join(FAMILIES)}: choose backend=transformers"
        )


def _is_scratch(content: Mapping[str, Any]) -> bool:
    return str(at(content, "model._target_")).endswith(".Scratch")


def _is_local(content: Mapping[str, Any]) -> bool:
    return str(content["model_name"]).startswith((".", "/", "~"))


def _target(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
