"""Checks values that a config passes on to TRL's SFTConfig and PEFT's LoraConfig.

library_fields.json lists their fields (`make fields`): importing SFTConfig itself takes seconds.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lamina.config.parameters import Parameters
from lamina.errors import did_you_mean, either
from lamina.heal.adapters import Dora, Lora

TYPES: dict[str, tuple[tuple[str, ...], tuple[type, ...]]] = {
    "int": (("a whole number",), (int,)),
    "float": (("a number",), (int, float)),
    "bool": (("true", "false"), (bool,)),
    "str": (("text",), (str,)),
    "list": (("a list",), (list,)),
    "dict": (("a mapping",), (dict,)),
    "null": (("null",), (type(None),)),
}
"""For each type, its values' names in messages, and its Python types."""

LISTED_CHOICES = 12
"""Choices that a message lists at most; beyond that it names only the most similar one."""

LIBRARIES = {"SFTConfig": "trl", "LoraConfig": "peft"}
"""The package of each class."""

TRAINER_ELSEWHERE = {
    "output_dir": "set output_dir=FOLDER",
    "report_to": "choose logger=tb, wandb, both or none",
    "run_name": "set logger.wandb.name=NAME",
    "project": "set wandb_project=NAME",
    "trackio_space_id": "choose logger=tb, wandb, both or none",
    "trackio_bucket_id": "choose logger=tb, wandb, both or none",
    "trackio_static_space_id": "choose logger=tb, wandb, both or none",
    "disable_tqdm": "choose callbacks=default or none; ours is the only progress line",
    "resume_from_checkpoint": "set resume=auto or never; the run folder has the checkpoints",
    "hub_token": "set HF_TOKEN in the environment or in .env",
    "do_train": "python -m train always trains",
    "do_eval": "set trainer.args.eval_strategy",
    "do_predict": "choose evaluation=default or none",
    "local_rank": "the launcher decides it",
    "parallelism_config": "set parallel=ddp or fsdp",
    "fsdp": "set parallel=fsdp",
    "fsdp_config": "set parallel=fsdp",
    "use_liger_kernel": "set kernels=liger",
    "model_init_kwargs": "Lamina loads the model: set model_name, dtype and backend",
    "trust_remote_code": "code of a model's repository is never run",
    "chat_template_path": "the chat template is the model's own",
    "eos_token": "the tokenizer is the model's own",
    "pad_token": "the tokenizer is the model's own",
    "dataset_text_field": "Lamina tokenizes the rows: choose data=jsonl, hub or disk",
    "dataset_kwargs": "Lamina tokenizes the rows: choose data=jsonl, hub or disk",
    "dataset_num_proc": "Lamina tokenizes the rows: choose data=jsonl, hub or disk",
    "truncation_mode": "rows are cut at their end: set max_seq_length=TOKENS",
    "completion_only_loss": "set data.loss_on=auto, assistant, completion or all",
    "assistant_only_loss": "set data.loss_on=auto, assistant, completion or all",
    "remove_unused_columns": "the trainer gets token ids and labels, nothing else",
    "label_names": "the trainer gets token ids and labels, nothing else",
}
"""Fields of SFTConfig that Lamina sets itself, and what to set instead."""

TRAINER_GONE = {
    "evaluation_strategy": "set trainer.args.eval_strategy",
    "max_seq_length": "set max_seq_length=TOKENS",
    "warmup_ratio": "set warmup_ratio=SHARE",
    "logging_dir": "set logging_dir=FOLDER",
    "no_cuda": "set trainer.args.use_cpu",
    "use_mps_device": "leave it out; the device is found",
    "use_ipex": "leave it out",
    "group_by_length": "set trainer.args.train_sampling_strategy=group_by_length",
    "include_tokens_per_second": "leave it out; result.json has tokens_per_second",
    "save_safetensors": "leave it out; weights are always saved as safetensors",
    "overwrite_output_dir": "set hydra.run.dir to a new folder",
    "torchdynamo": "set trainer.args.torch_compile_backend",
    "dataset_batch_size": "leave it out",
    "tokenizer": "leave it out; the tokenizer is the model's own",
    "processing_class": "leave it out; the tokenizer is the model's own",
    "formatting_func": "give rows with messages, prompt and completion, or text",
    "peft_config": "set adapter.NAME=VALUE",
    "torch_dtype": "set dtype=bfloat16 or float32",
    "use_liger": "set kernels=liger",
    "num_of_sequences": "set packing",
    "chars_per_token": "set packing",
    "adafactor": "set optim=adafactor",
    "per_gpu_train_batch_size": "set per_device_train_batch_size",
    "per_gpu_eval_batch_size": "set per_device_eval_batch_size",
    "fp16_backend": "set trainer.args.fp16 or bf16",
    "half_precision_backend": "set trainer.args.fp16 or bf16",
    "fp16_opt_level": "set trainer.args.fp16 or bf16",
    "jit_mode_eval": "set torch_compile=true",
    "past_index": "leave it out",
    "ray_scope": "leave it out; sweeps are Hydra's --multirun",
    "mp_parameters": "leave it out",
    "tpu_num_cores": "leave it out",
    "tpu_metrics_debug": "set trainer.args.debug",
    "xpu_backend": "set trainer.args.ddp_backend",
    "sharded_ddp": "set parallel=fsdp",
    "fsdp_min_num_params": "set parallel=fsdp",
    "fsdp_transformer_layer_cls_to_wrap": "set parallel=fsdp",
    "dispatch_batches": "set trainer.args.accelerator_config.dispatch_batches",
    "split_batches": "set trainer.args.accelerator_config.split_batches",
    "include_inputs_for_metrics": "set trainer.args.include_for_metrics",
    "push_to_hub_model_id": "set trainer.args.hub_model_id",
    "push_to_hub_organization": "set trainer.args.hub_model_id=ORGANIZATION/NAME",
    "push_to_hub_token": "set HF_TOKEN in the environment or in .env",
}
"""Names from other versions of SFTConfig or SFTTrainer, and what to set instead."""

