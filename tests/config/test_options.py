"""Every option and every experiment composes with every other, and builds a run."""

from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lamina.config.paths import conf_dir
from lamina.config.preflight import preflight
from lamina.config.schema import register
from lamina.run import Run
from tests.conftest import ROOT


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> object:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def composed(*overrides: str, folder: Path = Path("run")) -> DictConfig:
    given = [f"hydra.runtime.output_dir={folder}", *overrides]
    config = compose("config", given, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    content = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    OmegaConf.set_struct(content, True)
    return content


COMMON = ("data.train=rows.jsonl",)

PRODUCT = list(
    product(options("experiment"), options("model"), options("adapter"), options("logger"))
)


def test_the_product_holds_what_the_issue_promises() -> None:
    assert {"original", "dropped", "pruned", "scratch"} <= set(options("model"))
    assert {"lora", "full"} <= set(options("adapter"))
    assert {"tb", "wandb", "both", "none"} <= set(options("logger"))
    six = {f"{model}{end}" for model in ("original", "dropped", "pruned") for end in ("", "_lora")}
    assert six | {"quickstart", "reference"} <= set(options("experiment"))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_composes_with_every_model_adapter_and_logger(experiment: str) -> None:
    for name, model, adapter, logger in PRODUCT:
        if name != experiment:
            continue
        given = (f"experiment={name}", f"model={model}", f"adapter={adapter}", f"logger={logger}")
        config = composed(*given)
        preflight(config)
        run = instantiate(config)
        assert isinstance(run, Run)
        assert run.model.model_type == model
        assert run.adapter.name == adapter
        assert (
            set(run.logger)
            == {
                "tb": {"tensorboard"},
                "wandb": {"wandb"},
                "both": {"tensorboard", "wandb"},
                "none": set(),
            }[logger]
        )


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
    needed = {**files, "disk": ["data.path=rows"]}
    config = composed(f"{group}={option}", *needed.get(option, []))
    preflight(config)
    assert isinstance(instantiate(config), Run)


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
    "lr_scheduler_type": "linear",
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


def test_an_experiment_can_be_overridden_key_by_key() -> None:
    config = composed("experiment=quickstart", "lora.alpha=32", "depth.keep_layers=6")
    assert (config.lora.r, config.lora.alpha) == (16, 32)
    assert config.model.keep_layers == 6
    assert composed("experiment=quickstart", "model=dropped").model.layer_to_drop == 5


def test_every_parameter_is_documented_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    config = composed()
    groups = {"model", "adapter", "backend", "data", "trainer", "evaluation", "logger", "callbacks"}
    keys = {key for key in config if not key.startswith("_")} - groups
    assert [key for key in sorted(keys) if f"`{key}" not in readme] == []
