"""The pipeline of one run: from a large model to a healed smaller one, measured on the way."""

import logging
from contextlib import nullcontext
from dataclasses import asdict
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.data.feed import Feed
from lamina.depth import loading
from lamina.experiment import Experiment
from lamina.export.card import note
from lamina.export.final import Form, save_final
from lamina.heal.callbacks.loggers import watchers
from lamina.heal.callbacks.settings import Context
from lamina.heal.libraries import prepared
from lamina.heal.packing import batch
from lamina.heal.resume import claim, last_whole_checkpoint, origin, refuse_changes, saved_step
from lamina.measure.baseline import baseline_loss
from lamina.measure.evaluate import SAMPLE_ROWS
from lamina.measure.isolated import Final
from lamina.measure.plain import Plain
from lamina.measure.protocol import Meter
from lamina.measure.provenance import base_identity, fingerprint, provenance
from lamina.measure.results import Record
from lamina.runtime import distributed
from lamina.runtime.cache import cache_folder
from lamina.runtime.device import forget_peak_memory, peak_memory_bytes, release
from lamina.runtime.files import disk_errors, full_disks, refuse_unwritable
from lamina.runtime.lock import owned

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lamina.heal.trainer import TokenLossTrainer

logger = logging.getLogger(__name__)


class Pipeline:
    """Executes one run, and fills its record."""

    def __init__(self, run: Experiment, record: Record) -> None:
        """Do nothing yet.

        Args:
            run: The experiment.
            record: Of what is found.
        """
        self.run, self.record, self.plan = run, record, run.plan

    def execute(self) -> None:
        """Run the experiment.

        Raises:
            LaminaError: Something cannot be done; the message says what and what to do.
        """
        self.run.data.find()
        # output_dir may lie elsewhere, where another run's process may be at work.
        owner = owned(self.run.folder, "output_dir") if distributed.is_first() else nullcontext()
        with full_disks(Path(self.run.run_dir)), owner:
            checkpoint = self._claim()
            with prepared(self.run.seed, self.run.num_threads), self.run.advising():
                self._execute(checkpoint)

    def _execute(self, checkpoint: Path | None) -> None:
        run = self.run
        arguments = run.trainer.arguments(run.folder, sharded=run.sharded, liger=run.liger)
        if distributed.count() > 1:
            logger.info("%s", batch(arguments, distributed.count()))
        run.refuse_misfits()
        tokenizer = run.load_tokenizer()
        rows = self._feed(tokenizer, checkpoint)
        plain = self._plain(rows)
        self._measure_baseline(plain)
        model = self._load_model(tokenizer)
        form = run.export.form_of(self.plan, model, run.adapter.name)
        plain.reduced(model, tokenizer)
        context = self._context(checkpoint)
        loggers = run.logger.values() if distributed.is_first() else ()
        with watchers(context, loggers, run.callbacks.values()) as watching:
            trainer = run.build_trainer(model, tokenizer, rows, arguments, watching)
            self.record.content["provenance"]["attention"] = model.config._attn_implementation
            made = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
            self.record.update(data=rows.packed(made, run.max_seq_length))
            self._heal(trainer, checkpoint)
            final = self._keep(trainer, form)
            del trainer, model
            release()  # final/ is read back: beside them it would take twice the memory
            self._measure_final(final, plain)

    def _claim(self) -> Path | None:
        """Take the checkpoint folder; return the checkpoint to go on from, if there is one."""
        run, plan = self.run, self.plan
        kept: dict[str, Any] = {"model_type": plan.model_type, "adapter": run.adapter.name}
        kept["kept_layers"] = list(plan.kept_layers)
        settings = {**run.settings, "base": base_identity(plan.source)}
        run_dir, before = Path(run.run_dir).absolute(), self.record.previous or {}
        earlier, now = {**before, **before.get("settings", {})}, {**kept, **settings}
        named = origin(run.resume)
        checkpoint = distributed.in_turn(
            "claim",
            lambda: (
                claim(run.folder, run_dir, run.resume, named, earlier, now)
                if distributed.is_first()
                else last_whole_checkpoint(run.folder)
            ),
        )
        self._refuse_unwritable()
        self.origin = named.recorded if named else before
        self.record.update(
            **kept,
            num_layers=plan.num_layers,
            seed=run.seed,
            settings=settings,
            resumed_from=named.given if named else before.get("resumed_from"),
        )
        return checkpoint

    def _refuse_unwritable(self) -> None:
        """Refuse folders that would turn out to be read-only once the weights are there."""
        run = self.run
        if run.logger.get("tensorboard"):
            refuse_unwritable(self._logging_dir, "logging_dir")
        if run.evaluation.baseline and self.plan.is_reduced:
            refuse_unwritable(cache_folder(), "LAMINA_CACHE")

    @property
    def _logging_dir(self) -> Path:
        return Path(self.run.logging_dir).expanduser().absolute() / self.plan.model_type

    def _feed(self, tokenizer: "PreTrainedTokenizerBase", checkpoint: Path | None) -> Feed:
        """Load and tokenize the data; eval.jsonl lets anyone check the final loss."""
        rows, record = self.run.load_feed(tokenizer), self.record
        made_of = provenance(self.plan, rows.train.rows, self.run.backend.name)
        if checkpoint is not None and self.origin:
            now = {"data_fingerprint": made_of["data_fingerprint"]}
            refuse_changes(checkpoint, self.origin["provenance"], now, self.run.resume)
        if distributed.is_first():
            rows.write(record.path.parent, SAMPLE_ROWS)
        evaluated = fingerprint(rows.eval.rows)
        record.update(eval_fingerprint=evaluated, provenance=made_of, data=rows.counts())
        return rows

    def _plain(self, rows: Feed) -> Plain:
        meter = Meter(
            evaluation=self.run.evaluation,
            rows=rows.eval_rows(),
            prompts=rows.prompts,
            max_tokens=self.run.max_seq_length,
            record=self.record,
        )
        return Plain(
            plan=self.plan,
            dtype=self.run.torch_dtype,
            in_4bit=self.run.adapter.in_4bit,
            backend=self.run.backend,
            meter=meter,
        )

    def _measure_baseline(self, plain: Plain) -> None:
        """Evaluate the untouched model, unless it is the very one that is to be healed."""
        source, evaluated = self.plan.source, self.record.content["eval_fingerprint"]
        if not self.run.evaluation.baseline or source is None or not self.plan.is_reduced:
            return
        self.record.measured(baseline_eval_loss=baseline_loss(source, plain, evaluated))
        self.record.write()

    def _load_model(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
        if self.plan.source is not None:
            kept, name = len(self.plan.kept_layers), self.run.model_name
            logger.info("loading %s, %d of %d layers", name, kept, self.plan.num_layers)
        return self.run.load_model(tokenizer)

    def _context(self, checkpoint: Path | None) -> Context:
        """Gather what loggers and callbacks may want to know."""
        run, content = self.run, self.record.content
        return Context(
            run_dir=Path(run.run_dir).absolute(),
            logging_dir=self._logging_dir,
            run_name=f"{self.plan.name}-{run.adapter.name}",
            config=asdict(run),
            resume_step=saved_step(checkpoint) if checkpoint else None,
            history=content["history"],
            metrics=content["metrics"],
        )

    def _heal(self, trainer: "TokenLossTrainer", checkpoint: Path | None) -> None:
        """Train, and leave the best weights in the trainer's model."""
        self.record.update(trainable_parameters=trainer.trainable_parameters())
        forget_peak_memory()
        with disk_errors(self.run.folder, "output_dir"), self.run.advising(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.record.measured(**trainer.figures(), peak_memory_bytes=peak_memory_bytes())

    def _keep(self, trainer: "TokenLossTrainer", form: Form) -> Final:
        """Write the best weights to final/, with what they were made of."""
        run, record = self.run, self.record
        parameters = asdict(run)
        content = note(
            self.plan, adapter=run.adapter.name, parameters=parameters, record=record.content
        )
        final = save_final(
            trainer.best_model(),
            trainer.processing_class,
            run.folder,
            form=form,
            dtype=loading.torch_dtype(run.export.dtype, automatic=run.weights_dtype),
            note=content,
            unquantized=run.load_unquantized if run.adapter.in_4bit else None,
        )
        record.update(final=relpath(final.folder, record.path.parent), dtype=final.dtype)
        return final

    def _measure_final(self, final: Final, plain: Plain) -> None:
        """Read final/ back as a user would, and measure that."""
        if self.run.evaluation.reload:
            logger.info("evaluating %s", final.folder)
            plain.meter.final(*plain.final(final))
