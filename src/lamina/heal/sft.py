"""Supervised fine-tuning with TRL's SFTTrainer."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lamina.data.cache import cache_errors
from lamina.depth.layer_sets import half_open_ranges
from lamina.depth.plan import Plan
from lamina.depth.variants import Variant
from lamina.errors import ConfigError, naming
from lamina.heal.adapters import ALL_LINEAR, Adapter, Partial
from lamina.heal.backends.changes import refuse_changed
from lamina.heal.backends.transformers import Backend, Training
from lamina.heal.kernels import (
    balance_experts,
    missing_requirements,
    refuse_adapted_head,
    scales_logits,
)
from lamina.heal.packing import refuse_leaking_packs
from lamina.limits import AT_LEAST_ONE, FRACTION, NOT_NEGATIVE, Limit, one_of
from lamina.runtime import distributed
from lamina.runtime.sizes import trained_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTConfig

    from lamina.heal.trainer import TokenLossTrainer


FSDP2: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        # A single file, as one process writes it.
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,
    },
}
"""Fields of SFTConfig that shard each decoder layer over the processes."""

NO_COMPILED_SHARDS = (
    "torch_compile=true does not work with parallel=fsdp in this version: leave it out, or set "
    "parallel=ddp"
)

BOTH = "the best checkpoint must be both saved and evaluated"

LOSSES = one_of("nll", "dft", "chunked_nll")

LIMITS: dict[str, Limit] = {
    **dict.fromkeys(("max_grad_norm", "dataloader_num_workers"), NOT_NEGATIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), FRACTION),
    "dataloader_prefetch_factor": AT_LEAST_ONE,
}
"""Limits of fields of SFTConfig that no shared parameter sets."""

REENTRANT = re.compile(r"use_reentrant\W+true", re.IGNORECASE)
"""In a mapping as text."""

SET_BY_LENGTH = ("max_steps", "num_train_epochs", "data_seed")
"""Arguments that a budget or a ladder's round sets."""


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Settings of TRL's SFTTrainer."""

    args: dict[str, Any]
    """Fields of TRL's SFTConfig, except where outputs and reports go."""
    name: ClassVar[str] = "sft"
    trains: ClassVar[bool] = True
    shards: ClassVar[bool] = True
    """Whether several GPUs may share one copy of the model."""
    has_own_loss: ClassVar[bool] = False
    """Whether its loss is none of TRL's."""

    @property
    def own(self) -> dict[str, Any]:
        """What else trained weights depend on, by key."""
        return {}

    def problems(self) -> Iterator[str]:
        """Refuse arguments that contradict each other, or that this machine does not support."""
        for name, limit in LIMITS.items():
            value = self.args.get(name)
            if type(value) in (int, float) and not limit.fits(value):
                yield f"trainer.args.{name}={value}: {limit.advice}"
        for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs"):
            if isinstance(value := self.args.get(name), str) and not value.startswith("{"):
                yield f"trainer.args.{name}={value}: expected a mapping"
        loss = self.args.get("loss_type")
        if loss is not None and not LOSSES.fits(loss):
            yield f"trainer.args.loss_type={loss}: {LOSSES.advice}"
        yield from _best_checkpoint(self.args)
        yield from _precision(self.args)
        yield from _loss(self.args)
        yield from missing_requirements(self.args)

    def conflicts(
        self, model: Variant, adapter: Adapter, parallel: str, processes: int | str, kernels: str
    ) -> Iterator[str]:
        """Refuse adapters, arguments and numbers of processes that do not work together.

        `parallel` is auto, ddp or fsdp; `processes` a number, auto or none; `kernels` none or
        liger.
        """
        tokens = adapter.settings().get("trainable_token_indices")
        if tokens and not self.has_own_loss and self.args.get("loss_type") in (None, "chunked_nll"):
            yield (
                f"adapter.trainable_token_indices={tokens} needs trainer.args.loss_type=nll: TRL's "
                "chunked loss reads the output head, which may be tied to these tokens"
            )
        is_reentrant = REENTRANT.search(str(self.args.get("gradient_checkpointing_kwargs")))
        if is_reentrant and isinstance(adapter, Partial):
            yield (
                f"trainer.args.gradient_checkpointing_kwargs.use_reentrant=true: adapter="
                f"{adapter.name} would train no layer, because what enters them has no gradient: "
                "set it to false"
            )
        if any(pair.count("=") != 1 for pair in (self.args.get("optim_args") or "=").split(",")):
            yield f"trainer.args.optim_args={self.args['optim_args']}: expected KEY=VALUE,KEY=VALUE"
        if parallel != "fsdp":
            return
        if not adapter.trains_all:
            yield (
                f"parallel=fsdp shards trained weights, but adapter={adapter.name} trains few: "
                "set parallel=ddp, or adapter=full"
            )
        if self.args.get("torch_compile"):
            yield NO_COMPILED_SHARDS
        if processes in ("none", 1):
            yield (
                f"parallel=fsdp needs several processes: leave out distributed={processes}, or "
                "parallel"
            )

    def arguments(
        self, output_dir: Path, *, sharded: bool = False, liger: bool = False
    ) -> "SFTConfig":
        """Return these settings as TRL's SFTConfig; `output_dir` is for checkpoint-{step}/.

        `sharded` shards weights, gradients and optimizer state over the processes; `liger` replaces
        the model's own kernels by liger-kernel's. Raises ConfigError if TRL refuses a value, or the
        GPU lacks bfloat16.
        """
        from trl import SFTConfig

        if sharded and self.args.get("torch_compile"):
            raise ConfigError(NO_COMPILED_SHARDS)
        if self.args.get("bf16"):
            _refuse_without_bfloat16()
        own = {
            "disable_tqdm": True,
            "use_liger_kernel": liger,
            "output_dir": str(output_dir),
            "report_to": "none",
            **_device_arguments(),
            **(FSDP2 if sharded else {}),
        }
        if self.args.get("gradient_checkpointing"):
            own["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
        with naming("trainer.args", TypeError, ValueError):
            return SFTConfig(**{**_defaults(SFTConfig), **own, **self.args})

    def taught(self, original: Plan, shared: Sequence[int] | None) -> tuple[int, int] | None:
        """Return how many weights a teacher has beside the model's, and in all; None without.

        `shared` says which of its layers are the model's, too, as does `Round.shared`.
        """
        return None

    def trainer_of(
        self,
        model: "PreTrainedModel",
        original: Plan,
        train: "Dataset",
        shared: Sequence[int] | None,
    ) -> "partial[TokenLossTrainer]":
        """Return the trainer's class, with what it needs to know of a model without an adapter."""
        from lamina.heal.trainer import TokenLossTrainer

        return partial(TokenLossTrainer)

    def build(
        self,
        *,
        arguments: "SFTConfig",
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        train: "Dataset",
        eval: "Dataset",
        backend: Backend,
        training: Training,
        plan: Plan,
        original: Plan,
        shared: Sequence[int] | None,
        callbacks: Sequence["TrainerCallback"],
    ) -> "TokenLossTrainer":
        """Add the adapter to the reduced model and build its trainer from tokenized rows.

        Raises OutputError if the cache of data sets cannot be written, and ConfigError if a library
        refuses or changes a setting or, with packing, documents would see each other.
        """
        balance_experts(model, arguments)
        build = self.trainer_of(model, original, train, shared)
        if arguments.loss_type == "chunked_nll" and scales_logits(model.config):
            arguments.loss_type = "nll"
        expected = self._expected(arguments, backend, training)
        with naming("trainer.args, adapter", ValueError):
            adapted, left_to_trl = backend.add_adapter(model, training)
            with cache_errors():  # TRL caches packs, too
                trainer = build(
                    model=adapted,
                    args=arguments,
                    processing_class=tokenizer,
                    train_dataset=train,
                    eval_dataset=eval,
                    peft_config=left_to_trl,
                    callbacks=list(callbacks),
                )
        refuse_changed("trainer.args.", expected, trainer.args)
        if arguments.use_liger_kernel:
            refuse_adapted_head(trainer.model, "kernels=liger")
        _finish_adapter(trainer.model, training.adapter, plan)
        if arguments.packing:
            refuse_leaking_packs(trainer, train)
        return trainer

    def _expected(
        self, arguments: "SFTConfig", backend: Backend, training: Training
    ) -> dict[str, Any]:
        """Return the arguments that must reach the trainer unchanged."""
        before = {name: getattr(arguments, name) for name in _defaults(type(arguments))}
        decided = {name: before[name] for name in SET_BY_LENGTH}
        return {
            key: value
            for key, value in {**before, **self.args, **decided}.items()
            if backend.preserves(key, training, given=key in self.args)
        }


def _refuse_without_bfloat16() -> None:
    import torch

    # A GPU that emulates bfloat16 is slower than with float32.
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"bf16=true, but {torch.cuda.get_device_name()} does not compute in bfloat16: "
            "set bf16=false"
        )


