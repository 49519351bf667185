"""The pipeline of one run: from a large model to a healed smaller one, measured on the way."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.depth import loading
from lamina.depth.reading import identity
from lamina.depth.source import Source
from lamina.heal.cache import Entry, cache_folder, cached, code_version, folder_of
from lamina.heal.callbacks import Context
from lamina.heal.checkpoints import last_whole_checkpoint, saved_step
from lamina.heal.claim import claim, refuse_changes
from lamina.heal.feed import Feed
from lamina.heal.final import Final, Form, reload, save_final
from lamina.heal.libraries import prepared
from lamina.heal.origin import origin
from lamina.heal.ownership import owned
from lamina.heal.packing import batch
from lamina.heal.tracking import watchers
from lamina.measure import ranks
from lamina.measure.card import note
from lamina.measure.device import device_name, forget_peak_memory, peak_memory_bytes, release
from lamina.measure.disk import disk_errors, full_disks, refuse_unwritable
from lamina.measure.evaluate import SAMPLE_ROWS
from lamina.measure.meter import Meter
from lamina.measure.provenance import base_identity, fingerprint, provenance
from lamina.measure.results import Record
from lamina.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lamina.heal.trainer import TokenLossTrainer

logger = logging.getLogger(__name__)


class Pipeline:
    """Executes one run, and fills its record."""

    def __init__(self, run: Run, record: Record) -> None:
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
        owner = owned(self.run.folder, "output_dir") if ranks.is_first() else nullcontext()
        with full_disks(Path(self.run.run_dir)), owner:
            checkpoint = self._claim()
            with prepared(self.run.seed, self.run.num_threads), self.run.advising():
                self._execute(checkpoint)

    def _execute(self, checkpoint: Path | None) -> None:
        run = self.run
        arguments = run.trainer.arguments(run.folder, sharded=run.sharded, liger=run.liger)
        if ranks.count() > 1:
            logger.info("%s", batch(arguments, ranks.count()))
        run.refuse_misfits()
        tokenizer = run.load_tokenizer()
        rows = self._feed(tokenizer, checkpoint)
        meter = self._meter(rows)
        self._measure_baseline(meter)
        model = self._load_model(tokenizer)
        form = run.export.form_of(self.plan, model, run.adapter.name)
        untouched = self.plan.source is not None and not self.plan.is_reduced
        meter.reduced(model, tokenizer, untouched=untouched)
        context = self._context(checkpoint)
        loggers = run.logger.values() if ranks.is_first() else ()
        with watchers(context, loggers, run.callbacks.values()) as watching:
            trainer = run.build_trainer(model, tokenizer, rows, arguments, watching)
            self.record.content["provenance"]["attention"] = model.config._attn_implementation
            made = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
            self.record.update(data=rows.packed(made, run.max_seq_length))
            self._heal(trainer, checkpoint)
            final = self._keep(trainer, form)
            del trainer, model
            release()  # final/ is read back: beside them it would take twice the memory
            self._measure_final(final, meter)

    def _claim(self) -> Path | None:
        """Take the checkpoint folder; return the checkpoint to go on from, if there is one."""
        run, plan = self.run, self.plan
        kept: dict[str, Any] = {"model_type": plan.model_type, "adapter": run.adapter.name}
        kept["kept_layers"] = list(plan.kept_layers)
        settings = {**run.settings, "base": base_identity(plan.source)}
        run_dir, before = Path(run.run_dir).absolute(), self.record.previous or {}
        earlier, now = {**before, **before.get("settings", {})}, {**kept, **settings}
        named = origin(run.resume)
        checkpoint = ranks.in_turn(
            "claim",
            lambda: (
                claim(run.folder, run_dir, run.resume, named, earlier, now)
                if ranks.is_first()
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
        if ranks.is_first():
            rows.write(record.path.parent, SAMPLE_ROWS)
        evaluated = fingerprint(rows.eval.rows)
        record.update(eval_fingerprint=evaluated, provenance=made_of, data=rows.counts())
        return rows

    def _meter(self, rows: Feed) -> Meter:
        return Meter(
            evaluation=self.run.evaluation,
            rows=rows.eval_rows(),
            prompts=rows.prompts,
            max_tokens=self.run.max_seq_length,
            record=self.record,
        )

    def _measure_baseline(self, meter: Meter) -> None:
        """Evaluate the untouched model, unless it is the very one that is to be healed.

        All jobs of a sweep have the same one: the first that comes by evaluates it.
        """
        run, source = self.run, self.plan.source
        if not run.evaluation.baseline or source is None or not self.plan.is_reduced:
            return
        with self._baseline(source) as entry:
            loss = ranks.from_first(entry.content["loss"] if entry.content else None)
            if loss is None:
                logger.info("evaluating %s, untouched", run.model_name)
                model = run.load_untouched(source)
                loss = meter.loss(model)
                entry.content = {"loss": loss}
                del model
                release()
            self.record.measured(baseline_eval_loss=loss)
        self.record.write()

    def _baseline(self, source: Source) -> AbstractContextManager[Entry]:
        """Give the place of the untouched model's loss; it is the first process that keeps it."""
        folder = self._baseline_folder(source)
        if ranks.is_first():
            return cached(folder, "baseline.json")
        return nullcontext(Entry(folder, None))

    def _baseline_folder(self, source: Source) -> Path:
        """Name the cache folder after everything that the loss depends on, to its last bit."""
        run = self.run
        parts = [
            *identity(source),
            self.record.content["eval_fingerprint"],
            f"{run.torch_dtype} {run.max_seq_length} {run.backend.name} {device_name()}",
            *(["4 bits", f"bitsandbytes {version('bitsandbytes')}"] if run.adapter.in_4bit else []),
            *(f"{name} {version(name)}" for name in ("torch", "transformers")),
            code_version("measure", ("evaluate",)),
        ]
        return folder_of("baselines", parts)

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

    def _measure_final(self, final: Final, meter: Meter) -> None:
        """Read final/ back as a user would, and measure that."""
        if self.run.evaluation.reload:
            logger.info("evaluating %s", final.folder)
            source = self.plan.source
            meter.final(*reload(final, source.revision if source else None))
