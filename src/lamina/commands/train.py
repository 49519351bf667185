"""`python -m train`: compose, check, instantiate, execute."""

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from lamina.config.composition import COMPOSITION_ERRORS, explain
from lamina.config.paths import conf_dir, load_dotenv
from lamina.config.preflight import preflight
from lamina.config.schema import register
from lamina.errors import LaminaError
from lamina.measure.results import Record

logger = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def train(config: DictConfig) -> None:
    """Run one job: everything that can be refused is refused before a weight is read."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    record = Record(folder, list(HydraConfig.get().overrides.task))
    with record.outcome():
        preflight(config)
        run = instantiate(config)
        run.execute(record)
    show(record, folder)


def show(record: Record, folder: Path) -> None:
    """Print a finished run's main figures."""
    from rich.console import Console

    from lamina.measure.summary import summary

    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    Console().print(summary(record.content, str(shown)))


def main() -> None:
    """Run the command; errors addressed to the user come without a traceback."""
    register()
    load_dotenv()
    # Hydra prints composition errors its own way unless it is told to raise them.
    debugging = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        train()
    except LaminaError as error:
        _fail(str(error), debugging)
    except COMPOSITION_ERRORS as error:
        _fail(explain(error, sys.argv[1:]), debugging)
    except KeyboardInterrupt:
        _fail("interrupted; start the same command in the same folder to go on", debugging)


def _fail(message: str, debugging: bool) -> None:
    if debugging:
        raise
    sys.stderr.write(f"error: {message}\n")
    sys.exit(1)
