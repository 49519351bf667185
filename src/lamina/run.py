"""A run, step by step: plan, load, feed, adapt, heal, keep, measure, record."""

import logging
from contextlib import nullcontext
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING

from lamina import logged
from lamina.data import feed as data
from lamina.data.answers.answered import Original, refuse_missing_engine
from lamina.data.byte_tokenizer import build_tokenizer
from lamina.depth import loading
from lamina.depth.reduction import reduction
from lamina.experiment import Experiment
from lamina.export.card import manifest
from lamina.export.final import measured_cards, save_final
from lamina.heal.callbacks.loggers import open_observers
from lamina.heal.callbacks.settings import UserCallback
from lamina.heal.distillation.settings import Distill
from lamina.heal.resume import ONLY_MODEL, Start, find_start
from lamina.measure import protocol as measure
from lamina.measure.evaluate import SAMPLE_ROWS
from lamina.measure.provenance import base_identity, fingerprint, provenance
from lamina.measure.results import Record
from lamina.measure.tasks.items import read_tasks
from lamina.rounds import run_rounds
from lamina.runtime import distributed
from lamina.runtime.cache import cache_folder
from lamina.runtime.console import stage
from lamina.runtime.device import peak_memory_bytes, release_memory, reset_peak_memory
from lamina.runtime.files import disk_errors, refuse_unwritable
from lamina.runtime.lock import locked

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lamina.heal.trainer import TokenLossTrainer
    from lamina.heal.untrained import Untrained

logger = logging.getLogger(__name__)

SAMPLED = "evaluation.num_samples: longest prompt + evaluation.max_new_tokens"


def run(experiment: Experiment, record: Record) -> None:
    """Run an experiment; reports read only its record and its folder."""
    run_rounds(experiment, record, cut_and_heal)


def cut_and_heal(experiment: Experiment, record: Record) -> None:
    """Run an experiment without a ladder, or one of its rounds."""
    plan(experiment)
    first, folder, wanted = distributed.is_first(), experiment.folder, experiment.evaluation
    # output_dir may lie outside the run folder, which is locked, and another run be at work there.
    is_own = folder.resolve() == Path(experiment.run_dir).resolve()
    owner = locked(folder, "output_dir") if first and not is_own else nullcontext()
    with disk_errors(Path(experiment.run_dir)), owner:
        start = resume(experiment, record)
        with experiment.prepared():
            arguments = experiment.arguments(folder)
            tokenizer, rows = feed(experiment, experiment.answering)
            if experiment.trainer.trains:
                processes = distributed.world_size()
                experiment.round.set_length(
                    arguments, experiment.budget, rows.train.rows, processes
                )
            start.warn_if_reached(arguments.max_steps, experiment.budget.tokens)
            record_data(experiment, record, rows, start)
            if isinstance(experiment.trainer, Distill):
                train, dtype = rows.train.rows, experiment.torch_dtype
                experiment.trainer.prepare(experiment.plan, tokenizer, train, dtype)
            protocol = experiment.protocol(rows)
            if wanted.baseline and experiment.plan.is_reduced:
                measure.baseline(record, protocol, experiment.untouched)
            measure.original(record, protocol)
            model = load(experiment, tokenizer, rows)
            reference, metrics = experiment.reduced, experiment.reduced_metrics
            measure.reduced(record, protocol, model, tokenizer, reference, metrics)
            record.update(repair=experiment.repaired(model))
            loggers, callbacks = experiment.logger.values(), experiment.callbacks.values()
            context = logged.context(experiment, record, start)
            with open_observers(context, loggers if first else (), callbacks) as observers:
                trainer = experiment.build_trainer(model, tokenizer, rows, arguments, observers)
                heal(experiment, record, rows, trainer, start)
                final = keep(experiment, record, trainer)
                tolerance = trainer.tolerance(final)
                del trainer, model
                release_memory()  # otherwise memory holds the model twice once final/ is loaded
                if wanted.reload:
                    measure.final(record, protocol, final, tolerance)
                    measured_cards(record, protocol, final, experiment.form)


@stage("choosing layers")
def plan(experiment: Experiment) -> None:
    """Decide which layers stay, and look for the data; only layer scores need weights."""
    experiment.refuse_unwritable()
    wanted = experiment.evaluation
    read_tasks(wanted.tasks, wanted.task_settings)
    for callback in experiment.callbacks.values():
        if isinstance(callback, UserCallback):
            callback.load()
    if experiment.data.answers == "original":
        refuse_unwritable(cache_folder(), "LAMINA_CACHE")
        refuse_missing_engine(experiment.data.answer_settings, in_4bit=experiment.adapter.in_4bit)
    experiment.data.find()  # before transformers is imported
    distributed.first_process_first("plan", lambda: experiment.plan)
    if wanted.baseline and (experiment.plan.is_reduced or wanted.goes_further):
        refuse_unwritable(cache_folder(), "LAMINA_CACHE")
    if isinstance(experiment.trainer, Distill):
        experiment.trainer.refuse_other_cache(experiment.plan, experiment.torch_dtype)
    if source := experiment.plan.source:
        reduced = reduction(source, experiment.plan.kept_layers)
        experiment.refuse_unrepairable(reduced.blueprint)
        experiment.refuse_unfit_adapter(reduced.blueprint)
    for note in experiment.plan.notes(saved=experiment.form != "adapter"):
        logger.info("%s", note)


