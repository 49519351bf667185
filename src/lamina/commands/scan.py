"""`lamina scan`: score every layer of a model in one pass over its weights."""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lamina.commands.app import app
from lamina.config.binding import bind
from lamina.config.preflight import preflight
from lamina.depth.plan import usable_source
from lamina.depth.statistics import Statistics
from lamina.errors import ConfigError
from lamina.experiment import Experiment
from lamina.measure.results import SCAN_FILE
from lamina.runtime.console import console
from lamina.runtime.files import write_json
from lamina.runtime.paths import short_path
from lamina.scan.cached import without_holdout

logger = logging.getLogger(__name__)

HELP = """\
usage: lamina scan [GROUP=OPTION ...] [KEY=VALUE ...]

Score the removal of every layer in one pass over a model's weights, and train nothing. Writes
scan.json, scan.csv and scan.png, and prints the scores.

usual calls:
  lamina scan experiment=quickstart                              the embedded model
  lamina scan model_name=PATH data=jsonl data.train=FILE         your model, your rows
  lamina scan ... scan.tokens=64k scan.sets=4                    more text; how stable is the order?
  lamina scan ... scan.rows=apart                                score only the trained tokens
  lamina scan ... scan.sublayers=true                            attention and MLP apart, too

keys, all described in docs/parameters.md:
  model    model_name, dtype, bf16
  text     data=hub|disk|jsonl|json|csv|parquet|synthetic with the keys that training has
           max_seq_length, seed
  scan     scan.tokens, scan.sets, scan.rows, scan.sublayers
  memory   scan.stream, scan.memory, num_threads
  files    hydra.run.dir
"""


@app("config")
def main(config: DictConfig) -> None:
    """Scan one model."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    scan(prepare(config, folder), folder)


def prepare(config: DictConfig, folder: Path) -> Experiment:
    """Check a config, and say what runs, before anything slow."""
    preflight(config)
    if config.dry_run:
        raise ConfigError(
            "dry_run=true has no meaning in a scan, which trains nothing: leave it out"
        )
    run = bind(config)
    run.scan.refuse_less_than(run.max_seq_length)
    logger.info("run folder: %s", short_path(folder))
    logger.info("runs: scan of model_name=%s", config.model_name)
    return run


def scan(run: Experiment, folder: Path) -> Statistics:
    """Scan a model; write scan.json, scan.csv and scan.png, and print the scores."""
    from lamina.report.page.picture import draw_scan
    from lamina.report.scan_report import scan_table, write_csv

    content = run.scores(usable_source(run.model_name), without_holdout(run.data)).scan()
    found = Statistics.from_dict(content)
    write_json(folder / SCAN_FILE, content)
    write_csv(found, folder / "scan.csv")
    draw_scan(found, folder / "scan.png")
    out = console()
    out.print(scan_table(found, content["provenance"]["dtype"]))
    files = f"{short_path(folder)}/{SCAN_FILE}, scan.csv, scan.png"
    out.print(files, style="dim", highlight=False)
    return found
