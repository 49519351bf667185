"""Settings that are passed on to TRL and PEFT: which there are, and which are not given there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any

from lamina.config.library_fields import fields_of
from lamina.errors import nearest
from lamina.heal.adapters import Lora

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
"""Fields of SFTConfig that Lamina decides, and where a person decides them."""

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
"""Names that SFTConfig or SFTTrainer once had."""

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
"""Fields of LoraConfig that Lamina decides or calls otherwise."""

ADAPTER_GONE = {
    "lora_r": "set adapter.r",
    "rank": "set adapter.r",
    "enable_lora": "set adapter.target_modules",
    "merge_weights": "set export.form=merged",
    "use_qlora": "choose adapter=qlora",
}
"""Names that LoRA's settings once had, or have elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Passed:
    """One node of the config whose keys are the fields of a library's settings class."""

    path: str
    """Of the node, with a dot at its end."""

    library: str
    """Package of the class."""

    name: str
    """Of the class, in `lamina.config.library_fields`."""

    elsewhere: Mapping[str, str]
    """Fields that Lamina decides, and where a person does."""

    gone: Mapping[str, str]
    """Names of other versions, and what to write."""

    own: frozenset[str]
    """Keys that are ours, and checked by the schema."""

    def problems(self, given: Mapping[str, Any]) -> Iterator[str]:
        """Name each key that the class does not take, and each value of a wrong type."""
        for key, value in given.items():
            if key not in self.own and (said := self._problem(key, value)):
                yield f"{self.path}{key}={value}: {said}"

    def _problem(self, key: str, value: Any) -> str | None:
        if key in self.elsewhere:
            return f"not set here: {self.elsewhere[key]}"
        known = fields_of(self.name)
        if key in known:
            return known[key].refusal(value)
        if key in self.gone:
            installed = f"{self.library} {version(self.library)}"
            return f"not a field of {self.name} in {installed}: {self.gone[key]}"
        takes = sorted({*known, *self.own} - {*self.elsewhere})
        guess = nearest(key, takes) or f"; give a field of {self.library}'s {self.name}"
        return f"no such key{guess}"


TRAINER = Passed(
    path="trainer.args.",
    library="trl",
    name="SFTConfig",
    elsewhere=TRAINER_ELSEWHERE,
    gone=TRAINER_GONE,
    own=frozenset(),
)
ADAPTER = Passed(
    path="adapter.",
    library="peft",
    name="LoraConfig",
    elsewhere=ADAPTER_ELSEWHERE,
    gone=ADAPTER_GONE,
    own=frozenset(field.name for field in fields(Lora)) - {"further"} | {"_target_"},
)
DORA = replace(
    ADAPTER, elsewhere={**ADAPTER_ELSEWHERE, "use_dora": "adapter=dora is true, adapter=lora false"}
)
"""The same, where the option's name decides one more."""


_NONE = object()


def problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Name what is wrong with trainer.args and adapter.

    Args:
        content: The resolved config.
    """
    arguments = content["trainer"]["args"]
    # What only follows a shared parameter is checked under that one's name.
    shared = {**content, "max_length": content["max_seq_length"]}
    own = {key: value for key, value in arguments.items() if shared.get(key, _NONE) != value}
    yield from TRAINER.problems(own)
    option = str(content["adapter"]["_target_"]).removeprefix("lamina.heal.adapters.")
    if option in ("Lora.of", "QLora.of"):
        yield from ADAPTER.problems(content["adapter"])
    elif option == "Dora.of":
        yield from DORA.problems(content["adapter"])
