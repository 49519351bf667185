"""dry_run=true: the first steps of a run and one optimizer step; it writes only a report."""

import logging
import tempfile
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.config.binding import bind
from lamina.data.feed import Feed
from lamina.data.tokenization import IGNORED
from lamina.depth.quantization import scale_bytes
from lamina.errors import ConfigError
from lamina.experiment import Experiment
from lamina.heal.distillation.settings import Distill
from lamina.heal.memory import refuse_too_large
from lamina.heal.packing import batch_size, packed, total_steps
from lamina.heal.untrained import Untrained
from lamina.measure.results import DRY_RUN_FILE
from lamina.measure.resumable import refuse_unfit
from lamina.rounds import planned_rounds, round_of
from lamina.run import feed, load, plan
from lamina.runtime import distributed, sizes
from lamina.runtime.console import console
from lamina.runtime.device import device_name, free_memory_bytes, peak_memory_bytes
from lamina.runtime.files import write_json

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedTokenizerBase

    from lamina.heal.trainer import TokenLossTrainer

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 2
"""Training rows to show."""

ONE_STEP = {
    **dict.fromkeys(("max_steps", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "no"),
    "load_best_model_at_end": False,
}
"""Training arguments of the step, where they differ from the run's."""


def print_dry_run(config: "DictConfig", folder: Path, processes: int) -> None:
    """Print what a run of `processes` would do and need; write it to `folder`/dry_run.json."""
    from omegaconf import OmegaConf

    from lamina.report.dry_run_report import dry_run_report, refuse_what_does_not_fit

    if distributed.world_size() > 1:
        raise ConfigError(
            "dry_run=true takes one step in one process: leave out torchrun; distributed=NUMBER "
            "says how many the run will have"
        )
    experiment = bind(config)
    with experiment.backend.muted():
        content = dry_run(experiment, processes)
    resolved = OmegaConf.to_container(config, resolve=True)
    write_json(folder / DRY_RUN_FILE, {"config": resolved, **content})
    out = console()
    out.print(dry_run_report(content, OmegaConf.to_yaml(config, resolve=True), out))
    refuse_what_does_not_fit(content, config.output_dir)


def dry_run(whole: Experiment, processes: int) -> dict[str, Any]:
    """Do what a run does up to its first step, errors included; return dry_run.json's content.

    Of a ladder it is the first round's step: no later one has a larger model.
    """
    experiment = round_of(whole, 1, None, ())
    plan(experiment)
    args = {**experiment.trainer.args, **ONE_STEP}
    one_step = replace(experiment, trainer=replace(experiment.trainer, args=args))
    with experiment.prepared(), tempfile.TemporaryDirectory() as name:
        scratch, free = Path(name), free_memory_bytes()
        arguments = experiment.arguments(scratch)
        if experiment.plan.source is not None:
            refuse_too_large(experiment.planned_memory, free)
        if experiment.answering:
            logger.info("data.answers=original: the dry run counts the given answers instead")
        tokenizer, rows = feed(experiment)
        experiment.budget.set_steps(arguments, rows.train.rows, processes)
        packs = packed({"train": rows.train.rows, "eval": rows.eval.rows}, arguments)
        longest = longest_rows(experiment, rows)
        one_step = with_teacher(one_step, tokenizer, rows, longest, scratch)
        model = load(experiment, tokenizer, rows)
        refuse_unfit(model, tokenizer, experiment.evaluation)
        parameters = model.num_parameters()
        step_arguments = one_step.arguments(scratch)
        trainer = one_step.build_trainer(model, tokenizer, longest, step_arguments, [])
        assert not isinstance(trainer, Untrained)  # refused before
        step = take_step(experiment, trainer)
        steps = total_steps(len(packs["train"]), arguments, processes)
        shown = rows.train.rows.select(range(min(SAMPLE_ROWS, len(rows.train.rows))))
        return {
            "num_layers": experiment.plan.num_layers,
            "kept_layers": list(experiment.plan.kept_layers),
            "chosen": experiment.plan.chosen,
            "rounds": [*planned_rounds(whole, experiment)],
            "parameters": parameters,
            "trainable_parameters": trainer.trainable_parameters(),
            "form": experiment.form,
            "device": device_name(),
            "step": step,
            "footprint": footprint_of(experiment, trainer, scratch, steps, free),
            "steps": steps,
            "seconds": steps * arguments.gradient_accumulation_steps * step["seconds"],
            "processes": processes,
            "batch": batch_size(arguments, processes),
            "data": rows.packed(packs, experiment.max_seq_length),
            "sample": [spans(row, tokenizer) for row in shown],
        }


def with_teacher(
    one_step: Experiment,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Feed,
    longest: Feed,
    scratch: Path,
) -> Experiment:
    """Let a cached teacher predict the `longest` rows alone; raises what its cache would."""
    trainer, original, dtype = one_step.trainer, one_step.plan, one_step.torch_dtype
    if not isinstance(trainer, Distill) or not trainer.is_cached:
        return one_step
    if not one_step.answering:  # else a cache has other answers than these given ones
        trainer.prepare(original, tokenizer, rows.train.rows, dtype, dry=True)
    teacher = replace(trainer, cache=str(scratch / "teacher"), min_mass=0.0)
    teacher.prepare(original, tokenizer, longest.train.rows, dtype)
    return replace(one_step, trainer=teacher)


def longest_rows(experiment: Experiment, rows: Feed) -> Feed:
    """Return the longest training rows, which need the most memory, for one forward pass."""
    lengths = [len(ids) for ids in rows.train.rows["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batch = experiment.per_device_train_batch_size
    tokens = batch * experiment.max_seq_length if experiment.packing else 0
    chosen: list[int] = []
    while order and (len(chosen) < batch or sum(lengths[i] for i in chosen) < tokens):
        chosen.append(order.pop(0))
    return replace(rows, train=replace(rows.train, rows=rows.train.rows.select(chosen)))


def take_step(experiment: Experiment, trainer: "TokenLossTrainer") -> dict[str, float]:
    """Take one optimizer step; return its loss, its tokens and its seconds."""
    logger.info("one step on the longest rows")
    began = time.monotonic()
    with experiment.memory_advice(trainer):
        outcome = trainer.train()
    if not outcome.training_loss < float("inf"):
        raise ConfigError(f"the first step's loss is {outcome.training_loss}: check the data")
    tokens, seconds = trainer.state.num_input_tokens_seen, time.monotonic() - began
    return {"loss": outcome.training_loss, "tokens": tokens, "seconds": seconds}


def footprint_of(
    experiment: Experiment, trainer: "TokenLossTrainer", scratch: Path, steps: int, free: int
) -> dict[str, int]:
    """Return the memory and disk space that the run takes, in bytes, once its trainer took a step.

    `steps` counts the run's optimizer steps, `free` is the memory in bytes that was free before the
    model was loaded, and `scratch` takes temporary files.
    """
    model, is_full = trainer.model, experiment.form == "model"
    weights = sizes.weight_bytes(model.parameters()) + scale_bytes(model)
    gradients = sizes.weight_bytes(sizes.trained_weights(model))
    optimizer = sizes.state_bytes(trainer.optimizer.state)
    trainer.processing_class.save_pretrained(scratch / "tokenizer")
    tokenizer = sizes.folder_bytes(scratch / "tokenizer")
    # Merging adds no weights: the adapter's disappear into the model's.
    parameters = model.num_parameters() - (0 if is_full else trainer.trainable_parameters())
    adapter = gradients + tokenizer
    whole = parameters * experiment.export_dtype.itemsize + tokenizer
    final = {"adapter": adapter, "both": adapter + whole}.get(experiment.form, whole)
    checkpoint = (weights if is_full else gradients) + optimizer + tokenizer
    checkpoints = sizes.most_checkpoints(experiment.save_total_limit, steps, experiment.eval_steps)
    return {
        "weights": weights,
        "teacher": experiment.planned_memory.teacher if experiment.plan.source else 0,
        "gradients": gradients,
        "optimizer": optimizer,
        "peak_memory": peak_memory_bytes(),  # activations included
        "free_memory": free,
        "checkpoint": checkpoint,
        "checkpoints": checkpoints,  # most on disk at once, the one being written included
        "final": final,  # with final-merged/, if both are written
        "free_disk": sizes.free_disk_bytes(experiment.folder),
        "disk": (checkpoint * checkpoints + final) * experiment.ladder.rounds,
    }


def spans(row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    """Return a row's text, special tokens included, split where training starts or stops."""
    marked = list(zip(row["input_ids"], row["labels"], strict=True))
    groups = groupby(marked, key=lambda pair: pair[1] != IGNORED)
    return [
        {"text": tokenizer.decode([token for token, _ in group]), "trained": is_trained}
        for is_trained, group in groups
    ]
