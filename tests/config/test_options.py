"""Every option and every experiment composes with every other, and builds a run."""

import json
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from enum import Enum
from itertools import cycle, product
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from packaging.version import Version

from lamina.config.library_fields import (
    ADAPTER_ADVICE,
    TRAINER_ADVICE,
    by_field,
    fields_in,
    fields_of,
    refusal,
)
from lamina.config.preflight import preflight
from lamina.errors import ConfigError
from lamina.experiment import Experiment
from tests.config.conftest import composed
from tests.conftest import REFERENCE, ROOT, train


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


@pytest.fixture(autouse=True)
def _everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composition is tested here, not this machine."""
    for module in ("adapters", "kernels"):
        monkeypatch.setattr(f"lamina.heal.{module}.installed", lambda package: True)


LOGGERS = {
    "tb": {"tensorboard"},
    "wandb": {"wandb"},
    "both": {"tensorboard", "wandb"},
    "none": set[str](),
}


def test_every_promised_option_exists() -> None:
    assert {"original", "dropped", "pruned", "scratch"} <= set(options("model"))
    assert {"lora", "dora", "qlora", "full", "partial"} <= set(options("adapter"))
    assert set(LOGGERS) == set(options("logger"))
    six = {f"{model}{end}" for model in ("original", "dropped", "pruned") for end in ("", "_lora")}
    assert six | {"quickstart", "reference"} <= set(options("experiment"))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_composes_with_every_model_and_adapter(experiment: str) -> None:
    pairs = product(options("model"), options("adapter"))
    for (model, adapter), logger in zip(pairs, cycle(options("logger")), strict=False):
        if model == "scratch" and (adapter == "qlora" or experiment == "heal_answers"):
            continue  # it has no weights to quantize, and no original to answer
        given = [f"experiment={experiment}", f"model={model}", f"adapter={adapter}"]
        chosen = ["model.keep=[0,1,2]", "depth.protect=null"] if model == "layers" else []
        given += [f"logger={logger}", *chosen]
        given += ["ladder.keep_layers=null"] if model != "pruned" else []  # no other has one
        refused = adapter == "qlora" or model == "scratch"
        given += ["trainer=sft"] if refused else []
        given += ["repair=none"] if refused or model == "original" else []
        config = composed(*given)
        preflight(config)
        run = instantiate(config)
        assert isinstance(run, Experiment)
        assert run.model.model_type == model
        assert run.adapter.name == adapter
        assert set(run.logger) == LOGGERS[logger]


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group, option)
        for group in ("data", "evaluation", "callbacks", "trainer")
        for option in options(group)
    ],
)
def test_an_option_composes_and_builds(group: str, option: str) -> None:
    files = {name: ["data.train=rows"] for name in ("csv", "json", "jsonl", "parquet")}
    files["blend"] = ["data.sources={a: {train: rows, weight: 1}}"]
    needed = {**files, "disk": ["data.path=rows"], "tasks": ["evaluation.tasks=[items.jsonl]"]}
    config = composed(f"{group}={option}", *needed.get(option, []))
    preflight(config)
    assert isinstance(instantiate(config), Experiment)


@pytest.mark.parametrize("option", options("selector"))
def test_a_selector_composes_and_reaches_the_model(option: str) -> None:
    config = composed("model=pruned", f"selector={option}")
    preflight(config)
    run = instantiate(config)
    assert run.model.selector == run.selector
    assert config.model.selector == config.selector


DEFAULTS = {
    "model_name": "Qwen/Qwen3-8B",
    "max_seq_length": 4096,
    "learning_rate": 2e-4,
    "warmup_ratio": 0.03,
    "weight_decay": 0.01,
    "packing": True,
    "max_steps": -1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 3,
    "eval_steps": 100,
    "save_steps": 100,
    "save_total_limit": 5,
    "logging_steps": 10,
    "seed": 42,
    "bf16": True,
    "gradient_checkpointing": True,
    "activation_offloading": False,
    "attention": "auto",
    "kernels": "none",
    "torch_compile": False,
    "optim": "adamw_torch_fused",
    "lr_scheduler_type": "linear",
    "repair": "none",
    "wandb_project": "lamina",
    "resume": "auto",
    "output_dir": "run/checkpoints",
    "logging_dir": "run/logs",
}


def test_the_defaults_are_the_promised_ones() -> None:
    config = composed()
    assert {key: config[key] for key in DEFAULTS} == DEFAULTS
    assert (config.lora.r, config.lora.alpha) == (16, 16)
    assert (config.adapter.r, config.adapter.alpha) == (16, 16)
    assert composed("model=dropped").model.layer_to_drop == 16
    assert composed("model=pruned").model.keep_layers == 24


def test_the_shared_parameters_reach_the_trainer() -> None:
    config = composed(
        "learning_rate=1e-3", "warmup_ratio=0.1", "lora.r=4", "max_seq_length=64", "seed=7"
    )
    arguments = instantiate(config).trainer.args
    assert arguments["learning_rate"] == 1e-3
    assert arguments["warmup_steps"] == 0.1
    assert arguments["max_length"] == 64
    assert arguments["seed"] == arguments["data_seed"] == 7
    assert config.adapter.r == 4


def test_kernels_and_memory_reach_the_trainer(tmp_path: Path) -> None:
    config = composed(
        "torch_compile=true", "optim=adamw_8bit", "attention=sdpa", "gradient_checkpointing=false"
    )
    preflight(config)
    run = instantiate(config)
    arguments = run.trainer.arguments(tmp_path, liger=run.kernels == "liger")
    assert arguments.torch_compile
    assert arguments.optim == "adamw_8bit"
    assert not arguments.use_liger_kernel
    assert not arguments.activation_offloading
    assert run.settings["attention"] == "sdpa"
    assert run.settings["kernels"] == "none"


@pytest.mark.parametrize(
    ("adapter", "asked"), [("lora", {}), ("dora", {"use_dora": True}), ("qlora", {})]
)
def test_an_adapter_asks_peft_for_what_its_name_says(adapter: str, asked: dict[str, bool]) -> None:
    run = instantiate(composed(f"adapter={adapter}", "lora.r=4"))
    expected = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none"}
    assert run.adapter.settings() == {**expected, "target_modules": "all-linear", **asked}
    assert run.adapter.in_4bit == (adapter == "qlora")


def test_a_model_from_scratch_has_no_weights_for_four_bits() -> None:
    with pytest.raises(ConfigError) as caught:
        preflight(composed("model=scratch", "adapter=qlora"))
    assert str(caught.value) == (
        "adapter=qlora quantizes existing weights, and model=scratch has none"
    )


def test_an_experiment_can_be_overridden_key_by_key() -> None:
    config = composed("experiment=quickstart", "lora.alpha=32", "depth.keep_layers=6")
    assert (config.lora.r, config.lora.alpha) == (16, 32)
    assert config.model.keep_layers == 6
    assert composed("experiment=quickstart", "model=dropped").model.layer_to_drop == 5


TINY = (
    f"model_name={REFERENCE}",
    "data=synthetic",
    "generator.train_rows=60",
    "generator.eval_rows=8",
    "depth.keep_layers=7",
    "depth.layer_to_drop=5",
    "max_seq_length=128",
    "bf16=false",
    "max_steps=2",
    "budget.tokens=null",
    "eval_steps=2",
    "save_steps=2",
    "gradient_accumulation_steps=1",
    "evaluation=none",
    "logger=none",
)


def test_every_experiment_runs(tmp_path: Path) -> None:
    """All of them in one process, on the shipped model in place of the hub's."""
    names = options("experiment")
    given = (f"experiment={','.join(names)}", f"hydra.sweep.dir={tmp_path}", *TINY)
    done = train(tmp_path / "run", "--multirun", *given, HF_HUB_OFFLINE="1")
    assert done.code == 0, done.errors
    for number, name in enumerate(names):
        result = json.loads((tmp_path / str(number) / "result.json").read_text())
        assert result["status"] == "completed", name
        assert result["adapter"] == instantiate(composed(f"experiment={name}")).adapter.name
        assert result["metrics"]["eval_loss"] > 0
        assert (tmp_path / str(number) / result["final"]).is_dir()