ADAPTER_ELSEWHERE = {
    "lora_alpha": "set adapter.alpha",
    "lora_dropout": "set adapter.dropout",
    "task_type": "it is always CAUSAL_LM",
    "peft_type": "choose adapter=lora, dora, qlora or full",
    "auto_mapping": "PEFT finds the model's class",
    "peft_version": "PEFT writes its own",
    "base_model_name_or_path": "set model_name",
    "revision": "it is the model's own",
    "inference_mode": "an adapter is trained here",
    "layer_replication": "the kept layers decide it: choose model=dropped, pruned or layers",
}
"""Fields of LoraConfig that Lamina sets itself or renames."""

ADAPTER_GONE = {
    "lora_r": "set adapter.r",
    "rank": "set adapter.r",
    "enable_lora": "set adapter.target_modules",
    "merge_weights": "set export.form=merged",
    "use_qlora": "choose adapter=qlora",
}
"""Names of LoRA's settings in other versions or libraries."""


def problems(run: Parameters) -> Iterator[str]:
    """Name what is wrong in trainer.args and in the adapter's fields for PEFT."""
    for key, value in run.trainer.args.items():
        # An argument that takes its value from a shared parameter is reported under that key.
        path = "" if key in vars(run) and vars(run)[key] == value else "trainer.args."
        if problem := _problem("SFTConfig", key, value, TRAINER_ELSEWHERE, TRAINER_GONE):
            yield f"{path}{key}={value}: {problem}"
    if isinstance(run.adapter, Lora):
        elsewhere = ADAPTER_ELSEWHERE
        if isinstance(run.adapter, Dora):
            elsewhere = {**elsewhere, "use_dora": "adapter=dora is true, adapter=lora false"}
        for key, value in run.adapter.further.items():
            if problem := _problem("LoraConfig", key, value, elsewhere, ADAPTER_GONE):
                yield f"adapter.{key}={value}: {problem}"


def _problem(
    name: str, key: str, value: Any, elsewhere: Mapping[str, str], gone: Mapping[str, str]
) -> str | None:
    library, known = LIBRARIES[name], fields_of(name)
    if key in elsewhere:
        return f"not set here: {elsewhere[key]}"
    if key in known:
        return refusal(known[key], value)
    if key in gone:
        return f"not a field of {name} in {library} {version(library)}: {gone[key]}"
    guess = did_you_mean(key, sorted({*known} - {*elsewhere}))
    return "no such key" + (guess or f"; give a field of {library}'s {name}")


@cache
def fields_of(name: str) -> dict[str, dict[str, Any]]:
    """Return the fields of a class: the types, values, items and keys that each one accepts."""
    table = Path(__file__).with_name("library_fields.json")
    return dict(json.loads(table.read_text(encoding="utf-8"))[name])


def refusal(field: Mapping[str, Any], value: Any) -> str | None:
    """Say what a field accepts, if it does not accept a value."""
    if _takes(field, value):
        return None
    named = list(dict.fromkeys(_names(field)))
    if len(named) > LISTED_CHOICES:
        return f"not one of its {len(named)} choices{did_you_mean(str(value), named)}"
    return f"{'give' if 'values' in field else 'expected'} {either(named)}"


def _takes(field: Mapping[str, Any], value: Any) -> bool:
    if any(_is(value, each) for each in field.get("values", ())):
        return True
    if not any(type(value) in TYPES[each][1] for each in field["types"]):
        return not field["types"] and "values" not in field
    if isinstance(value, list) and "items" in field:
        return all(_takes(field["items"], item) for item in value)
    return not isinstance(value, dict) or value.keys() <= {*field.get("keys", value)}


def _is(value: Any, choice: Any) -> bool:
    """Whether a value is a choice; one such as `pissa_niter_[number]` is a pattern."""
    if isinstance(choice, str) and "[" in choice and isinstance(value, str):
        return bool(re.fullmatch(re.sub(r"\[.*?\]", r"\\d+", choice), value))
    return bool(value == choice and type(value) is type(choice))


def _names(field: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names, in messages, of the values that a field accepts."""
    yield from (str(value) for value in field.get("values", ()))
    for each in field["types"]:
        if each == "list" and "items" in field:
            yield f"a list (each item {either(list(_names(field['items'])))})"
        elif each == "dict" and "keys" in field:
            yield f"a mapping with the keys {'/'.join(field['keys'])}"
        else:
            yield from TYPES[each][0]
