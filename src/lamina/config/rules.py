"""Rules that involve several groups; a rule within one group is its settings' `problems`."""

import os
from collections.abc import Iterator
from pathlib import Path

from lamina.config import backend_choice
from lamina.config.parameters import Parameters
from lamina.config.security import ALLOW, allowed
from lamina.data.answers.settings import VLLM_KEY
from lamina.depth.plan import refuse_unusable
from lamina.depth.protection import parse_protection
from lamina.depth.selection import NoScores, ScoresNeededError
from lamina.depth.surgery import layer_count, layer_kinds
from lamina.depth.variants import Original, Scratch
from lamina.errors import LaminaError
from lamina.heal import kernels, packing
from lamina.heal.adapters import Partial
from lamina.heal.callbacks.loggers import WandB
from lamina.heal.repair.methods import NONE
from lamina.heal.resume import KEYWORDS, given_checkpoint
from lamina.weights.source import resolve

MANY_LAYERS = 10_000
"""More layers than any model has: a choice among them fails only for want of scores."""


def problems(run: Parameters) -> Iterator[str]:
    """Name settings that contradict each other, or that this machine does not support."""
    arguments = run.trainer.args
    if run.max_steps == -1 and run.num_train_epochs <= 0:
        yield f"num_train_epochs={run.num_train_epochs}: use a value above 0"
    yield from run.budget.conflicts(arguments)
    yield from run.ladder.conflicts(
        run.model, run.export.form, run.resume, arguments, run.trainer.name, run.repair
    )
    yield from packing.conflicts(arguments, run.max_seq_length, run.attention)
    yield from run.adapter.conflicts(run.model, run.export.form)
    try:
        given_checkpoint(run.resume)
    except LaminaError as error:
        yield str(error)
    yield from run.trainer.conflicts(
        run.model, run.adapter, run.parallel, run.distributed, run.kernels
    )
    if problem := kernels.attention_problem(run.attention, run.weights_dtype):
        yield problem
    if run.kernels == "liger":
        yield from kernels.liger_problems(arguments)
    yield from backend_choice.problems(run)
    yield from _answer_problems(run)
    yield from _untrained_problems(run)
    yield from _repair_problems(run)
    yield from _only_by_user(run)
    yield from scan_problems(run)


def _answer_problems(run: Parameters) -> Iterator[str]:
    """Name what keeps the original model from answering the prompts of training rows."""
    if run.data.answers != "original":
        return
    if isinstance(run.model, Scratch):
        yield "data.answers=original: model=scratch has no original: use data.answers=given"
    settings = run.data.answer_settings
    if run.adapter.in_4bit and settings.vllm not in ("auto", "none"):
        yield (
            f"{VLLM_KEY}={settings.vllm}: with adapter=qlora the original answers from 4-bit "
            f"weights, in transformers: use {VLLM_KEY}=none"
        )
    new = settings.max_new_tokens
    if new >= run.max_seq_length:
        yield (
            f"data.answer_settings.max_new_tokens={new}: max_seq_length={run.max_seq_length} "
            "leaves no room for a prompt: lower it"
        )


def _untrained_problems(run: Parameters) -> Iterator[str]:
    """Name what trainer=none leaves nothing to do for."""
    if run.trainer.trains:
        return
    if run.export.form in ("adapter", "both"):
        yield f"export.form={run.export.form}: trainer=none trains no adapter: leave it out"
    if run.adapter.in_4bit:
        yield "adapter=qlora: trainer=none trains no adapter beside 4-bit weights: leave it out"
    if run.data.answers == "original":
        yield "data.answers=original has no use with trainer=none: use data.answers=given"
    if run.resume not in KEYWORDS:
        yield f"resume={run.resume} has no use with trainer=none: leave it out"
    if run.dry_run:
        yield "dry_run=true takes a training step, and trainer=none has none: leave out one of them"


def _repair_problems(run: Parameters) -> Iterator[str]:
    """Name what cannot be repaired, and what would need the base as it was."""
    if run.repair == NONE:
        return
    if isinstance(run.model, Original | Scratch):
        kind = run.model.model_type
        yield f"repair={run.repair}: model={kind} has no removed layers: use repair=none"
    if run.export.form in ("adapter", "both"):
        yield (
            f"export.form={run.export.form}: repair={run.repair} changes the base, which an "
            "adapter alone cannot rebuild: set export.form=merged"
        )
    if run.adapter.in_4bit:
        yield (
            f"adapter=qlora: repair={run.repair} changes weights that it quantizes: use "
            "adapter=lora, or repair=none"
        )


def _only_by_user(run: Parameters) -> Iterator[str]:
    """Name settings that only command line or environment may give: uploads, and a program."""
    given = {"trainer.args.push_to_hub=true": run.trainer.args.get("push_to_hub")}
    vllm = run.data.answer_settings.vllm
    given[f"{VLLM_KEY}={vllm}"] = vllm not in ("auto", "none")
    for name, each in run.logger.items():
        is_online = isinstance(each, WandB) and each.mode == "online"
        given[f"logger.{name}.mode=online"] = is_online and os.environ.get("WANDB_MODE") != "online"
    for setting in filter(given.get, given):
        key = setting.partition("=")[0]
        if key not in allowed():
            yield f"{setting}: give it on the command line, or set {ALLOW}={key}"


def scan_problems(run: Parameters) -> Iterator[str]:
    """Name a calibration text that is too short, if the choice of layers or a repair needs one."""
    try:
        if run.repair != NONE:
            raise ScoresNeededError  # it needs the same text
        if not isinstance(run.model, Scratch):
            run.model.kept_layers(MANY_LAYERS, NoScores())
    except ScoresNeededError:
        try:
            run.scan.refuse_less_than(run.max_seq_length)
        except LaminaError as error:
            yield str(error)
    except LaminaError:
        return


def layer_problems(run: Parameters) -> Iterator[str]:
    """Name a missing local model, and layers that it does not have."""
    name = run.model_name
    if not Path(name).expanduser().is_dir() and not name.startswith((".", "/", "~")):
        return  # the run itself reads the config.json of a hub model
    try:
        source = resolve(name)
        if not isinstance(run.model, Scratch):
            with source.reading("config.json"):
                refuse_unusable(source)
                depth = layer_count(source.config)
                known = any(layer_kinds(source.config))  # else the run asks transformers for them
                protected = parse_protection(run.depth.protect, source.config, strict=known)
            yield from run.ladder.refuse_depth(depth)
            kept = run.model.kept_layers(depth, NoScores(), protected)
            if isinstance(run.adapter, Partial):
                yield from run.adapter.refuse_depth(len(kept))
    except LaminaError as error:
        yield str(error)
    except ScoresNeededError:
        return
