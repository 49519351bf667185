"""Checks values that a config passes on to TRL's SFTConfig and PEFT's LoraConfig.

library_fields.json lists their fields (`make fields`): importing SFTConfig itself takes seconds. It
has each library's oldest version, and what newer ones change.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

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

LIBRARIES = {"SFTConfig": ("transformers", "trl"), "LoraConfig": ("peft",)}
"""The packages that define each class's fields, its own last."""

TRAINER_ADVICE = {
    "set output_dir=FOLDER": "output_dir",
    "choose logger=tb, wandb, both or none": (
        "report_to trackio_space_id trackio_bucket_id trackio_static_space_id"
    ),
    "set logger.wandb.name=NAME": "run_name",
    "set wandb_project=NAME": "project",
    "choose callbacks=default or none; ours is the only progress line": "disable_tqdm",
    "set resume=auto or never; the run folder has the checkpoints": "resume_from_checkpoint",
    "set HF_TOKEN in the environment or in .env": "hub_token push_to_hub_token",
    "python -m train always trains": "do_train",
    "set trainer.args.eval_strategy": "do_eval evaluation_strategy",
    "choose evaluation=default or none": "do_predict",
    "the launcher decides it": "local_rank",
    "set parallel=ddp or fsdp": "parallelism_config",
    "set parallel=fsdp": (
        "fsdp fsdp_config sharded_ddp fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap"
    ),
    "set kernels=liger": "use_liger_kernel use_liger",
    "Lamina loads the model: set model_name, dtype and backend": "model_init_kwargs",
    "code of a model's repository is never run": "trust_remote_code",
    "set data.chat_template=NAME or FILE": "chat_template_path",
    "the tokenizer is the model's own": "eos_token pad_token",
    "Lamina tokenizes the rows: choose data=jsonl, hub or disk": (
        "dataset_text_field dataset_kwargs dataset_num_proc"
    ),
    "rows are cut at their end: set max_seq_length=TOKENS": "truncation_mode",
    "set data.loss_on=auto, assistant, completion or all": (
        "completion_only_loss assistant_only_loss"
    ),
    "the trainer gets token ids and labels, nothing else": "remove_unused_columns label_names",
    "set max_seq_length=TOKENS": "max_seq_length",
    "set warmup_ratio=SHARE": "warmup_ratio",
    "set logging_dir=FOLDER": "logging_dir",
    "set trainer.args.use_cpu": "no_cuda",
    "leave it out; the device is found": "use_mps_device",
    "leave it out": "use_ipex dataset_batch_size past_index mp_parameters tpu_num_cores",
    "set trainer.args.train_sampling_strategy=group_by_length": "group_by_length",
    "leave it out; result.json has tokens_per_second": "include_tokens_per_second",
    "leave it out; weights are always saved as safetensors": "save_safetensors",
    "set hydra.run.dir to a new folder": "overwrite_output_dir",
    "set trainer.args.torch_compile_backend": "torchdynamo",
    "leave it out; the tokenizer is the model's own": "tokenizer processing_class",
    "use rows with messages, prompt and completion, or text": "formatting_func",
    "set adapter.NAME=VALUE": "peft_config",
    "set dtype=bfloat16 or float32": "torch_dtype",
    "set packing": "num_of_sequences chars_per_token",
    "set optim=adafactor": "adafactor",
    "set per_device_train_batch_size": "per_gpu_train_batch_size",
    "set per_device_eval_batch_size": "per_gpu_eval_batch_size",
    "set trainer.args.fp16 or bf16": "fp16_backend half_precision_backend fp16_opt_level",
    "set torch_compile=true": "jit_mode_eval",
    "leave it out; sweeps are Hydra's --multirun": "ray_scope",
    "set trainer.args.debug": "tpu_metrics_debug",
    "set trainer.args.ddp_backend": "xpu_backend",
    "set trainer.args.accelerator_config.dispatch_batches": "dispatch_batches",
    "set trainer.args.accelerator_config.split_batches": "split_batches",
    "set trainer.args.include_for_metrics": "include_inputs_for_metrics",
    "set trainer.args.hub_model_id": "push_to_hub_model_id",
    "set trainer.args.hub_model_id=ORGANIZATION/NAME": "push_to_hub_organization",
}
"""What to do instead of setting fields of SFTConfig, of today's version or another one."""

