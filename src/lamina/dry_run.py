"""dry_run=true: everything that a run does up to its first step, and no file but a report."""

import logging
import tempfile
import time
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.data.feed import Feed
from lamina.data.tokenization import IGNORED
from lamina.depth import loading
from lamina.depth.quantization import scale_bytes
from lamina.errors import ConfigError
from lamina.experiment import Experiment
from lamina.heal.libraries import prepared
from lamina.heal.memory import Footprint, refuse_too_large
from lamina.heal.packing import batch_size, packed, total_steps
from lamina.measure.results import DRY_RUN_FILE
from lamina.runtime import distributed
from lamina.runtime.device import device_name, free_memory_bytes, peak_memory_bytes
from lamina.runtime.files import write_json
from lamina.runtime.sizes import (
    folder_bytes,
    free_disk_bytes,
    most_checkpoints,
    state_bytes,
    trained,
    weight_bytes,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lamina.export.final import Form
    from lamina.heal.trainer import TokenLossTrainer

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 2
"""Training rows that are shown."""

ONE_STEP = {
    "max_steps": 1,
    "gradient_accumulation_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "logging_strategy": "no",
}
"""What differs from the training that is rehearsed."""


def rehearse(config: "DictConfig", folder: Path, processes: int) -> None:
    """Print what the run would do and take, and write it to dry_run.json; one process does.

    Args:
        config: The checked config.
        folder: The run folder.
        processes: That would share the training.

    Raises:
        LaminaError: The run could not do it either.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from rich.console import Console

    from lamina.report.dry_run_report import dry_run_report, refuse_what_does_not_fit

    if distributed.count() > 1:
        raise ConfigError(
            "dry_run=true takes one step in one process: leave out torchrun; distributed=NUMBER "
            "says how many the run will have"
        )
    run = instantiate(config)
    with run.backend.quietly():
        content = Rehearsal(run, processes).report()
    resolved = OmegaConf.to_container(config, resolve=True)
    write_json(folder / DRY_RUN_FILE, {"config": resolved, **content})
    console = Console()
    console.print(dry_run_report(content, OmegaConf.to_yaml(config, resolve=True), console))
    refuse_what_does_not_fit(content, config.output_dir)


class Rehearsal:
    """Looks at everything that a run would do, and takes one step of its training."""

    def __init__(self, run: Experiment, processes: int) -> None:
        """Do nothing yet.

        Args:
            run: The experiment.
            processes: That will share its training; the rehearsal has one.
        """
        self.run, self.plan, self.processes = run, run.plan, processes
        self.one_step = replace(run.trainer, args={**run.trainer.args, **ONE_STEP})

    def report(self) -> dict[str, Any]:
        """Rehearse the run; return what is to be known about it before it is started.

        Raises:
            LaminaError: The run could not do it either.
        """
        self.run.data.find()
        ready, memory = prepared(self.run.seed, self.run.num_threads), self.run.advising()
        with ready, memory, tempfile.TemporaryDirectory() as name:
            return self._report(Path(name))

    def _report(self, scratch: Path) -> dict[str, Any]:
        run, plan, free = self.run, self.plan, free_memory_bytes()
        arguments = run.trainer.arguments(scratch, liger=self.run.liger)
        if plan.source is not None:
            refuse_too_large(run.planned_memory, free)
        run.refuse_misfits()
        tokenizer = run.load_tokenizer()
        rows = run.load_feed(tokenizer)
        packs = packed({"train": rows.train.rows, "eval": rows.eval.rows}, arguments)
        model = run.load_model(tokenizer)
        form = run.export.form_of(plan, model, run.adapter.name)
        parameters = model.num_parameters()
        trainer = self._trainer(model, tokenizer, rows, scratch)
        step = self._step(trainer)
        steps = total_steps(len(packs["train"]), arguments, self.processes)
        footprint = self._footprint(trainer, form, scratch, steps, free)
        return {
            "num_layers": plan.num_layers,
            "kept_layers": list(plan.kept_layers),
            "parameters": parameters,
            "trainable_parameters": trainer.trainable_parameters(),
            "form": form,
            "device": device_name(),
            "step": step,
            "footprint": {**asdict(footprint), "disk": footprint.disk},
            "steps": steps,
            "processes": self.processes,
            "batch": batch_size(arguments, self.processes),
            "data": rows.packed(packs, self.run.max_seq_length),
            "sample": [spans(row, tokenizer) for row in rows.train.rows.select(shown(rows))],
        }

    def _trainer(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Feed,
        scratch: Path,
    ) -> "TokenLossTrainer":
        """Build the trainer of one step, over the longest rows: they take the most memory."""
        run = replace(self.run, trainer=self.one_step)
        longest = replace(rows.train, rows=rows.train.rows.select(self._longest(rows)))
        arguments = self.one_step.arguments(scratch, liger=self.run.liger)
        few = replace(rows, train=longest)
        return run.build_trainer(model, tokenizer, few, arguments, [])

    def _longest(self, rows: Feed) -> list[int]:
        """Return the longest rows' indices, as many as fill the forward pass of one step."""
        lengths = [len(ids) for ids in rows.train.rows["input_ids"]]
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        batch = self.run.per_device_train_batch_size
        room = batch * self.run.max_seq_length if self.run.packing else 0
        chosen: list[int] = []
        while order and (len(chosen) < batch or sum(lengths[i] for i in chosen) < room):
            chosen.append(order.pop(0))
        return chosen

    def _step(self, trainer: "TokenLossTrainer") -> dict[str, float]:
        logger.info("one step on the longest rows")
        began = time.monotonic()
        with self.run.advising(trainer):
            outcome = trainer.train()
        if not outcome.training_loss < float("inf"):
            raise ConfigError(f"the first step's loss is {outcome.training_loss}: check the data")
        return {
            "loss": outcome.training_loss,
            "tokens": trainer.state.num_input_tokens_seen,
            "seconds": time.monotonic() - began,
        }

    def _footprint(
        self,
        trainer: "TokenLossTrainer",
        form: "Form",
        scratch: Path,
        steps: int,
        free: int,
    ) -> Footprint:
        model, run = trainer.model, self.run
        every = weight_bytes(model.parameters()) + scale_bytes(model)
        ours = weight_bytes(trained(model))
        optimizer = state_bytes(trainer.optimizer.state)
        trainer.processing_class.save_pretrained(scratch / "tokenizer")
        beside = folder_bytes(scratch / "tokenizer")
        saved = every if form == "model" else ours
        dtype = loading.torch_dtype(run.export.dtype, automatic=run.weights_dtype)
        # An adapter's weights are merged into the model's.
        own = 0 if form == "model" else trainer.trainable_parameters()
        whole = (model.num_parameters() - own) * dtype.itemsize + beside
        finals = {"adapter": ours + beside, "both": ours + beside + whole}
        return Footprint(
            weights=every,
            gradients=ours,
            optimizer=optimizer,
            peak_memory=peak_memory_bytes(),
            free_memory=free,
            checkpoint=saved + optimizer + beside,
            checkpoints=most_checkpoints(run.save_total_limit, steps, run.eval_steps),
            final=finals.get(form, whole),
            free_disk=free_disk_bytes(run.folder),
        )


def shown(rows: Feed) -> range:
    """Return which training rows are shown."""
    return range(min(SAMPLE_ROWS, len(rows.train.rows)))


def spans(row: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    """Return a row's text in pieces, each trained or not.

    Args:
        row: input_ids and labels.
        tokenizer: Decodes them, special tokens included.
    """
    marked = list(zip(row["input_ids"], row["labels"], strict=True))
    groups = groupby(marked, key=lambda pair: pair[1] != IGNORED)
    return [
        {"text": tokenizer.decode([token for token, _ in group]), "trained": is_trained}
        for is_trained, group in groups
    ]
