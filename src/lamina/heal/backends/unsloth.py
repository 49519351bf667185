"""Unsloth: faster kernels for the same training. It patches its process, so each run has its own.

Nothing here imports it before `Unsloth.prepare` does: it must come before trl, transformers and
peft, and what it patches stays patched.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lamina.depth.variants import Scratch, Variant
from lamina.errors import LaminaError
from lamina.heal.adapters import Adapter, Lora
from lamina.runtime.device import visible_devices
from lamina.weights.source import resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lamina.heal.backends.training import Training
    from lamina.weights.source import Source

CACHE = "unsloth_compiled_cache"
"""In the run folder: the trainers and modules that Unsloth writes as source code."""

REDUCED = ".reduced"
"""In the run folder while the model is loaded: its kept layers as a model of their own."""

FAMILIES = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")
"""Values of config.json's model_type for which Unsloth 2026.10.9 has kernels of its own."""

LORA: dict[str, Any] = {
    "use_rslora": False,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "layers_pattern": None,
    "modules_to_save": None,
}
"""Arguments of get_peft_model that are given where the config says nothing, with PEFT's values."""

NUMBERS = frozenset(
    "optim optim_args adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_smoothing_factor "
    "neftune_noise_alpha loss_type lr_scheduler_kwargs packing_strategy train_sampling_strategy "
    "dataloader_drop_last average_tokens_across_devices full_determinism fp16".split()
)
"""Fields of SFTConfig that the losses depend on, and that a config may leave to TRL's default."""

CPU_OPTIMIZERS = (
    "adamw_torch", "adamw_apex_fused", "adamw_8bit", "adamw_bnb_8bit", "adafactor_8bit",
    "lion_8bit", "ademamix_8bit", "rmsprop_bnb_8bit", "paged_adamw", "paged_adamw_8bit",
    "paged_adamw_32bit", "paged_lion_8bit", "paged_lion_32bit", "paged_ademamix_8bit",
    "paged_ademamix_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit",
)  # fmt: skip
"""Optimizers that Unsloth 2026.10.9 replaces on a CPU."""

UNDECIDED = ("auto", "none", False)
"""Values of a shared parameter that leave Unsloth its own way."""

LORA_TAKEN = {"r", "lora_alpha", "lora_dropout", "bias", "target_modules", "use_dora", *LORA}
"""LoraConfig's fields that get_peft_model takes and does not change."""


def is_installed() -> bool:
    """Whether Unsloth is there; nothing is imported."""
    found = find_spec("unsloth")
    # A folder of that name, where the command is given, is none.
    return found is not None and found.origin is not None


