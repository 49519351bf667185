"""Which backend runs; `lamina.heal.backends` says what each of them can do."""

from collections.abc import Iterator
from dataclasses import asdict

from omegaconf import DictConfig

from lamina.config.binding import bound
from lamina.config.parameters import Parameters
from lamina.depth.variants import Scratch
from lamina.errors import ConfigError, joined
from lamina.heal.backends.transformers import Transformers
from lamina.heal.backends.unsloth import Auto, Unsloth, family_misfits, is_installed, misfits
from lamina.runtime.device import visible_devices

WITHOUT_PACKING = (
    "backend=unsloth: packing=false: on a CPU Unsloth keeps packed documents apart only by not "
    "packing them; each sequence is one document, so a step reads fewer tokens"
)


def problems(run: Parameters) -> Iterator[str]:
    """Name what Unsloth cannot do of a run that chose it; of models only a local one is read."""
    if isinstance(run.backend, Unsloth):
        yield from _misfits(run)
        local = run.model_name.startswith((".", "/", "~"))
        if is_installed() and local and not isinstance(run.model, Scratch):
            yield from family_misfits(run.model_name)


def settle(config: DictConfig, processes: int) -> list[str]:
    """Replace backend=auto by the backend that runs, and adapt the config to its ways.

    Args:
        config: The composed config, after preflight; changed here.
        processes: That share the training.

    Returns:
        Notes for the log and the record.

    Raises:
        LaminaError: The model cannot be found, or the chosen backend cannot train it.
    """
    notes: list[str] = []
    run = bound(config)
    chosen = run.backend
    if isinstance(chosen, Auto):
        against = _against(run, processes)
        chosen = Transformers() if against else Unsloth(statistics=chosen.statistics)
        kind = type(chosen)
        config.backend = {"_target_": f"{kind.__module__}.{kind.__name__}", **asdict(chosen)}
        notes.append(f"backend={chosen.name}: {against or 'it fits this run'}")
    if not isinstance(chosen, Unsloth):
        return notes
    if refused := [*_several(run, processes), *family_misfits(run.model_name)]:
        raise ConfigError(joined(refused))
    if not visible_devices() and config.trainer.args.get("packing"):
        config.packing = config.trainer.args.packing = False
        if "eval_packing" in config.trainer.args:
            config.trainer.args.eval_packing = False
        notes.append(WITHOUT_PACKING)
    return notes


def needs_own_process(config: DictConfig) -> bool:
    """Whether a run's backend patches its process, so that no other run may share it."""
    return isinstance(bound(config.backend), Unsloth)


def _against(run: Parameters, processes: int) -> str | None:
    """Return the first reason for which auto does not choose Unsloth."""
    if not is_installed():
        return "Unsloth is not installed"
    if not visible_devices():
        return "there is no GPU for Unsloth"
    if processes > 1:
        return f"Unsloth trains in one process, and there are {processes}"
    reasons = [*_misfits(run), *family_misfits(run.model_name)]
    return reasons[0].rpartition(": ")[0] if reasons else None


def _misfits(run: Parameters) -> Iterator[str]:
    decided = {key: getattr(run, key) for key in Unsloth.decides}
    return misfits(run.model, run.adapter, run.trainer.args, decided)


def _several(run: Parameters, processes: int) -> Iterator[str]:
    if processes > 1:
        yield (
            f"backend=unsloth trains in one process on one GPU, and distributed={run.distributed} "
            f"makes {processes}: give distributed=none, or choose backend=transformers"
        )