def test_any_further_field_can_be_set_on_the_command_line() -> None:
    config = composed(
        "trainer.args.adam_beta2=0.95",
        "trainer.args.gradient_checkpointing_kwargs.use_reentrant=false",
        "+trainer.args.max_grad_norm=2",
        "adapter.use_rslora=true",
        "adapter.rank_pattern.q_proj=4",
    )
    preflight(config)
    run = instantiate(config)
    assert run.trainer.args["adam_beta2"] == 0.95
    assert run.trainer.args["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert run.trainer.args["max_grad_norm"] == 2
    assert run.adapter.further == {"use_rslora": True, "rank_pattern": {"q_proj": 4}}


@pytest.mark.parametrize(
    ("given", "tokens"), [("16k", 16_000), ("1.6M", 1_600_000), ("4096", 4096)]
)
def test_a_token_budget_takes_suffixes(given: str, tokens: int) -> None:
    config = composed(f"scan.tokens={given}")
    preflight(config)
    assert instantiate(config).scan.tokens == tokens


def test_token_lengths_are_plain_numbers() -> None:
    keys = ("max_seq_length", "evaluation.max_new_tokens")
    config = composed(*(f"{key}=4096" for key in keys), "per_device_train_batch_size=1")
    preflight(config)
    run = instantiate(config)
    assert run.max_seq_length == run.trainer.args["max_length"] == 4096
    assert run.evaluation.max_new_tokens == 4096


def test_the_table_of_fields_is_that_of_the_installed_libraries() -> None:
    # In this process, typing may have an equal union in another order.
    told = "import json, tools.library_fields as t; print(json.dumps(t.installed()))"
    asked = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, check=True)
    found = json.loads(asked.stdout)
    known = {**found["transformers"], **found["trl"]}
    assert (fields_of("SFTConfig"), fields_of("LoraConfig")) == (known, found["peft"])
    command = [sys.executable, ROOT / "tools" / "library_fields.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_table_of_fields_has_what_each_version_changed() -> None:
    text, number = {"types": ["str"]}, {"types": ["int"]}
    table = {
        "trl 1.16.0": {"b": number, "c": None},
        "trl 1.9.1": {"a": text, "b": text, "c": text},
        "trl2 1.0": {"d": text},
    }
    of = {each: fields_in(table, "trl", Version(each)) for each in ("1.8", "1.9.1", "1.15", "1.17")}
    assert of == {
        "1.8": {},
        "1.9.1": {"a": text, "b": text, "c": text},
        "1.15": {"a": text, "b": text, "c": text},
        "1.17": {"a": text, "b": number, "c": None},
    }


def test_each_default_of_a_library_is_a_value_that_its_field_takes() -> None:
    from peft import LoraConfig
    from trl import SFTConfig

    for name, built in (("SFTConfig", SFTConfig), ("LoraConfig", LoraConfig)):
        for field in fields(built):
            if field.default is not MISSING and not isinstance(field.default, Enum):
                refused = refusal(fields_of(name)[field.name], field.default)
                assert refused is None, f"{field.name}={field.default}: {refused}"


def test_every_replacement_that_an_error_names_is_there() -> None:
    known = fields_of("SFTConfig")
    parameters = composed()
    for name, advice in by_field(TRAINER_ADVICE).items():
        for key in re.findall(r"trainer\.args\.(\w+)", advice):
            assert key in known, f"{name}: {advice}"
        for key in re.findall(r"set ([\w.]+)=", advice):
            named = key.startswith(("trainer.args.", "hydra.", "logger.wandb.", "adapter.NAME"))
            folder, _, leaf = key.rpartition(".")
            assert named or leaf in OmegaConf.select(parameters, folder or "."), f"{name}: {advice}"
    set_by_lamina = {name for name in by_field(TRAINER_ADVICE) if name in known}
    assert (len(set_by_lamina), len(by_field(TRAINER_ADVICE))) == (31, 74)
    assert set_by_lamina.isdisjoint({"evaluation_strategy", "tokenizer", "max_seq_length"})
    known = fields_of("LoraConfig")
    set_by_lamina = {name for name in by_field(ADAPTER_ADVICE) if name in known}
    assert (len(set_by_lamina), len(by_field(ADAPTER_ADVICE))) == (11, 16)
