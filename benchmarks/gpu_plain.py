"""The training that gpu.py measures, written by hand with TRL and nothing of Lamina.

    python benchmarks/gpu_plain.py SETTINGS.json

SETTINGS.json names model, rows, output_dir, layers, adapter, rank, attention, liger, bf16, length,
batch, steps and logging_steps.
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


def main(asked: dict[str, Any]) -> None:
    """Train the first layers of a model for a number of steps; evaluate and save nothing."""
    set_seed(42)
    config = AutoConfig.from_pretrained(asked["model"])
    config.num_hidden_layers = asked["layers"]
    config.layer_types = config.layer_types[: asked["layers"]]
    model = AutoModelForCausalLM.from_pretrained(
        asked["model"],
        config=config,
        dtype=torch.bfloat16 if asked["bf16"] else torch.float32,
        attn_implementation=asked["attention"],
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
    )
    arguments = SFTConfig(
        output_dir=asked["output_dir"],
        max_length=asked["length"],
        packing=True,
        learning_rate=2e-4,
        lr_scheduler_type="linear",
        warmup_steps=0.03,
        weight_decay=0.01,
        per_device_train_batch_size=asked["batch"],
        gradient_accumulation_steps=1,
        max_steps=asked["steps"],
        eval_strategy="no",
        save_strategy="no",
        logging_steps=asked["logging_steps"],
        seed=42,
        data_seed=42,
        bf16=asked["bf16"],
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
        use_liger_kernel=asked["liger"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )
    rank = asked["rank"]
    adapter = LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", r=rank, lora_alpha=rank
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(asked["model"]),
        train_dataset=load_dataset("json", data_files=asked["rows"], split="train"),
        peft_config=adapter if asked["adapter"] == "lora" else None,
    )
    trainer.train()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
