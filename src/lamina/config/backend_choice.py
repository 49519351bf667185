"""Chooses a run's backend; `lamina.heal.backends` says what each one supports."""

from collections.abc import Iterator
from dataclasses import asdict

from omegaconf import DictConfig

from lamina.config.binding import bind
from lamina.config.parameters import Parameters
from lamina.depth.variants import Scratch
from lamina.errors import ConfigError
from lamina.heal.backends import unsloth
from lamina.heal.backends.transformers import Transformers
from lamina.heal.backends.unsloth import Unsloth
from lamina.heal.distillation.settings import Distill
from lamina.heal.repair.methods import NONE
from lamina.runtime.device import visible_devices

WITHOUT_PACKING = (
    "backend=unsloth sets packing=false: on a CPU Unsloth cannot keep packed documents apart; each "
    "sequence is one document, so a step reads fewer tokens"
)


def problems(run: Parameters) -> Iterator[str]:
    """Name what Unsloth does not support in a run that chose it; a hub model is not read."""
    if isinstance(run.backend, Unsloth):
        yield from _unsupported(run)
        local = run.model_name.startswith((".", "/", "~"))
        if unsloth.is_installed() and local and not isinstance(run.model, Scratch):
            yield from unsloth.unsupported_family(run.model_name)


def choose_backend(config: DictConfig, processes: int) -> list[str]:
    """Resolve backend=auto in a checked config, in place; return notes for the log and the record.

    On a CPU Unsloth also turns packing off. A LaminaError if the model cannot be found, or the
    chosen backend cannot train it.
    """
    notes: list[str] = []
    run = bind(config)
    chosen = run.backend
    if isinstance(chosen, unsloth.Auto):
        obstacle = _obstacle_to_unsloth(run, processes)
        chosen = Transformers() if obstacle else Unsloth(statistics=chosen.statistics)
        kind = type(chosen)
        config.backend = {"_target_": f"{kind.__module__}.{kind.__name__}", **asdict(chosen)}
        notes.append(f"backend={chosen.name}: {obstacle or 'it supports this run'}")
    if not isinstance(chosen, Unsloth):
        return notes
    refused = list(unsloth.unsupported_family(run.model_name))
    if processes > 1:
        refused.insert(
            0,
            f"backend=unsloth trains in one process on one GPU, and distributed={run.distributed} "
            f"makes {processes}: set distributed=none, or choose backend=transformers",
        )
    if refused:
        raise ConfigError("\n".join(refused))
    if not visible_devices() and config.trainer.args.get("packing"):
        config.packing = config.trainer.args.packing = False
        if "eval_packing" in config.trainer.args:
            config.trainer.args.eval_packing = False
        notes.append(WITHOUT_PACKING)
    return notes


def needs_own_process(config: DictConfig) -> bool:
    """Whether a run's backend patches its process, which no other run may then share."""
    return isinstance(bind(config.backend), Unsloth)


def _obstacle_to_unsloth(run: Parameters, processes: int) -> str | None:
    """Return the first reason why auto does not choose Unsloth."""
    if not unsloth.is_installed():
        return "Unsloth is not installed"
    if not visible_devices():
        return "there is no GPU for Unsloth"
    if processes > 1:
        return f"Unsloth trains in one process, and there are {processes}"
    reasons = [*_unsupported(run), *unsloth.unsupported_family(run.model_name)]
    return reasons[0].rpartition(": ")[0] if reasons else None


def _unsupported(run: Parameters) -> Iterator[str]:
    if run.repair != NONE:
        yield f"repair={run.repair} needs plain transformers' layers: choose backend=transformers"
    if not run.trainer.trains:
        yield "trainer=none trains nothing that Unsloth could speed up: choose backend=transformers"
    if isinstance(run.trainer, Distill):
        yield (
            "trainer=distill needs the hidden states of a forward pass that Unsloth replaces: "
            "choose backend=transformers, or trainer=sft"
        )
    if run.ladder.keep_layers:
        yield (
            f"{run.ladder.given}: Unsloth trains one model in a process: choose "
            "backend=transformers"
        )
    decided = {key: getattr(run, key) for key in Unsloth.decides}
    yield from unsloth.unsupported(run.model, run.adapter, run.trainer.args, decided)
