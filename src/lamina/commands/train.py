"""`python -m train`: one experiment, or a sweep with --multirun."""

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lamina.commands.app import app, errors_in_one_line, expand_home
from lamina.config.library_fields import counterpart
from lamina.launch.job import dry_run_job, run_job, wait_for_spec
from lamina.launch.sweep import close_sweep
from lamina.launch.worker import work
from lamina.legacy.flag import take_old
from lamina.runtime import distributed
from lamina.runtime.console import console
from lamina.runtime.paths import short_path

HELP = """\
usage: python -m train [--multirun] [GROUP=OPTION ...] [KEY=VALUE ...]     the same: lamina train

Remove layers from a language model, heal what remains, and measure what that cost. With --multirun,
each combination of the values that are separated by commas, or in range(...), is a job of a sweep.

usual calls:
  python -m train experiment=quickstart                    the embedded model: offline, on a CPU
  python -m train model_name=PATH data=jsonl data.train=FILE model=pruned model.keep_layers=24
  python -m train ... dry_run=true                         check everything, take one step
  python -m train --multirun ... model=dropped 'model.layer_to_drop=range(0,36)'
  python -m train ... hydra.run.dir=FOLDER                 where to write; again: continue there

keys, all described in docs/parameters.md:
  model       model_name, depth.protect
              model=original
              model=dropped     model.layer_to_drop (depth.layer_to_drop)
              model=pruned      model.keep_layers (depth.keep_layers), selector
                                model.target_parameters, model.target_bytes
                                ladder.keep_layers
              model=layers      model.keep, model.drop
              model=scratch     model.architecture
  data        data=hub          data.name, data.config, data.train, data.eval
              data=disk         data.path, data.train, data.eval
              data=jsonl        data.train, data.eval; also json, csv, parquet
              data=blend        data.sources: rows of several files, by weight
              data=synthetic    generator.train_rows, generator.eval_rows, generator.seed
              data.eval_fraction, data.max_train_samples, data.max_eval_samples, data.columns
              data.loss_on, data.chat_template, data.on_bad_row, data.max_dropped
              data.answers, data.answer_settings
              max_seq_length, packing
  adapter     adapter=lora|dora|qlora lora.r, lora.alpha, adapter.dropout, adapter.target_modules
              adapter=full|partial    adapter.layers, adapter.head
  training    trainer=sft|distill|none, repair=none|magnitude|closed_form
              learning_rate, lr_scheduler_type, warmup_ratio, weight_decay, optim, seed
              max_steps, num_train_epochs, budget.tokens, per_device_train_batch_size
              gradient_accumulation_steps; any field of TRL's SFTConfig as trainer.args
  evaluation  eval_steps, per_device_eval_batch_size, evaluation=default|none
              evaluation.baseline, evaluation.num_samples, evaluation.max_new_tokens
  memory      bf16, dtype, gradient_checkpointing, activation_offloading, attention, kernels
              torch_compile, num_threads, backend=auto|transformers|unsloth
  processes   distributed, parallel, hydra/launcher=slurm
  files       run_dir, output_dir, logging_dir, save_steps, save_total_limit, resume, dry_run
              export.form, export.dtype
  logs        logging_steps, logger=tb|wandb|both|none, wandb_project
              callbacks=default|early_stopping|none
  scores      scan.tokens, scan.sets, scan.rows, scan.sublayers, scan.stream, scan.memory

flags: --cfg job shows the composed config, --config-dir DIR adds your own, --old OLD.yaml runs a
config of the older form, --hydra-help lists the others.
"""


@app("config", closing=close_sweep)
def train(config: DictConfig) -> None:
    """Run one job."""
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    overrides = OmegaConf.to_container(job.overrides.task, resolve=False)
    if config.dry_run:
        dry_run_job(config, folder, overrides)
    elif result := run_job(config, folder, overrides):
        from lamina.report.run_summary import summary

        console().print(summary(result, short_path(folder)))


def main() -> None:
    """Run the command."""
    with errors_in_one_line():
        if not distributed.is_first():
            work(wait_for_spec())  # in a user's own torchrun; its first process reads the config
            return
        sys.argv[1:] = take_old(expand_home(sys.argv[1:]), counterpart)
    train()
