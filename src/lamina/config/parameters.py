"""The typed settings of an experiment; conf/base.yaml describes the shared parameters."""

from dataclasses import dataclass
from typing import Annotated

from lamina.data.sources import DataSource
from lamina.depth.selection import Selector
from lamina.depth.variants import DepthDefaults, Variant
from lamina.export.final import Export
from lamina.heal.adapters import Adapter
from lamina.heal.backends.transformers import Backend
from lamina.heal.budget import Budget
from lamina.heal.callbacks.loggers import LoggerSettings
from lamina.heal.callbacks.settings import CallbackSettings
from lamina.heal.ladder import Ladder
from lamina.heal.repair.methods import CLOSED_FORM, MAGNITUDE, NONE
from lamina.heal.sft import SFT
from lamina.limits import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    FOLDER,
    NOT_NEGATIVE,
    WHOLE_TOKENS,
    Limit,
    one_of,
)
from lamina.measure.evaluate import Evaluation
from lamina.scan.passes import ScanSettings

NOT_A_SETTING = {"is_setting": False}
"""Metadata of a field that no config sets."""

WARMUP = Limit(lambda value: 0 <= value < 1, "use a fraction of all steps, 0 to below 1")
MAX_STEPS = Limit(lambda value: value == -1 or value >= 1, "use 1 or more, or -1 for no limit")
SEED = Limit(lambda value: 0 <= value < 2**32, f"use 0 to {2**32 - 1}, as NumPy does")
PROCESSES = Limit(
    lambda value: value in ("auto", "none") or (type(value) is int and value >= 1),
    "use auto for one process per GPU, none, or a number of 1 or more",
)


@dataclass(frozen=True, kw_only=True)
class LoraParameters:
    """`lora`: defaults of each adapter's r and alpha."""

    r: Annotated[int, AT_LEAST_ONE]
    alpha: Annotated[int, AT_LEAST_ONE]


@dataclass(frozen=True, kw_only=True)
class GeneratorParameters:
    """`generator`: size and seed of the embedded data (data=synthetic)."""

    train_rows: Annotated[int, AT_LEAST_ONE]
    eval_rows: Annotated[int, AT_LEAST_ONE]
    seed: int


@dataclass(frozen=True, kw_only=True)
class EvaluationParameters:
    """Every setting of `lamina evaluate`."""

    model_name: str
    """Hub id, or folder of a model or of a run."""
    dtype: Annotated[str, one_of("auto", "bfloat16", "float16", "float32")]
    max_seq_length: Annotated[int, WHOLE_TOKENS]
    num_threads: Annotated[int | None, AT_LEAST_ONE]
    generator: GeneratorParameters
    data: DataSource | None
    """Evaluation rows whose loss is measured; None for none."""
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Every setting of an experiment."""

    model_name: str
    max_seq_length: Annotated[int, WHOLE_TOKENS]
    learning_rate: Annotated[float, ABOVE_ZERO]
    lr_scheduler_type: str
    warmup_ratio: Annotated[float, WARMUP]
    weight_decay: Annotated[float, NOT_NEGATIVE]
    packing: bool
    per_device_train_batch_size: Annotated[int, ABOVE_ZERO]
    per_device_eval_batch_size: Annotated[int, ABOVE_ZERO]
    gradient_accumulation_steps: Annotated[int, ABOVE_ZERO]
    num_train_epochs: float
    max_steps: Annotated[int, MAX_STEPS]
    eval_steps: Annotated[int, ABOVE_ZERO]
    save_steps: Annotated[int, ABOVE_ZERO]
    save_total_limit: Annotated[int, ABOVE_ZERO]
    logging_steps: Annotated[int, ABOVE_ZERO]
    seed: Annotated[int, SEED]
    num_threads: Annotated[int | None, AT_LEAST_ONE]
    bf16: bool
    dtype: Annotated[str, one_of("auto", "bfloat16", "float32")]
    gradient_checkpointing: bool
    activation_offloading: bool
    attention: Annotated[str, one_of("auto", "flash", "flex", "sdpa", "eager")]
    kernels: Annotated[str, one_of("none", "liger")]
    torch_compile: bool
    optim: str
    budget: Budget
    repair: Annotated[str, one_of(NONE, MAGNITUDE, CLOSED_FORM)]
    ladder: Ladder
    lora: LoraParameters
    depth: DepthDefaults
    generator: GeneratorParameters
    export: Export
    run_dir: Annotated[str, FOLDER]
    output_dir: Annotated[str, FOLDER]
    logging_dir: Annotated[str, FOLDER]
    wandb_project: str
    distributed: Annotated[int | str, PROCESSES]
    parallel: Annotated[str, one_of("auto", "ddp", "fsdp")]
    resume: str
    dry_run: bool
    model: Variant
    selector: Selector
    scan: ScanSettings
    adapter: Adapter
    backend: Backend
    data: DataSource
    trainer: SFT
    evaluation: Evaluation
    logger: dict[str, LoggerSettings]
    callbacks: dict[str, CallbackSettings]

    @property
    def weights_dtype(self) -> str:
        """Torch's name of the dtype that weights are loaded in."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if self.bf16 else "float32"

    @property
    def saved_dtype(self) -> str:
        """Torch's name of the dtype of a whole model's weights in final/."""
        return self.weights_dtype if self.export.dtype == "auto" else self.export.dtype
