"""An experiment: the composed settings as one typed object, and what follows from them."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.config.parameters import NOT_A_SETTING, Parameters
from lamina.data.answers.answered import Original
from lamina.data.feed import Feed
from lamina.data.sources import DataSource
from lamina.depth import loading
from lamina.depth.plan import Plan, make_plan
from lamina.depth.reduction import causal_class, config_class, reduction
from lamina.depth.variants import Scratch
from lamina.export.final import Form
from lamina.heal import kernels
from lamina.heal.adapters import Full, Lora, adapted
from lamina.heal.backends.transformers import Training
from lamina.heal.distillation.settings import Distill
from lamina.heal.ladder import Round
from lamina.heal.libraries import prepared
from lamina.heal.memory import MemoryEstimate, advice, loading_advice
from lamina.heal.packing import describe_batch
from lamina.heal.repair.methods import NONE, refuse_unrepairable
from lamina.heal.repair.repairing import refuse_beyond_memory, repaired
from lamina.heal.resume import MAY_CHANGE_ON_RESUME
from lamina.heal.untrained import Untrained
from lamina.measure.protocol import ModelRef, Protocol
from lamina.runtime import distributed
from lamina.runtime.console import stage
from lamina.runtime.device import memory_errors
from lamina.runtime.files import refuse_unwritable
from lamina.scan.cached import CachedScores
from lamina.weights.source import Source

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

    from lamina.heal.trainer import TokenLossTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Experiment(Parameters):
    """What to keep of which model, how to heal it, what to measure and where to write."""

    round: Round = field(default=Round(), metadata=NOT_A_SETTING)
    """Which of a ladder's rounds it is."""

    @cached_property
    def plan(self) -> Plan:
        """Which layers of the original stay; config.json says, unless the variant needs scores."""
        return self.round.of_original(self.round_plan)

    @cached_property
    def round_plan(self) -> Plan:
        """Which layers stay of the model to load: the original, or what the round before left."""
        return make_plan(
            self.round.variant(self.model),
            self.round.base or self.model_name,
            lambda source: self.scores(source, self.data),
            self.round.protect(self.depth.protect),
            self.saved_dtype,
        )

    def scores(self, source: Source, data: DataSource) -> CachedScores:
        """Return the scores of a model's layers on a data set; nothing is computed yet."""
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
    def adapter_name(self) -> str | None:
        """The adapter's name; None if nothing is trained."""
        return self.adapter.name if self.trainer.trains else None

    @property
    def torch_dtype(self) -> "torch.dtype":
        """Type of the loaded weights."""
        return loading.torch_dtype(self.weights_dtype, automatic="float32")

    @property
    def export_dtype(self) -> "torch.dtype":
        """Type of a whole model's weights in final/."""
        return loading.torch_dtype(self.saved_dtype, automatic=self.saved_dtype)

    @property
    def architecture(self) -> dict[str, Any]:
        """Config of a model with random weights."""
        assert isinstance(self.model, Scratch)
        return self.model.architecture

    @property
    def in_float32(self) -> bool:
        """Whether the model's own weights are trained, and dtype leaves their type open."""
        is_open = self.dtype == "auto" and self.backend.trains_float32
        return isinstance(self.adapter, Full) and is_open

    @property
    def training(self) -> Training:
        """What the backend needs to know about the training."""
        return Training(
            adapter=self.adapter,
            max_seq_length=self.max_seq_length,
            gradient_checkpointing=bool(self.trainer.args.get("gradient_checkpointing")),
            seed=self.seed,
            # Sharded weights become float32 piece by piece: FSDP2 sees to it.
            in_float32=self.in_float32 and not self.sharded,
            folder=Path(self.run_dir).absolute(),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What result.json records about the model; a resumed run must not change it."""
        kept_layers, model_type = list(self.plan.kept_layers), self.plan.model_type
        return {"model_type": model_type, "adapter": self.adapter_name, "kept_layers": kept_layers}

    @property
    def settings(self) -> dict[str, Any]:
        """What else trained weights depend on, by config key; a resumed run must not change it."""
        always = {"dtype": self.dtype, "trainer": self.trainer.name, "repair": self.repair}
        if self.repair != NONE:
            always |= {f"scan.{key}": getattr(self.scan, key) for key in ("tokens", "sets", "rows")}
        if not self.trainer.trains:
            return always
        kept = {k: v for k, v in self.trainer.args.items() if k not in MAY_CHANGE_ON_RESUME}
        adapter = {k: v for k, v in asdict(self.adapter).items() if k != "learning_rate"}
        return {
            **always,
            "attention": self.attention,
            "kernels": self.kernels,
            "distributed": distributed.world_size(),
            "backend": self.backend.name,
            **self.ladder.settings(self.trainer.args, self.budget),
            **{f"adapter.{key}": value for key, value in adapter.items()},
            **{f"trainer.{key}": value for key, value in self.trainer.own.items()},
            **{f"trainer.args.{key}": value for key, value in kept.items()},
        }

    @property
    def sharded(self) -> bool:
        """Whether weights, gradients and optimizer states are sharded over the processes."""
        import torch

        alone = distributed.world_size() == 1
        if alone or self.parallel == "ddp" or not self.trainer.shards:
            return False
        return self.parallel == "fsdp" or (self.adapter.trains_all and torch.cuda.is_available())

    def arguments(self, folder: Path) -> "SFTConfig":
        """Return TRL's arguments for training with checkpoints in `folder`.

        Raises ConfigError if TRL refuses one, or the model lacks the attention, the kernels or the
        positions.
        """
        liger = self.kernels == "liger"
        arguments = self.trainer.arguments(folder, sharded=self.sharded, liger=liger)
        if distributed.world_size() > 1:
            logger.info("%s", describe_batch(arguments, distributed.world_size()))
        self.adapter.peft_config()
        if self.plan.source is not None:
            loading.refuse_long_sequences(self.plan.source, self.max_seq_length)
        if self.attention != "auto" or self.kernels != "none":
            source = self.plan.source
            content = source.config if source else self.architecture
            family = causal_class(config_class("model_type", content))
            kernels.attention_kernel(self.attention, family, self.weights_dtype)
            kernels.refuse_unsupported_family(self.kernels, family.config_class.model_type)
        return arguments

    def refuse_unwritable(self) -> None:
        """Refuse folders that cannot be written, before anything slow."""
        refuse_unwritable(Path(self.output_dir), "output_dir")
        if self.logger.get("tensorboard"):
            refuse_unwritable(Path(self.logging_dir), "logging_dir")
        if isinstance(self.trainer, Distill):
            self.trainer.refuse_unwritable()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Seed the generators, silence the libraries, advise if loading runs out of memory."""
        with prepared(self.seed, self.num_threads), self.memory_advice():
            yield

    def memory_advice(
        self, trainer: "TokenLossTrainer | Untrained | None" = None
    ) -> AbstractContextManager[None]:
        """Advise on settings if memory runs out: in training or, without a trainer, in loading."""
        if trainer is not None and self.trainer.trains:
            return memory_errors("the training", lambda: advice(self._memory(trainer.model)))
        if self.plan.source is None:
            return memory_errors("the model", lambda: "use a smaller model.architecture")
        return memory_errors("the model", lambda: loading_advice(self.planned_memory))

    def _memory(self, model: "PreTrainedModel") -> MemoryEstimate:
        """Estimate the memory of training a model on one device."""
        dtype, liger = self.torch_dtype, self.kernels == "liger"
        given = {"dtype": dtype, "liger": liger, "sharded": self.sharded}
        given["in_float32"] = self.in_float32
        shared = self.round.shared(self.plan, repaired=self.repair != NONE)
        taught = self.trainer.taught(self.plan, shared)
        return MemoryEstimate.of(model, self.trainer.args, self.adapter, taught=taught, **given)

    @property
    def planned_memory(self) -> MemoryEstimate:
        """The estimated memory of the training, from the model's config alone."""
        assert self.plan.source is not None
        return self._memory(reduction(self.plan.source, self.plan.kept_layers).blueprint)

    @cached_property
    def form(self) -> Form:
        """What final/ holds; raises ConfigError if that would not be exact."""
        has_adapter = isinstance(self.adapter, Lora) and self.trainer.trains
        is_loadable = self.adapter.is_loadable and self.repair == NONE
        export = replace(self.export, form="merged") if self.ladder.keep_layers else self.export
        return export.form_of(self.plan, has_adapter=has_adapter, is_loadable=is_loadable)

    def refuse_unfit_adapter(self, blueprint: "PreTrainedModel") -> None:
        """Refuse trained tokens that the model lacks, and an adapter of a head that no loss reads.

        The blueprint gets the adapter.
        """
        reader = f"trainer={self.trainer.name}" if self.trainer.has_own_loss else ""
        reader = "kernels=liger" if self.kernels == "liger" else reader
        tokens = self.adapter.settings().get("trainable_token_indices")
        if self.trainer.trains and (tokens or reader):
            model = adapted(blueprint, self.adapter)
            if reader:
                kernels.refuse_adapted_head(model, reader)

    def refuse_unrepairable(self, blueprint: "PreTrainedModel") -> None:
        """Refuse a reduced model that cannot be repaired, or not within scan.memory."""
        plan = self.plan
        if self.repair != NONE:
            assert plan.source is not None
            refuse_unrepairable(self.repair, blueprint, plan.kept_layers, plan.num_layers)
            scores = self.scores(plan.source, self.data)
            refuse_beyond_memory(self.repair, scores, blueprint.config)

    def repaired(self, model: "PreTrainedModel") -> dict[str, Any] | None:
        """Repair the reduced model if asked to; return what result.json says of it."""
        plan = self.plan
        if self.repair == NONE:
            return None
        assert plan.source is not None
        return repaired(self.repair, model, self.scores(plan.source, self.data), plan.kept_layers)

    def load_unquantized(self) -> "PreTrainedModel":
        """Load the reduced model without quantization, to merge a qlora adapter into it."""
        plan = self.round_plan
        assert plan.source is not None
        return loading.load_model(plan.source, plan.kept_layers, dtype=self.torch_dtype)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every setting, by key."""
        given = asdict(replace(self, round=Round()))
        del given["round"]
        return given

    @stage("preparing the training")
    def build_trainer(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Feed,
        arguments: "SFTConfig",
        callbacks: Sequence[Any],
    ) -> "TokenLossTrainer | Untrained":
        """Set the model's attention, add its adapter and build its trainer."""
        if not self.trainer.trains:
            return Untrained(
                model=model,
                processing_class=tokenizer,
                train_dataset=rows.train.rows,
                eval_dataset=rows.eval.rows,
                max_tokens=self.max_seq_length,
            )
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
            plan=self.round_plan,
            original=self.plan,
            shared=self.round.shared(self.plan, repaired=self.repair != NONE),
            callbacks=callbacks,
        )

    def protocol(self, rows: Feed) -> Protocol:
        """Return how each model of the run is measured."""
        return Protocol(
            rows=rows.eval_rows(),
            prompts=rows.prompts,
            max_tokens=self.max_seq_length,
            max_new_tokens=self.evaluation.max_new_tokens,
            isolated=self.backend.patches_model_classes,
            wanted=self.evaluation,
            original=self.untouched if self.plan.source else None,
        )

    @property
    def untouched(self) -> ModelRef:
        """The model that layers are removed from, with all of them."""
        return self._ref(self.plan.source, range(self.plan.num_layers))

    @property
    def answering(self) -> Original | None:
        """The model that answers the training prompts; None if the rows have the answers."""
        if self.data.answers == "given":
            return None
        return Original(ref=self.untouched, isolated=self.backend.patches_model_classes)

    @property
    def reduced(self) -> ModelRef | None:
        """The reduced model to load and measure before healing; None to measure the one in memory.

        The one in memory differs if the backend patched its class or has its own 4-bit kernels.
        """
        own_kernels = self.adapter.in_4bit and self.backend.has_4bit_kernels
        if self.plan.source is None or not (self.backend.patches_model_classes or own_kernels):
            return None
        return self._ref(self.round_plan.source, self.round_plan.kept_layers)

    def _ref(self, source: Source | None, kept_layers: Sequence[int]) -> ModelRef:
        assert source is not None
        return ModelRef(
            name=source.name,
            revision=source.revision,
            kept_layers=tuple(kept_layers),
            dtype=str(self.torch_dtype).removeprefix("torch."),
            in_4bit=self.adapter.in_4bit,
        )

    @property
    def reduced_metrics(self) -> list[str]:
        """Names to record the loss before healing under: also the baseline's if all layers stay."""
        is_whole = self.plan.source is not None and not self.plan.is_reduced
        wanted = {
            "reduced_eval_loss": self.evaluation.reduced,
            "baseline_eval_loss": self.evaluation.baseline and is_whole,
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]
