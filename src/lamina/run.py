"""One run: from a large model to a healed smaller one, measured before and after."""

import logging
from dataclasses import asdict, dataclass
from functools import cached_property
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.config.parameters import Parameters
from lamina.depth.loading import load_tokenizer, new_model, torch_dtype
from lamina.depth.plan import Plan, make_plan
from lamina.depth.scan import ScanSettings
from lamina.depth.selection import Selector
from lamina.depth.source import Source
from lamina.depth.variants import Scratch, Variant
from lamina.heal.adapters import Adapter
from lamina.heal.backends import Backend
from lamina.heal.callbacks import CallbackSettings, Context
from lamina.heal.checkpoints import claim, disk_errors, refuse_changes, saved_step
from lamina.heal.data import DataSource
from lamina.heal.feed import Feed, feed
from lamina.heal.final import Final, Form, reload, save_final
from lamina.heal.libraries import prepared
from lamina.heal.scanning import CachedScores, ScanRequest
from lamina.heal.sft import SFT
from lamina.heal.tokenizer import build_tokenizer
from lamina.heal.tracking import LoggerSettings, watchers
from lamina.measure.card import note
from lamina.measure.device import release
from lamina.measure.evaluate import SAMPLE_ROWS, Evaluation
from lamina.measure.meter import Meter
from lamina.measure.provenance import fingerprint, provenance
from lamina.measure.results import Record

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig

    from lamina.heal.trainer import TokenLossTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run(Parameters):
    """A composed experiment: what to keep, how to heal it, what to measure, where to write."""

    model: Variant
    """Which layers stay."""

    selector: Selector
    """Which layers model=pruned keeps."""

    scan: ScanSettings
    """How layers are scored, where that is asked for."""

    adapter: Adapter
    """Which weights are trained."""

    backend: Backend
    """Who provides the model's code."""

    data: DataSource
    """Where the rows come from."""

    trainer: SFT
    """How they are trained on."""

    evaluation: Evaluation
    """What is measured besides."""

    logger: dict[str, LoggerSettings]
    """Where the training is logged."""

    callbacks: dict[str, CallbackSettings]
    """Who watches the training."""

    @cached_property
    def plan(self) -> Plan:
        """Which layers stay: from config.json alone, unless the variant asks for scores."""
        return make_plan(self.model, self.model_name, lambda source: self.scores(source, self.data))

    def scores(self, source: Source, data: DataSource) -> CachedScores:
        """Return the scores of a model's layers on a data set; none is computed yet."""
        request = ScanRequest(
            source=source,
            data=data,
            settings=self.scan,
            max_seq_length=self.max_seq_length,
            seed=self.seed,
            dtype=lambda: self._weights_dtype,
        )
        return CachedScores(request)

    def execute(self, record: Record) -> None:
        """Run the experiment and fill its record.

        Raises:
            LaminaError: Something cannot be done; the message says what and what to do.
        """
        checkpoint = self._claim(record)
        with prepared(self.seed, self.num_threads):
            self._execute(record, checkpoint)

    def _execute(self, record: Record, checkpoint: Path | None) -> None:
        arguments = self.trainer.arguments(self._folder)
        source = self.plan.source
        tokenizer = load_tokenizer(source) if source else build_tokenizer()
        rows = self._feed(tokenizer, record, checkpoint)
        meter = self._meter(rows, record)
        self._measure_baseline(meter)
        model = self._load_model(tokenizer)
        form = self.export.form_of(self.plan, model, self.adapter.name)
        meter.reduced(model, tokenizer, untouched=bool(source) and not self.plan.is_reduced)
        context = self._context(record, checkpoint)
        with watchers(context, self.logger.values(), self.callbacks.values()) as watching:
            trainer = self._trainer(model, tokenizer, rows, arguments, watching)
            record.update(data=rows.packed(trainer))
            self._heal(trainer, checkpoint, record)
            final = self._keep(trainer, form, record)
            meter.memory()
            del trainer, model
            release()  # final/ is read back: beside them it would take twice the memory
            self._measure_final(final, meter)

    @property
    def _folder(self) -> Path:
        """Folder of checkpoint-{step}/ and final/."""
        return Path(self.output_dir).expanduser().absolute() / self.plan.model_type

    def _claim(self, record: Record) -> Path | None:
        """Take the checkpoint folder; return the checkpoint to go on from, if there is one."""
        kept: dict[str, Any] = {"model_type": self.plan.model_type, "adapter": self.adapter.name}
        kept["kept_layers"] = list(self.plan.kept_layers)
        run_dir = Path(self.run_dir).absolute()
        checkpoint = claim(self._folder, run_dir, self.resume, record.previous, kept)
        record.update(**kept, num_layers=self.plan.num_layers, seed=self.seed)
        return checkpoint

    def _feed(
        self, tokenizer: "PreTrainedTokenizerBase", record: Record, checkpoint: Path | None
    ) -> Feed:
        """Load and tokenize the data; eval.jsonl lets anyone check the final loss."""
        rows = feed(
            self.data,
            tokenizer,
            max_seq_length=self.max_seq_length,
            num_prompts=self.evaluation.num_samples,
        )
        origin = provenance(self.plan, rows.train.rows, self.backend.name)
        if checkpoint is not None and record.previous is not None:
            now = {"data_fingerprint": origin["data_fingerprint"]}
            refuse_changes(checkpoint, record.previous["provenance"], now)
        rows.write(record.path.parent, SAMPLE_ROWS)
        evaluated = fingerprint(rows.eval.rows)
        record.update(eval_fingerprint=evaluated, provenance=origin, data=rows.counts())
        return rows

    def _meter(self, rows: Feed, record: Record) -> Meter:
        return Meter(
            evaluation=self.evaluation,
            rows=rows.eval_rows(),
            prompts=rows.prompts,
            max_tokens=self.max_seq_length,
            record=record,
        )

    def _measure_baseline(self, meter: Meter) -> None:
        """Evaluate the untouched model, unless it is the very one that is to be healed."""
        source, every = self.plan.source, range(self.plan.num_layers)
        if self.evaluation.baseline and source is not None and self.plan.is_reduced:
            logger.info("evaluating %s, untouched", self.model_name)
            meter.baseline(self.backend.load_model(source, every, self._weights_dtype))
            release()

    def _load_model(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
        """Build the model that is to be healed, with nothing but its kept layers read."""
        kept = self.plan.kept_layers
        if self.plan.source is None:
            assert isinstance(self.model, Scratch)
            return new_model(self.model.architecture, tokenizer, dtype=self._weights_dtype)
        logger.info("loading %s, %d of %d layers", self.model_name, len(kept), self.plan.num_layers)
        return self.backend.load_model(self.plan.source, kept, self._weights_dtype)

    def _context(self, record: Record, checkpoint: Path | None) -> Context:
        """Gather what loggers and callbacks may want to know."""
        return Context(
            run_dir=Path(self.run_dir).absolute(),
            logging_dir=Path(self.logging_dir).expanduser().absolute() / self.plan.model_type,
            run_name=f"{self.plan.name}-{self.adapter.name}",
            config=asdict(self),
            resume_step=saved_step(checkpoint) if checkpoint else None,
            history=record.content["history"],
            metrics=record.content["metrics"],
        )

    def _trainer(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Feed,
        arguments: "SFTConfig",
        watching: list[Any],
    ) -> "TokenLossTrainer":
        return self.trainer.build(
            arguments=arguments,
            model=model,
            tokenizer=tokenizer,
            train=rows.train.rows,
            eval=rows.eval.rows,
            peft_config=self.adapter.peft_config(),
            plan=self.plan,
            callbacks=watching,
        )

    def _heal(self, trainer: "TokenLossTrainer", checkpoint: Path | None, record: Record) -> None:
        """Train, and leave the best weights in the trainer's model."""
        record.update(trainable_parameters=trainer.trainable_parameters())
        with disk_errors(self._folder):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        record.measured(**trainer.figures())

    def _keep(self, trainer: "TokenLossTrainer", form: Form, record: Record) -> Final:
        """Write the best weights to final/, with what they were made of."""
        name = self.adapter.name
        content = note(self.plan, adapter=name, parameters=asdict(self), record=record.content)
        final = save_final(
            trainer.best_model(),
            trainer.processing_class,
            self._folder,
            form=form,
            dtype=torch_dtype(self.export.dtype, automatic=self.weights_dtype),
            note=content,
        )
        record.update(final=relpath(final.folder, record.path.parent), dtype=final.dtype)
        return final

    def _measure_final(self, final: Final, meter: Meter) -> None:
        """Read final/ back as a user would, and measure that."""
        if self.evaluation.reload:
            logger.info("evaluating %s", final.folder)
            source = self.plan.source
            meter.final(*reload(final, source.revision if source else None))

    @property
    def _weights_dtype(self) -> "torch.dtype":
        return torch_dtype(self.weights_dtype, automatic="float32")
