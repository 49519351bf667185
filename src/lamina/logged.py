"""What a run is called, and what its loggers show of it."""

import re
from collections.abc import Sequence
from pathlib import Path

from lamina.experiment import Experiment
from lamina.export.card import healing
from lamina.heal.callbacks.settings import Context
from lamina.heal.repair.methods import NONE
from lamina.heal.resume import Start
from lamina.measure.results import Record

IN_NAME = tuple(
    "model= model. selector= adapter= trainer=none repair= depth.keep_layers= "
    "depth.layer_to_drop=".split()
)
"""Overrides that the names of a plan, a repair and an adapter express."""

MAX_NAME = 120
"""Characters; file systems allow 255 bytes."""


def run_name(experiment: Experiment, own: Sequence[str]) -> str:
    """Return the run's layers, adapter and a sweep job's `own` overrides; also a folder's name."""
    further = (override.lstrip("+") for override in own if not override.startswith(IN_NAME))
    settings = (re.sub(r"^[^=]*\.(?=\w*=)", "", override) for override in further)
    repair = [experiment.repair] if experiment.repair != NONE else []
    adapter = experiment.adapter_name or "untrained"
    parts = "-".join([experiment.plan.name, *repair, adapter, *settings])
    return re.sub(r"[^\w.,=-]+", "_", parts, flags=re.ASCII)[:MAX_NAME]


def context(experiment: Experiment, record: Record, start: Start) -> Context:
    """Return what loggers and callbacks may know about the run."""
    plan, name, settings = experiment.plan, record.content["name"], experiment.parameters
    given = (override.lstrip("+") for override in record.own)
    own = dict(each.partition("=")[::2] for each in given if not each.startswith(IN_NAME))
    compared = {
        "model_name": experiment.model_name,
        "layers": plan.name,
        "kept_layers": len(plan.kept_layers),
        "adapter": experiment.adapter_name or "none",
        **(healing(settings) if experiment.trainer.trains else {}),
    }
    logs = Path(experiment.logging_dir).expanduser().absolute()
    return Context(
        run_dir=Path(experiment.run_dir).absolute(),
        logging_dir=logs / plan.model_type / name,
        run_name=name,
        tags=(plan.model_type, experiment.adapter_name or "untrained"),
        hyperparameters=own | compared,
        changed={*own, "layers", "adapter"},
        config=settings,
        resume_step=start.step,
        history=record.content["history"],
        metrics=record.content["metrics"],
        tasks=record.content["evaluation"],
    )