ADAPTER_ADVICE = {
    "set adapter.alpha": "lora_alpha",
    "set adapter.dropout": "lora_dropout",
    "it is always CAUSAL_LM": "task_type",
    "choose adapter=lora, dora, qlora or full": "peft_type",
    "PEFT finds the model's class": "auto_mapping",
    "PEFT writes its own": "peft_version",
    "set model_name": "base_model_name_or_path",
    "it is the model's own": "revision",
    "an adapter is trained here": "inference_mode",
    "the kept layers decide it: choose model=dropped, pruned or layers": "layer_replication",
    "set adapter.r": "lora_r rank",
    "set adapter.target_modules": "enable_lora",
    "set export.form=merged": "merge_weights",
    "choose adapter=qlora": "use_qlora",
    "it is off until the prompt has these tokens, and neither a merged nor a reloaded model knows "
    "them; leave it out": "alora_invocation_tokens",
}
"""The same for LoraConfig, with names of other libraries."""


def problems(run: Parameters) -> Iterator[str]:
    """Name what is wrong in trainer.args and in the adapter's fields for PEFT."""
    advice = by_field(TRAINER_ADVICE)
    for key, value in run.trainer.args.items():
        # An argument that takes its value from a shared parameter is reported under that key.
        path = "" if key in vars(run) and vars(run)[key] == value else "trainer.args."
        if problem := _problem("SFTConfig", key, value, advice):
            yield f"{path}{key}={value}: {problem}"
    if isinstance(run.adapter, Lora):
        advice = by_field(ADAPTER_ADVICE)
        if isinstance(run.adapter, Dora):
            advice["use_dora"] = "adapter=dora is true, adapter=lora false"
        given = {"target_modules": run.adapter.target_modules, **run.adapter.further}
        for key, value in given.items():
            if problem := _problem("LoraConfig", key, value, advice):
                yield f"adapter.{key}={value}: {problem}"


def counterpart(key: str) -> str | None:
    """Say what to write today for a library's field, NAME, or lora.NAME of an adapter."""
    section, _, name = key.rpartition(".")
    if section not in ("", "lora"):
        return None
    in_adapter = section == "lora"
    advice = by_field(ADAPTER_ADVICE if in_adapter else TRAINER_ADVICE)
    if name in advice:
        return f"today: {advice[name]}"
    if name not in fields_of("LoraConfig" if in_adapter else "SFTConfig"):
        return None
    place = f"{'adapter' if in_adapter else 'trainer.args'}.{name}"
    return f"today it is {place}, in the migrated file or on the command line"


def by_field(advice: Mapping[str, str]) -> dict[str, str]:
    """Return the advice on each field of a table."""
    return {name: each for each, names in advice.items() for name in names.split()}


def _problem(name: str, key: str, value: Any, advice: Mapping[str, str]) -> str | None:
    library, known = LIBRARIES[name][-1], fields_of(name)
    if key in advice and key in known:
        return f"not set here: {advice[key]}"
    if key in advice:
        return f"not a field of {name} in {library} {version(library)}: {advice[key]}"
    if key in known:
        return refusal(known[key], value)
    guess = did_you_mean(key, sorted({*known} - {*advice}))
    return "no such key" + (guess or f"; use a field of {library}'s {name}")


@cache
def fields_of(name: str) -> dict[str, dict[str, Any]]:
    """Return the fields of a class: the types, values, items and keys that each one accepts."""
    table = json.loads(Path(__file__).with_name("library_fields.json").read_text(encoding="utf-8"))
    found = dict[str, dict[str, Any] | None]()
    for library in LIBRARIES[name]:
        found |= fields_in(table, library, Version(version(library)))
    return {field: taken for field, taken in found.items() if taken is not None}


def fields_in(
    table: Mapping[str, Mapping[str, Any]], library: str, latest: Version
) -> dict[str, dict[str, Any] | None]:
    """Return a library's fields up to a version; those that it has dropped are None."""
    versions = sorted(Version(each[1]) for each in map(str.split, table) if each[0] == library)
    found = dict[str, dict[str, Any] | None]()
    for each in versions:
        if each <= latest:
            found |= table[f"{library} {each}"]
    return found


def refusal(field: Mapping[str, Any], value: Any) -> str | None:
    """Say what a field accepts, if it does not accept a value."""
    if _takes(field, value):
        return None
    named = list(dict.fromkeys(_names(field)))
    if len(named) > LISTED_CHOICES:
        guess = did_you_mean(str(value), named) or f", such as {named[0]}"
        return f"not one of its {len(named)} choices{guess}"
    return f"{'use' if 'values' in field else 'expected'} {either(named)}"


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