def _device_arguments() -> dict[str, bool]:
    """Return the fields of SFTConfig that depend on whether there is an accelerator."""
    import torch

    accelerated = torch.accelerator.is_available()
    if not accelerated and distributed.world_size() > 1:
        # Otherwise accelerate 1.15 numbers the CPUs, and torch cannot load onto cpu:1.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    # Without use_cpu transformers refuses bfloat16 on a CPU, and each process trains alone.
    return {"dataloader_pin_memory": accelerated, "use_cpu": not accelerated}


def _best_checkpoint(arguments: Mapping[str, Any]) -> Iterator[str]:
    save, evaluate = (arguments.get(f"{name}_strategy") for name in ("save", "eval"))
    if not arguments.get("load_best_model_at_end"):
        return
    if evaluate == "no":
        yield (
            "trainer.args.eval_strategy=no, but trainer.args.load_best_model_at_end=true picks the "
            "best checkpoint by eval_loss: set it to false, or evaluate"
        )
    elif save not in (evaluate, "best"):
        settings = f"trainer.args.save_strategy={save}, but trainer.args.eval_strategy={evaluate}"
        yield f"{settings}: {BOTH}: set both to the same value"
    elif save == evaluate == "steps":
        saved, each = arguments.get("save_steps"), arguments.get("eval_steps")
        if saved and each and _positive(saved) and _positive(each) and saved % each:
            line = f"save_steps={saved} is not a multiple of eval_steps={each}"
            yield f"{line}, but {BOTH}: use a multiple"


