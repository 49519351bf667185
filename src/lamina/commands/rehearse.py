"""dry_run=true: what a run would do and take."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lamina.errors import ConfigError
from lamina.measure.results import DRY_RUN_FILE, write_json
from lamina.runtime import distributed


def rehearse(config: DictConfig, folder: Path, processes: int) -> None:
    """Print what the run would do and take, and write it to dry_run.json; one process does.

    Args:
        config: The checked config.
        folder: The run folder.
        processes: That would share the training.

    Raises:
        LaminaError: The run could not do it either.
    """
    from rich.console import Console

    from lamina.dry_run import Rehearsal
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
