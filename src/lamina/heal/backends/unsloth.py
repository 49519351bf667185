"""The Unsloth backend: faster kernels. It patches its process for good, so each run has its own.

Only `Unsloth.prepare` imports it, before trl, transformers and peft.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from lamina.depth.loading import refuse_not_finite
from lamina.depth.plan import Plan
from lamina.depth.variants import Scratch, Variant
from lamina.errors import LaminaError
from lamina.heal.adapters import Adapter, Lora
from lamina.heal.backends.transformers import Backend, Training
from lamina.runtime.device import visible_devices
from lamina.weights.source import resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CACHE = "unsloth_compiled_cache"
"""Folder in the run folder for source code that Unsloth generates."""

REDUCED = ".reduced"
"""Folder in the run folder for the reduced model while it is loaded."""

FAMILIES = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")
"""Values of model_type in config.json that Unsloth 2026.10.9 has kernels for."""

LORA: dict[str, Any] = {
    "use_rslora": False,
    "init_lora_weights": True,
    **dict.fromkeys(("layers_to_transform", "layers_pattern", "modules_to_save")),
}
"""PEFT's defaults of arguments for which get_peft_model has, or may get, other defaults."""

NUMBERS = frozenset(
    "optim optim_args adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor "
    "neftune_noise_alpha loss_type lr_scheduler_kwargs packing_strategy train_sampling_strategy "
    "dataloader_drop_last average_tokens_across_devices full_determinism fp16".split()
)
"""Fields of SFTConfig that change losses and that a config may leave at TRL's default."""

CPU_OPTIMIZERS = (
    "adamw_torch adamw_apex_fused adamw_8bit adamw_bnb_8bit adafactor_8bit lion_8bit ademamix_8bit "
    "rmsprop_bnb_8bit paged_adamw paged_adamw_8bit paged_adamw_32bit paged_lion_8bit "
    "paged_lion_32bit paged_ademamix_8bit paged_ademamix_32bit rmsprop_bnb rmsprop_bnb_32bit"
).split()
"""Optimizers that Unsloth 2026.10.9 replaces on a CPU."""

OTHERWISE = ", or choose backend=transformers"

UNDECIDED = ("auto", "none", False)
"""Values of a shared parameter that leave the choice to Unsloth."""

LORA_ACCEPTED = {"r", "lora_alpha", "lora_dropout", "bias", "target_modules", "use_dora", *LORA}
"""Fields of LoraConfig that get_peft_model accepts and does not change."""


def is_installed() -> bool:
    """Whether Unsloth is installed; it is not imported."""
    found = find_spec("unsloth")
    # A folder named unsloth in the working directory has a spec without an origin.
    return found is not None and found.origin is not None


