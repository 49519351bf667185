"""`lamina evaluate`: what a model gets in tasks, its loss on rows, and its speed."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lamina.commands.app import app
from lamina.config.binding import bind
from lamina.config.preflight import preflight
from lamina.errors import ConfigError
from lamina.measure.tasks.files import EVALUATION_FILE, ITEMS_FILE, read_evaluation
from lamina.measure.tasks.items import read_tasks
from lamina.runtime.console import console, quiet_libraries
from lamina.runtime.device import memory_errors
from lamina.runtime.lock import locked
from lamina.runtime.paths import short_path

if TYPE_CHECKING:
    from lamina.config.parameters import EvaluationParameters
    from lamina.export.loadable import Loadable
    from lamina.measure.protocol import Protocol

logger = logging.getLogger(__name__)

HELP = """\
usage: lamina evaluate model_name=MODEL [GROUP=OPTION ...] [KEY=VALUE ...]

Run a model of the hub or of a folder, or what a run made of one, through tasks, and measure its
speed. Writes evaluation.json and items.jsonl, which lamina report compares, and prints the figures.
Started again with the same hydra.run.dir, a command that was stopped resumes.

usual calls:
  lamina evaluate model_name=PATH 'evaluation.tasks=[items.jsonl]'       items of your own
  lamina evaluate model_name=RUN 'evaluation.tasks=[arc_easy,piqa]'      tasks of lm-eval
  lamina evaluate ... evaluation.task_settings.limit=200                 the first 200 of each
  lamina evaluate model_name=PATH evaluation=default data=jsonl data.train=FILE data.eval=FILE
  lamina evaluate model_name=PATH 'evaluation.tasks=[]' 'evaluation.speed.batch_sizes=[1,8]'

keys, all described in docs/parameters.md:
  model    model_name, dtype, num_threads
  tasks    evaluation.tasks, evaluation.agreement, evaluation.task_settings.few_shot
           evaluation.task_settings.limit, evaluation.task_settings.template
           evaluation.task_settings.thinking, evaluation.task_settings.max_new_tokens
           evaluation.task_settings.window, evaluation.task_settings.stride
           evaluation.task_settings.bos, evaluation.task_settings.batch_tokens
  rows     data=hub|disk|jsonl|json|csv|parquet|synthetic with the keys that training has
           max_seq_length
  speed    evaluation.speed.batch_sizes, evaluation.speed.prompt_tokens
           evaluation.speed.new_tokens, evaluation.speed.repeats
  files    hydra.run.dir
"""


@app("evaluate")
def main(config: DictConfig) -> None:
    """Evaluate one model."""
    preflight(config)
    settings, folder = bind(config), Path(HydraConfig.get().runtime.output_dir)
    logger.info("run folder: %s", short_path(folder))
    tasks = read_tasks(settings.evaluation.tasks, settings.evaluation.task_settings)
    named = [task.name for task in tasks] + (["rows of data"] if settings.data else [])
    if settings.evaluation.speed.batch_sizes:
        named.append("speed")
    if not named:
        raise ConfigError(
            "nothing to evaluate: set evaluation.tasks, data or evaluation.speed.batch_sizes"
        )
    logger.info("runs: evaluation of model_name=%s: %s", settings.model_name, ", ".join(named))
    with locked(folder, "hydra.run.dir"):
        evaluate(settings, folder)
    from lamina.report.evaluation_table import evaluation_rows
    from lamina.report.run_summary import figures_table

    out = console()
    out.print(figures_table([*evaluation_rows(read_evaluation(folder))]))
    files = f"{short_path(folder)}/{EVALUATION_FILE}, {ITEMS_FILE}"
    out.print(files, style="dim", highlight=False)


def evaluate(settings: "EvaluationParameters", folder: Path) -> None:
    """Measure a model, and write the results into a folder."""
    from lamina.export.loadable import loadable
    from lamina.measure.protocol import figures
    from lamina.measure.resumable import Place

    model = loadable(settings.model_name, settings.dtype)
    if settings.data:
        settings.data.find()
    quiet_libraries()
    if settings.num_threads:
        import torch

        torch.set_num_threads(settings.num_threads)
    place = Place(
        folder=str(folder),
        role="model",
        name=model.ref.name,
        revision=model.ref.revision,
        kept_layers=model.kept_layers,
    )
    with memory_errors("the model", lambda: "use dtype=bfloat16, or a machine with more memory"):
        figures(model.ref, protocol(settings, model), place)


def protocol(settings: "EvaluationParameters", model: "Loadable") -> "Protocol":
    """Return how the model is measured; tokenizes the rows of data."""
    from lamina.data.feed import feed
    from lamina.depth.loading import refuse_long_sequences, refuse_unknown_tokens
    from lamina.measure.protocol import Protocol
    from lamina.weights.source import resolve

    length, whole = settings.max_seq_length, model.original or model.ref
    rows = []
    if settings.data:
        tokenizer = model.ref.load_tokenizer()
        rows = feed(settings.data, tokenizer, max_seq_length=length, num_prompts=0).eval_rows()
        ids = [row["input_ids"] for row in rows]
        if whole.kept_layers is not None:  # else the original of a run's final/ is gone
            source = resolve(whole.name, whole.revision)
            refuse_unknown_tokens(source, tokenizer, ids)
            refuse_long_sequences(source, max(map(len, ids)), "max_seq_length: longest row")
    return Protocol(
        rows=rows,
        prompts=(),
        max_tokens=length,
        max_new_tokens=1,
        isolated=False,
        wanted=settings.evaluation,
        original=model.original,
    )
