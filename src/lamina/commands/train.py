"""`python -m train`: one experiment, or a sweep with --multirun."""

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lamina.commands.app import app, errors_in_one_line, expand_home
from lamina.launch.job import dry_run_job, run_job, wait_for_spec
from lamina.launch.sweep import close_sweep
from lamina.launch.worker import work
from lamina.legacy.flag import take_old
from lamina.runtime import distributed
from lamina.runtime.paths import short_path


@app("config", closing=close_sweep)
def train(config: DictConfig) -> None:
    """Run one job."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    overrides = OmegaConf.to_container(job.overrides.task, resolve=False)
    if config.dry_run:
        dry_run_job(config, folder, overrides)
    elif result := run_job(config, folder, overrides):
        from rich.console import Console

        from lamina.report.run_summary import summary

        Console().print(summary(result, short_path(folder)))


def main() -> None:
    """Run the command."""
    with errors_in_one_line():
        if not distributed.is_first():
            work(wait_for_spec())  # in a user's own torchrun; its first process reads the config
            return
        sys.argv[1:] = take_old(expand_home(sys.argv[1:]))
    train()
