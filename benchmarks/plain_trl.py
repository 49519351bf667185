"""The job that overhead.py times, written by hand with TRL and nothing of Lamina.

    python benchmarks/plain_trl.py MODEL TRAIN.jsonl EVAL.jsonl OUTPUT_DIR STEPS

MODEL is a folder with config.json, weights and tokenizer; the rows hold `messages`. The arguments
are those of `python -m train experiment=quickstart`; overhead.py reports any that differ.
"""

import sys

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer


def main(model: str, train: str, held_out: str, output_dir: str, steps: int) -> None:
    """Train a rank-16 adapter for a number of steps; evaluate and save after the last one."""
    set_seed(42)
    arguments = SFTConfig(
        output_dir=output_dir,
        assistant_only_loss=True,
        max_length=512,
        packing=True,
        learning_rate=2e-3,
        lr_scheduler_type="linear",
        warmup_steps=0.03,
        weight_decay=0.01,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=1,
        num_train_epochs=3,
        max_steps=steps,
        eval_strategy="steps",
        eval_steps=steps,
        save_strategy="steps",
        save_steps=steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        seed=42,
        data_seed=42,
        bf16=False,
        gradient_checkpointing=False,
        include_num_input_tokens_seen="non_padding",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )
    rows = load_dataset("json", data_files={"train": train, "eval": held_out})
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", r=16, lora_alpha=16
        ),
    )
    trainer.train()


if __name__ == "__main__":
    base, training_rows, held_out_rows, folder, number = sys.argv[1:]
    main(base, training_rows, held_out_rows, folder, int(number))
