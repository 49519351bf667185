"""What a machine lacks for attention, kernels, optimizers and adapters is said in one line."""

import sys

import pytest

from lamina.config.preflight import preflight
from lamina.errors import ConfigError
from lamina.heal import kernels
from tests.config.conftest import composed
from tests.conftest import REFERENCE


def problems(*overrides: str) -> list[str]:
    """What preflight says to a config, line by line."""
    try:
        preflight(composed(f"model_name={REFERENCE}", "data=synthetic", *overrides))
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.runtime.device.has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the optional packages is installed."""
    monkeypatch.setattr("lamina.runtime.device.distributions", lambda name: ())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "installed_flash", lambda: "flash_attention_2")


ON_A_GPU = {
    "attention=flash": "attention=flash needs flash-attn: pip install flash-attn "
    "--no-build-isolation, or leave it out",
    "kernels=liger": "kernels=liger needs liger-kernel: pip install liger-kernel, or leave it out",
    "torch_compile=true": "torch_compile=true needs Triton on a GPU: pip install triton, or "
    "leave it out",
    "optim=paged_adamw_8bit": "optim=paged_adamw_8bit needs bitsandbytes: pip install "
    "bitsandbytes, or leave it out",
    "optim=galore_adamw_layerwise": "optim=galore_adamw_layerwise needs galore-torch: pip "
    "install galore-torch, or leave it out",
    "optim=schedule_free_sgd": "optim=schedule_free_sgd needs schedulefree: pip install "
    "schedulefree, or leave it out",
    "optim=adamw_torch_4bit": "optim=adamw_torch_4bit needs torchao: pip install torchao, or "
    "leave it out",
    "adapter=qlora": "adapter=qlora needs bitsandbytes: pip install "
    "bitsandbytes, or choose adapter=lora",
}


@pytest.mark.usefixtures("gpu", "bare")
@pytest.mark.parametrize("override", ON_A_GPU)
def test_a_package_that_is_missing_is_named_with_its_command(override: str) -> None:
    assert problems(override) == [ON_A_GPU[override]]


@pytest.mark.usefixtures("gpu", "bare")
def test_nothing_is_needed_for_the_defaults_and_flex() -> None:
    assert problems() == []
    assert problems("attention=flex", "activation_offloading=true") == []


@pytest.mark.usefixtures("gpu", "flash")
def test_flash_attention_takes_no_float32() -> None:
    assert problems("attention=flash", "bf16=false") == [
        "attention=flash does not support float32 weights: set dtype=bfloat16, or leave it out"
    ]
    assert problems("attention=flash") == []


def test_a_paged_optimizer_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.heal.kernels.installed", lambda package: True)
    assert problems("optim=paged_adamw_8bit") == [
        "optim=paged_adamw_8bit needs a GPU to page from: use one without paged_, or leave it out"
    ]
    assert problems("optim=adamw_8bit") == []


def test_a_compiler_is_needed_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert problems("torch_compile=true") == [
        "torch_compile=true needs a C++ compiler: install g++, or leave it out"
    ]
    monkeypatch.setenv("CXX", sys.executable)
    assert problems("torch_compile=true") == []