@dataclass(frozen=True, kw_only=True)
class Unsloth(Backend):
    """Unsloth's models, kernels and LoRA."""

    statistics: bool
    name: ClassVar[str] = "unsloth"
    decides: ClassVar[tuple[str, ...]] = (
        "attention",
        "kernels",
        "torch_compile",
        "activation_offloading",
    )
    has_4bit_kernels: ClassVar[bool] = True
    trains_float32: ClassVar[bool] = False

    def problems(self) -> Iterator[str]:
        """Refuse if Unsloth is not installed."""
        if not is_installed():
            yield (
                "backend=unsloth, but Unsloth is not installed: make install-unsloth, or choose "
                "backend=transformers"
            )

    @property
    @override
    def patches_model_classes(self) -> bool:
        import torch

        # On a GPU it patches model classes; on a CPU, single objects.
        return bool(torch.cuda.is_available())

    @override
    def muted(self) -> AbstractContextManager[Any]:
        return redirect_stdout(_Log())

    @override
    def prepare(self, folder: Path) -> None:
        os.environ["UNSLOTH_COMPILE_LOCATION"] = str(folder / CACHE)
        # Any value, even 0, turns the statistics off.
        os.environ.pop("UNSLOTH_DISABLE_STATISTICS", None)
        if not self.statistics:
            os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
        # Otherwise Unsloth silently turns bf16=true off on CPUs without fast bfloat16.
        os.environ["UNSLOTH_CPU_BF16"] = "1"
        with self.muted():
            import unsloth  # noqa: F401

    @override
    def load_model(self, plan: Plan, dtype: "torch.dtype", training: Training) -> "PreTrainedModel":
        from unsloth import FastLanguageModel

        assert plan.source is not None
        adapter = training.adapter
        is_full = adapter.name == "full"
        with _loadable(plan, training.folder) as place:
            model, _ = FastLanguageModel.from_pretrained(
                **place,
                max_seq_length=training.max_seq_length,
                dtype=dtype,
                load_in_4bit=adapter.in_4bit,
                load_in_8bit=False,
                load_in_16bit=not (is_full or adapter.in_4bit),
                full_finetuning=is_full,
                use_gradient_checkpointing=_checkpointing(training),
                random_state=training.seed,
                trust_remote_code=False,
                fast_inference=False,
                fix_tokenizer=False,
                use_exact_model_name=True,  # otherwise Unsloth may load its own copy
            )
        refuse_not_finite(plan.source.name, model)
        # An adapter records this name as its base.
        model.name_or_path = model.config.name_or_path = plan.source.name
        return model

    @override
    def add_adapter(
        self, model: "PreTrainedModel", training: Training
    ) -> "tuple[PreTrainedModel, None]":
        if training.adapter.name == "full":
            return model, None
        from unsloth import FastLanguageModel

        model = FastLanguageModel.get_peft_model(
            model,
            **{**LORA, **training.adapter.settings()},
            use_gradient_checkpointing=_checkpointing(training),
            random_state=training.seed,
            max_seq_length=training.max_seq_length,
        )
        return model, None

    @override
    def preserves(self, field: str, training: Training, *, given: bool) -> bool:
        import torch

        if not torch.cuda.is_available():
            return True
        # Unsloth turns bfloat16 autocast off if all weights are trained in bfloat16.
        if field == "bf16" and training.adapter.name == "full":
            return False
        # It also changes defaults that affect no number, such as how batches are collated.
        return given or field in NUMBERS


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Unsloth if it supports the run, transformers otherwise; decided before the run starts."""

    statistics: bool
    name: ClassVar[str] = "auto"


def _checkpointing(training: Training) -> str | bool:
    return "unsloth" if training.gradient_checkpointing else False


def unsupported(
    model: Variant, adapter: Adapter, arguments: Mapping[str, Any], decided: Mapping[str, Any]
) -> Iterator[str]:
    """Refuse what Unsloth does not support; it is not imported.

    `arguments` are fields of SFTConfig; `decided` has the shared parameters in `Unsloth.decides`.
    """
    if isinstance(model, Scratch):
        yield "model=scratch has no checkpoint that Unsloth could load: choose backend=transformers"
    if isinstance(adapter, Lora):
        yield from _lora(adapter)
    elif not adapter.trains_all:
        yield (
            f"adapter={adapter.name}: Unsloth trains an adapter or every weight: choose "
            f"adapter=lora or adapter=full{OTHERWISE}"
        )
    for key, value in decided.items():
        if value not in UNDECIDED:
            yield f"{key}={value}, but Unsloth decides that itself: leave it out{OTHERWISE}"
    has_gpu = bool(visible_devices())
    if has_gpu and not arguments.get("bf16"):
        computes = "on a GPU Unsloth computes in bfloat16 anyway"
        yield f"bf16=false, but {computes}: use bf16=true{OTHERWISE}"
    if not has_gpu and arguments.get("fp16"):
        computes = "on a CPU Unsloth computes in bfloat16 instead"
        yield f"trainer.args.fp16=true, but {computes}: use bf16=true{OTHERWISE}"
    if not has_gpu and (optimizer := arguments.get("optim")) in CPU_OPTIMIZERS:
        uses = "on a CPU Unsloth uses adamw_torch_fused instead"
        yield f"optim={optimizer}, but {uses}: use that{OTHERWISE}"


def _lora(adapter: Lora) -> Iterator[str]:
    for key, value in adapter.further.items():
        if key not in LORA_ACCEPTED and value is not None:
            advice = f"Unsloth's get_peft_model does not accept it: leave it out{OTHERWISE}"
            yield f"adapter.{key}={value}: {advice}"
    modules = adapter.target_modules if isinstance(adapter.target_modules, list) else []
    if embeddings := sorted({"embed_tokens", "lm_head"} & {*modules}):
        yield (
            f"adapter.target_modules with {' and '.join(embeddings)}: Unsloth would train all of "
            "their weights: put them into adapter.modules_to_save, or choose backend=transformers"
        )


def unsupported_family(model_name: str) -> Iterator[str]:
    """Refuse a model that Unsloth has no kernels for; config.json is fetched from the hub."""
    try:
        family = resolve(model_name).config.get("model_type")
    except LaminaError as error:
        yield str(error)
        return
    if family not in FAMILIES:
        yield (
            f"model_name={model_name}: Unsloth has no kernels for {family}, only for "
            f"{', '.join(FAMILIES)}: choose backend=transformers"
        )


@contextmanager
def _loadable(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield where to load the model from: its source, or a temporary reduced copy."""
    from lamina.export.reduced import write_cut

    assert plan.source is not None
    if not plan.is_reduced and not plan.source.is_text_part:
        yield {"model_name": plan.source.name, "revision": plan.source.revision or "main"}
        return
    reduced = folder / REDUCED
    shutil.rmtree(reduced, ignore_errors=True)
    try:
        write_cut(plan, reduced, key="hydra.run.dir")
        yield {"model_name": str(reduced), "revision": None}
    finally:
        shutil.rmtree(reduced, ignore_errors=True)


class _Log(TextIOBase):
    """Sends printed lines to the run's log."""

    @override
    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            logging.getLogger("unsloth").info("%s", line.rstrip())
        return len(text)