@dataclass(frozen=True, kw_only=True)
class Unsloth:
    """Unsloth's models, kernels and LoRA."""

    statistics: bool
    """Whether Unsloth may tell its makers about the machine."""

    name: ClassVar[str] = "unsloth"

    decides: ClassVar[tuple[str, ...]] = (
        "attention",
        "kernels",
        "torch_compile",
        "activation_offloading",
    )
    """Shared parameters that Unsloth takes no value of, as it has its own way."""

    own_four_bits: ClassVar[bool] = True

    def problems(self) -> Iterator[str]:
        """Refuse where it is not installed."""
        if not is_installed():
            yield (
                "backend=unsloth, but Unsloth is not installed: make install-unsloth, or choose "
                "backend=transformers"
            )

    @property
    def patches_models(self) -> bool:
        """Whether models of this process are not those that plain transformers would load.

        On a CPU Unsloth changes single objects; on a GPU it changes the models' classes.
        """
        import torch

        return bool(torch.cuda.is_available())

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Keep Unsloth's banner and notices off the console; the run's log has them."""
        with redirect_stdout(_Log()):
            yield

    def prepare(self, folder: Path) -> None:
        """Import Unsloth, before anything that it patches.

        Args:
            folder: The run folder, for its cache.
        """
        os.environ["UNSLOTH_COMPILE_LOCATION"] = str(folder / CACHE)
        # Any value turns them off.
        os.environ.pop("UNSLOTH_DISABLE_STATISTICS", None)
        if not self.statistics:
            os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
        # Where bf16=true is slow on a CPU it would become false without a word.
        os.environ["UNSLOTH_CPU_BF16"] = "1"
        with self.quietly():
            import unsloth  # noqa: F401

    def load_model(
        self,
        source: "Source",
        kept_layers: Sequence[int],
        dtype: "torch.dtype",
        training: "Training",
    ) -> "PreTrainedModel":
        """Load the model with only its kept layers, from a checkpoint that has no others.

        Args:
            source: The larger model's.
            kept_layers: 0-based indices, ascending.
            dtype: Of all floating-point weights.
            training: What the model is for.

        Raises:
            ModelError: The model cannot be reduced exactly.
            OutputError: The reduced model does not fit on the disk.
        """
        from unsloth import FastLanguageModel

        adapter = training.adapter
        is_full = adapter.name == "full"
        with _standing(source, kept_layers, training.folder) as place:
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
                use_exact_model_name=True,  # otherwise a name may stand for a copy of Unsloth's
            )
        # An adapter trained on this model records it as its base.
        model.name_or_path = model.config.name_or_path = source.name
        return model

    def adapted(
        self, model: "PreTrainedModel", training: "Training"
    ) -> "tuple[PreTrainedModel, None]":
        """Give the model its adapter, if there is one; nothing of it is left to TRL."""
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

    def keeps(self, field: str, training: "Training", *, asked: bool) -> bool:
        """Whether a field of SFTConfig has to be in use as it was given.

        On a GPU Unsloth sets some anew that change no number, such as how batches are collected.
        With every weight trained in bfloat16 it turns autocast to bfloat16 off.

        Args:
            field: Its name.
            training: What it is for.
            asked: Whether the config gives it; otherwise it has TRL's default.
        """
        import torch

        if not torch.cuda.is_available():
            return True
        if field == "bf16" and training.adapter.name == "full":
            return False
        return asked or field in NUMBERS


def _checkpointing(training: "Training") -> str | bool:
    return "unsloth" if training.gradient_checkpointing else False


def misfits(
    model: Variant, adapter: Adapter, arguments: Mapping[str, Any], decided: Mapping[str, Any]
) -> Iterator[str]:
    """Name what Unsloth cannot do of a training; nothing is imported.

    Args:
        model: What is trained.
        adapter: Which of its weights.
        arguments: Fields of SFTConfig.
        decided: Values of the shared parameters in `Unsloth.decides`.
    """
    if isinstance(model, Scratch):
        yield "model=scratch has no checkpoint that Unsloth could load: choose backend=transformers"
    if isinstance(adapter, Lora):
        yield from _lora(adapter)
    for key, value in decided.items():
        if value not in UNDECIDED:
            yield (
                f"{key}={value}, but Unsloth has its own way there: leave it out, or choose "
                "backend=transformers"
            )
    has_gpu = bool(visible_devices())
    if has_gpu and not arguments.get("bf16"):
        yield (
            "bf16=false, but on a GPU Unsloth computes in bfloat16 all the same: give bf16=true, "
            "or choose backend=transformers"
        )
    if not has_gpu and arguments.get("fp16"):
        yield (
            "trainer.args.fp16=true, but on a CPU Unsloth computes in bfloat16 instead: give "
            "bf16=true, or choose backend=transformers"
        )
    if not has_gpu and (optimizer := arguments.get("optim")) in CPU_OPTIMIZERS:
        yield (
            f"optim={optimizer}, but on a CPU Unsloth takes adamw_torch_fused instead: give that, "
            "or choose backend=transformers"
        )


def _lora(adapter: Lora) -> Iterator[str]:
    for key, value in adapter.further.items():
        if key not in LORA_TAKEN and value is not None:
            yield (
                f"adapter.{key}={value}: Unsloth's get_peft_model does not take it: leave it out, "
                "or choose backend=transformers"
            )
    modules = adapter.target_modules if isinstance(adapter.target_modules, list) else []
    if embeddings := sorted({"embed_tokens", "lm_head"} & {*modules}):
        yield (
            f"adapter.target_modules with {' and '.join(embeddings)}: Unsloth would train all of "
            "their weights: put them into adapter.modules_to_save, or choose backend=transformers"
        )


def family_misfits(model_name: str) -> Iterator[str]:
    """Say if Unsloth has no kernels for a model; a hub's config.json is fetched."""
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
def _standing(
    source: "Source", kept_layers: Sequence[int], folder: Path
) -> Iterator[dict[str, Any]]:
    """Say where the model stands: at its source, or reduced in a folder that goes again."""
    from lamina.depth.surgery import layer_count
    from lamina.export.reduced import write_reduced

    if len(kept_layers) == layer_count(source.config):
        yield {"model_name": source.name, "revision": source.revision or "main"}
        return
    reduced = folder / REDUCED
    shutil.rmtree(reduced, ignore_errors=True)
    try:
        write_reduced(source, kept_layers, reduced)
        yield {"model_name": str(reduced), "revision": None}
    finally:
        shutil.rmtree(reduced, ignore_errors=True)


class _Log(TextIOBase):
    """Writes what is printed into the run's log."""

    def write(self, text: str) -> int:
        """Log each line."""
        for line in filter(str.strip, text.splitlines()):
            logging.getLogger("unsloth").info("%s", line.rstrip())
        return len(text)