def _precision(arguments: Mapping[str, Any]) -> Iterator[str]:
    # bf16 is a shared parameter, the others are not.
    for half, other in (("fp16", "bf16"), ("fp16_full_eval", "trainer.args.bf16_full_eval")):
        if arguments.get(half) is arguments.get(other.rpartition(".")[2]) is True:
            yield f"trainer.args.{half}=true and {other}=true: set only one of them"


def _loss(arguments: Mapping[str, Any]) -> Iterator[str]:
    smoothing = arguments.get("label_smoothing_factor")
    if _positive(smoothing) and arguments.get("loss_type") != "nll":
        yield (
            f"trainer.args.label_smoothing_factor={smoothing} needs trainer.args.loss_type=nll: "
            "TRL's other losses do not smooth labels"
        )
    if "dataloader_prefetch_factor" in arguments and not arguments.get("dataloader_num_workers"):
        yield (
            f"trainer.args.dataloader_prefetch_factor={arguments['dataloader_prefetch_factor']} "
            "needs trainer.args.dataloader_num_workers of 1 or more"
        )


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _finish_adapter(model: "PreTrainedModel | PeftModel", adapter: Adapter, plan: Plan) -> None:
    """Check the adapter's settings; add what training and rebuilding the reduced model need."""
    if adapter.in_4bit:
        # TRL 1.14 makes an adapter beside 4-bit weights bfloat16; elsewhere it is float32.
        for weights in trained_weights(model):
            weights.data = weights.data.float()
    if not (given := adapter.settings()):
        return
    head = model.get_output_embeddings()
    if hasattr(head, "original_module") and not hasattr(head, "bias"):
        # TRL 1.16 reads the head's bias, which PEFT's wrapper for tied trained tokens hides. A
        # plain assignment would register the bias, and save it, a second time.
        object.__setattr__(head, "bias", head.original_module.bias)
    used = model.peft_config["default"]
    if given["target_modules"] == ALL_LINEAR:
        del given["target_modules"]  # PEFT replaces it by the names it found
        given.pop("exclude_modules", None)  # the backend adds what PEFT cannot adapt
    refuse_changed("adapter.", given, used)
    used.layer_replication = half_open_ranges(plan.kept_layers) if plan.is_reduced else None
    used.revision = plan.source.revision if plan.source else None


def _defaults(settings: type) -> dict[str, Any]:
    """Return the defaults of TRL's own SFTConfig, which Unsloth's subclass overrides."""
    own = next(each for each in settings.__mro__ if each.__module__ == "trl.trainer.sft_config")
    values = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(own)
        if field.init
    }
    return {name: value for name, value in values.items() if value is not MISSING}
