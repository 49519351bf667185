"""The peer of overhead.py and gpu.py: a training written by hand with TRL, without Lamina.

    python benchmarks/harness/plain_trl.py SETTINGS.json

SETTINGS.json holds `model` (a folder), `loading` (arguments of from_pretrained), `layers` (how many
of the first ones to train; null: all), `rows` (JSON-lines files by split), `rank` (of the adapter;
null: train every weight) and `arguments` (of SFTConfig).
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer


def main(settings: dict[str, Any]) -> None:
    """Train; evaluate and save as the arguments say."""
    set_seed(42)
    folder, layers, rank = settings["model"], settings["layers"], settings["rank"]
    config = AutoConfig.from_pretrained(folder)
    if layers is not None:
        config.num_hidden_layers = layers
        config.layer_types = config.layer_types[:layers]
    arguments = SFTConfig(
        packing=True,
        lr_scheduler_type="linear",
        warmup_steps=0.03,
        weight_decay=0.01,
        gradient_accumulation_steps=1,
        seed=42,
        data_seed=42,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        **settings["arguments"],
    )
    rows = load_dataset("json", data_files=settings["rows"])
    adapter = LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", r=rank, lora_alpha=rank
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, config=config, **settings["loading"]),
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=rows["train"],
        eval_dataset=rows.get("eval"),
        peft_config=None if rank is None else adapter,
    )
    trainer.train()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
