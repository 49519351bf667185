"""Configs composed as the command composes them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lamina.config.schema import register
from lamina.runtime.paths import conf_dir


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
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
