"""The run object: a composed experiment, and what it is made of."""

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.config.parameters import Parameters
from lamina.data.byte_tokenizer import build_tokenizer
from lamina.data.feed import Feed, feed
from lamina.data.sources import DataSource
from lamina.depth import loading
from lamina.depth.plan import Plan, make_plan
from lamina.depth.reduction import reduction
from lamina.depth.variants import Scratch
from lamina.heal import kernels
from lamina.heal.backends.training import Training
from lamina.heal.memory import MemoryEstimate, advice, loading_advice
from lamina.heal.resume import FREE_IN_RESUMING
from lamina.runtime import distributed
from lamina.runtime.memory import memory_errors
from lamina.scan.cached import CachedScores
from lamina.weights.source import Source

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

    from lamina.heal.trainer import TokenLossTrainer


@dataclass(frozen=True, kw_only=True)
class Experiment(Parameters):
    """A composed experiment: what to keep, how to heal it, what to measure, where to write."""

    @cached_property
    def plan(self) -> Plan:
        """Which layers stay: from config.json alone, unless the variant asks for scores."""
        return make_plan(self.model, self.model_name, lambda source: self.scores(source, self.data))

    def scores(self, source: Source, data: DataSource) -> CachedScores:
        """Return the scores of a model's layers on a data set; none is computed yet."""
        return CachedScores(
            source=source,
            data=data,
            settings=self.scan,
            max_seq_length=self.max_seq_length,
            seed=self.seed,
            dtype=lambda: self.torch_dtype,
        )

    @property
    def folder(self) -> Path:
        """Folder of checkpoint-{step}/ and final/."""
        return Path(self.output_dir).expanduser().absolute() / self.plan.model_type

    @property
    def torch_dtype(self) -> "torch.dtype":
        """Type in which the weights are loaded."""
        return loading.torch_dtype(self.weights_dtype, automatic="float32")

    @property
    def training(self) -> Training:
        """What the backend has to know of the training."""
        return Training(
            adapter=self.adapter,
            max_seq_length=self.max_seq_length,
            gradient_checkpointing=bool(self.trainer.args.get("gradient_checkpointing")),
            seed=self.seed,
            folder=Path(self.run_dir).absolute(),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What the trained weights depend on besides data and layers, by its key in the config."""
        kept = {k: v for k, v in self.trainer.args.items() if k not in FREE_IN_RESUMING}
        return {
            "dtype": self.dtype,
            "attention": self.attention,
            "kernels": self.kernels,
            "distributed": distributed.count(),
            "backend": self.backend.name,
            **{f"adapter.{key}": value for key, value in asdict(self.adapter).items()},
            **{f"trainer.args.{key}": value for key, value in kept.items()},
        }

    @property
    def sharded(self) -> bool:
        """Whether weights, gradients and optimizer are spread over the processes."""
        import torch

        if distributed.count() == 1 or self.parallel == "ddp":
            return False
        return self.parallel == "fsdp" or (
            self.adapter.name == "full" and torch.cuda.is_available()
        )

    @property
    def liger(self) -> bool:
        """Whether liger-kernel's kernels are used."""
        return self.kernels == "liger"

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the model's tokenizer, or build the one of a model that starts from scratch."""
        source = self.plan.source
        return loading.load_tokenizer(source) if source else build_tokenizer()

    def load_feed(self, tokenizer: "PreTrainedTokenizerBase") -> Feed:
        """Load and tokenize the data.

        Raises:
            DataError: There is none, or it has a row that cannot be used.
            ConfigError: data.loss_on does not go with the rows or the chat template.
        """
        return feed(
            self.data,
            tokenizer,
            max_seq_length=self.max_seq_length,
            num_prompts=self.evaluation.num_samples,
        )

    def load_model(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
        """Build the model that is to be healed, with nothing but its kept layers read."""
        if self.plan.source is None:
            return loading.new_model(self._architecture, tokenizer, dtype=self.torch_dtype)
        source, kept = self.plan.source, self.plan.kept_layers
        return self.backend.load_model(source, kept, self.torch_dtype, self.training)

    def advising(self, trainer: "TokenLossTrainer | None" = None) -> AbstractContextManager[None]:
        """Say which settings would need less where memory does not suffice; see `heal.memory`.

        Args:
            trainer: Of a training; without one it is a model that does not fit.
        """
        if trainer is not None:
            return memory_errors("the training", lambda: advice(self._memory(trainer.model)))
        if self.plan.source is None:
            return memory_errors("the model", lambda: "give a smaller model.architecture")
        return memory_errors("the model", lambda: loading_advice(self.planned_memory))

    def _memory(self, model: "PreTrainedModel") -> MemoryEstimate:
        """Estimate the memory that training a model takes on one device."""
        given = {"dtype": self.torch_dtype, "liger": self.liger, "sharded": self.sharded}
        return MemoryEstimate.of(model, self.trainer.args, self.adapter, **given)

    @property
    def planned_memory(self) -> MemoryEstimate:
        """The same, from the model's config alone."""
        assert self.plan.source is not None
        return self._memory(reduction(self.plan.source, self.plan.kept_layers).blueprint)

    def load_unquantized(self) -> "PreTrainedModel":
        """Load the reduced model in the weights' own type, which adapter=qlora trains without."""
        assert self.plan.source is not None
        return loading.load_model(self.plan.source, self.plan.kept_layers, dtype=self.torch_dtype)

    def refuse_misfits(self) -> None:
        """Refuse what PEFT or this model's family does not take, before a weight is read.

        Raises:
            ConfigError: PEFT refuses the adapter, or the family has no such attention or kernels.
        """
        self.adapter.peft_config()
        if self.attention == "auto" and self.kernels == "none":
            return
        source = self.plan.source
        family = loading.model_class(source.config if source else self._architecture)
        kernels.attention_kernel(self.attention, family, self.weights_dtype)
        kernels.refuse_family(self.kernels, family.config_class.model_type)

    @property
    def _architecture(self) -> dict[str, Any]:
        assert isinstance(self.model, Scratch)
        return self.model.architecture

    def build_trainer(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Feed,
        arguments: "SFTConfig",
        watching: list[Any],
    ) -> "TokenLossTrainer":
        """Give the model its adapter and build its trainer.

        Args:
            model: The reduced model.
            tokenizer: Its tokenizer.
            rows: The data.
            arguments: What `SFT.arguments` returned.
            watching: Loggers and callbacks.

        Raises:
            ConfigError: With packing, this model would let documents see each other.
        """
        if "attention" not in self.backend.decides:
            kernels.use_attention(self.attention, model, self.weights_dtype)
        return self.trainer.build(
            arguments=arguments,
            model=model,
            tokenizer=tokenizer,
            train=rows.train.rows,
            eval=rows.eval.rows,
            backend=self.backend,
            training=self.training,
            plan=self.plan,
            callbacks=watching,
        )
