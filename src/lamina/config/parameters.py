"""The shared parameters: the keys of the config that are no groups; conf/base.yaml has defaults."""

from dataclasses import dataclass

from lamina.depth.variants import DepthDefaults
from lamina.export.final import Export
from lamina.units import Tokens


@dataclass(frozen=True, kw_only=True)
class LoraParameters:
    """The shared settings of adapters."""

    r: int
    """Rank of the low-rank update."""

    alpha: int
    """Its scale is alpha / r."""


@dataclass(frozen=True, kw_only=True)
class GeneratorParameters:
    """Size of the embedded data."""

    train_rows: int
    """Rows for training; the families take turns."""

    eval_rows: int
    """Held-out rows."""

    seed: int
    """Of the rows."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters that every experiment inherits."""

    model_name: str
    """Hub id, or folder with config.json and safetensors."""

    max_seq_length: Tokens
    """Tokens in one training sequence; with packing, in one pack."""

    learning_rate: float
    """Peak, after warm-up."""

    lr_scheduler_type: str
    """Shape of the learning rate's decay."""

    warmup_ratio: float
    """Share of all optimizer steps, at least 0 and below 1."""

    weight_decay: float
    """AdamW's decoupled decay."""

    packing: bool
    """Whether each sequence is filled with whole documents, kept apart."""

    per_device_train_batch_size: int
    """Sequences on one device in one forward pass."""

    per_device_eval_batch_size: int
    """The same, for evaluation; does not change any loss."""

    gradient_accumulation_steps: int
    """Forward passes in one optimizer step."""

    num_train_epochs: float
    """Passes over the training data."""

    max_steps: int
    """Optimizer steps; -1 for no limit but num_train_epochs."""

    eval_steps: int
    """Optimizer steps between evaluations."""

    save_steps: int
    """Optimizer steps between checkpoints."""

    save_total_limit: int
    """Checkpoints kept; the best one always stays."""

    logging_steps: int
    """Optimizer steps between two log entries."""

    seed: int
    """Of weights, data order and sampling."""

    num_threads: int | None
    """Of torch on a CPU; None leaves torch's choice. Results depend on it in their last bits."""

    bf16: bool
    """Whether training uses bfloat16 autocast."""

    dtype: str
    """Of the weights: bfloat16, float32, or auto for bfloat16 with bf16."""

    gradient_checkpointing: bool
    """Whether activations are recomputed in the backward pass."""

    activation_offloading: bool
    """Whether the activations that are kept for it wait in the machine's memory; needs a GPU."""

    attention: str
    """Who computes attention: flash, flex, sdpa, eager, or auto for the fastest that is there."""

    kernels: str
    """liger for the Triton kernels of liger-kernel, which need a GPU; or none."""

    torch_compile: bool
    """Whether torch.compile compiles the model for the training."""

    optim: str
    """Any optimizer of transformers; 8-bit and paged ones are those of bitsandbytes."""

    lora: LoraParameters
    """Shared rank and alpha of adapters."""

    depth: DepthDefaults
    """What model.keep_layers and model.layer_to_drop default to."""

    generator: GeneratorParameters
    """Size of the embedded data."""

    export: Export
    """What final/ holds."""

    run_dir: str
    """Hydra's run or sweep folder."""

    output_dir: str
    """Checkpoints go to {output_dir}/{model_type}."""

    logging_dir: str
    """Logs go to {logging_dir}/{model_type}."""

    wandb_project: str
    """Weights & Biases project."""

    distributed: int | str
    """Processes of one training, over all nodes; auto for one a device, none for one."""

    parallel: str
    """ddp: each process holds the whole model; fsdp: a share of it; auto for the adapter's way."""

    resume: str
    """auto goes on from the run folder's last whole checkpoint; never refuses to; a path goes on
    from a checkpoint-{step}/, or from the last whole one of a run folder."""

    dry_run: bool
    """Whether only a report is made of what the run would do and take."""

    @property
    def weights_dtype(self) -> str:
        """Torch's name of the type that the weights are loaded in."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if self.bf16 else "float32"