def resume(experiment: Experiment, record: Record) -> Start:
    """Claim the folder of checkpoints and find the checkpoint to continue from."""
    identity, base = experiment.identity, base_identity(experiment.round_plan.source)
    name = logged.run_name(experiment, record.own)
    settings = {**experiment.settings, "base": base}
    folder, run_dir = experiment.folder, Path(experiment.run_dir).absolute()
    before, now = record.previous or {}, identity | settings
    start = find_start(folder, run_dir, experiment.resume, before, now)
    if settings.get(ONLY_MODEL):
        logger.warning("%s=true: if this run is interrupted, it cannot be resumed", ONLY_MODEL)
    chosen = {"num_layers": experiment.plan.num_layers, "selector": experiment.plan.selector_name}
    fixed = {**chosen, "seed": experiment.seed}
    origin = {"resumed_from": start.resumed_from, "started_from": start.started_from}
    # If this start ends before it has read its data, the next one must still know what was trained.
    trained = ("eval_fingerprint", "provenance") if start.checkpoint else ()
    data = {key: start.recorded[key] for key in trained}
    record.update(name=name, **identity, **fixed, settings=settings, **origin, **data)
    return start


def feed(
    experiment: Experiment, original: Original | None = None
) -> "tuple[PreTrainedTokenizerBase, data.Feed]":
    """Tokenize the data, with the answers of the `original` to the training prompts, if given."""
    source = experiment.plan.source
    if source:  # here transformers is silent on settings that it ignores
        loading.generation_config(source)
    tokenizer = loading.load_tokenizer(source) if source else build_tokenizer()
    length, prompts = experiment.max_seq_length, experiment.evaluation.num_samples
    rows = data.feed(
        experiment.data, tokenizer, max_seq_length=length, num_prompts=prompts, original=original
    )
    if source:
        ids = (row["input_ids"] for split in (rows.train, rows.eval) for row in split.rows)
        loading.refuse_unknown_tokens(source, tokenizer, ids)
        loading.refuse_long_sequences(source, _sampled(experiment, rows), SAMPLED)
    return tokenizer, rows


def _sampled(experiment: Experiment, rows: data.Feed) -> int:
    """Return the tokens of the longest prompt with its answer; 0 without prompts."""
    new = experiment.evaluation.max_new_tokens
    return max((len(ids) + new for _, ids, _ in rows.prompts), default=0)


def record_data(experiment: Experiment, record: Record, rows: data.Feed, start: Start) -> None:
    """Record where the rows come from, and write eval.jsonl, with which a loss can be checked."""
    origins = provenance(experiment.plan, rows.train.rows, experiment.backend.name)
    evaluated = fingerprint(rows.eval.rows)
    start.refuse_other_data(origins["data_fingerprint"], evaluated)
    if distributed.is_first():
        rows.write(record.path.parent, SAMPLE_ROWS)
    record.update(eval_fingerprint=evaluated, provenance=origins, data=rows.counts())


def load(
    experiment: Experiment, tokenizer: "PreTrainedTokenizerBase", rows: data.Feed
) -> "PreTrainedModel":
    """Read the kept layers and no others; a model from scratch starts with random weights."""
    plan, dtype = experiment.plan, experiment.torch_dtype
    if plan.source is None:
        model = loading.new_model(experiment.architecture, tokenizer, dtype=dtype)
        loading.refuse_beyond_positions(model, experiment.max_seq_length)
        loading.refuse_beyond_positions(model, _sampled(experiment, rows), SAMPLED)
        return model
    count, name = len(plan.kept_layers), experiment.round.base or experiment.model_name
    logger.info("loading %s, %d of %d layers", name, count, experiment.round_plan.num_layers)
    return experiment.backend.load_model(experiment.round_plan, dtype, experiment.training)


def heal(
    experiment: Experiment,
    record: Record,
    rows: data.Feed,
    trainer: "TokenLossTrainer | Untrained",
    start: Start,
) -> None:
    """Train, unless trainer=none; afterwards the trainer's model has the best weights."""
    record.content["provenance"]["attention"] = trainer.model.config._attn_implementation
    made = {"train": trainer.train_dataset, "eval": trainer.eval_dataset}
    packed = rows.packed(made, experiment.max_seq_length)
    record.update(data=packed, trainable_parameters=trainer.trainable_parameters())
    if experiment.form == "model":  # an untied head adds weights
        record.update(num_parameters=trainer.model.num_parameters())
    reset_peak_memory()
    with disk_errors(experiment.folder, "output_dir"), experiment.memory_advice(trainer):
        trainer.train(resume_from_checkpoint=start.checkpoint and str(start.checkpoint))
    record.measured(**trainer.figures(), peak_memory_bytes=peak_memory_bytes())


def keep(
    experiment: Experiment, record: Record, trainer: "TokenLossTrainer | Untrained"
) -> measure.ModelRef:
    """Write the best weights to final/."""
    settings = experiment.parameters
    content = manifest(
        experiment.plan,
        adapter=experiment.adapter_name,
        parameters=settings,
        record=record.content,
        saved=experiment.form != "adapter",
    )
    final = save_final(
        trainer.best_model(),
        trainer.processing_class,
        experiment.folder,
        plan=experiment.plan,
        form=experiment.form,
        dtype=experiment.export_dtype,
        manifest=content,
        unquantized=experiment.load_unquantized if experiment.adapter.in_4bit else None,
    )
    record.update(final=relpath(final.name, record.path.parent), dtype=final.dtype)
    return final
