"""Attention and kernels, checked against a model's family."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lamina.depth.loading import load_model
from lamina.depth.reduction import blueprint, causal_class, config_class
from lamina.errors import ConfigError
from lamina.heal import kernels
from lamina.heal.adapters import Lora, adapted
from lamina.weights.source import resolve
from tests.conftest import REFERENCE

QWEN3 = config_class("model_type", {"model_type": "qwen3"})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.runtime.device.has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the optional packages is installed."""
    monkeypatch.setattr(kernels, "installed", lambda name: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "installed_flash", lambda: "flash_attention_2")


def test_auto_is_the_default_of_transformers_without_a_gpu() -> None:
    assert kernels.attention_kernel("auto", causal_class(QWEN3), "bfloat16") is None


@pytest.mark.usefixtures("gpu", "bare")
def test_auto_is_flex_on_a_gpu_without_flash_attention() -> None:
    assert kernels.attention_kernel("auto", causal_class(QWEN3), "bfloat16") == "flex_attention"
    assert not kernels.may_need_mask("auto")


@pytest.mark.usefixtures("gpu", "flash")
def test_auto_is_flash_if_installed_and_the_weights_are_half_precision() -> None:
    assert kernels.attention_kernel("auto", causal_class(QWEN3), "bfloat16") == "flash_attention_2"
    assert kernels.attention_kernel("auto", causal_class(QWEN3), "float32") == "flex_attention"


def test_flash_attention_is_found_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"flash-attn"}
    monkeypatch.setattr(kernels, "installed", found.__contains__)
    assert kernels.installed_flash() == "flash_attention_2"
    found.add("flash-attn-3")
    assert kernels.installed_flash() == "flash_attention_3"
    found.clear()
    assert kernels.installed_flash() is None


def test_a_family_without_support_is_refused() -> None:
    family: Any = type(
        "Plain",
        (),
        {
            "_supports_flash_attn": False,
            "_supports_flex_attn": False,
            "_supports_sdpa": True,
        },
    )
    with pytest.raises(ConfigError) as caught:
        kernels.attention_kernel("flex", family, "float32")
    assert str(caught.value) == (
        "attention=flex: Plain does not support it; leave it out, or use sdpa or eager"
    )
    assert kernels.attention_kernel("eager", family, "float32") == "eager"
    assert kernels.attention_kernel("auto", family, "float32") is None


def test_a_model_uses_the_configured_attention() -> None:
    model = load_model(resolve(str(REFERENCE)), range(2), dtype=torch.float32)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = model(ids).logits
        kernels.use_attention("auto", model, "float32")
        assert model.config._attn_implementation == "sdpa"
        kernels.use_attention("eager", model, "float32")
        assert model.config._attn_implementation == "eager"
        assert (model(ids).logits - before).abs().max() < 1e-4


def test_a_model_that_keeps_its_own_attention_is_refused() -> None:
    kind = type("Fixed", (), {"_supports_sdpa": True, "set_attn_implementation": lambda *_: None})
    model: Any = kind()
    model.config = SimpleNamespace(_attn_implementation="eager")
    with pytest.raises(ConfigError) as caught:
        kernels.use_attention("sdpa", model, "float32")
    assert str(caught.value) == ("attention=sdpa: Fixed always uses eager; leave it out")


@pytest.mark.usefixtures("flash")
def test_a_family_with_its_own_flash_attention_refuses_the_package() -> None:
    family = causal_class(config_class("model_type", {"model_type": "gpt_oss"}))
    with pytest.raises(ConfigError, match="attention=flash: GptOssForCausalLM does not support it"):
        kernels.attention_kernel("flash", family, "bfloat16")


@pytest.fixture
def liger(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of the same layout: the package needs Triton."""
    table = 'MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": f, "qwen3": g}\n'
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "monkey_patch.py").write_text(f"import triton\n\n{table}")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)


@pytest.mark.usefixtures("liger")
def test_a_family_without_kernels_is_refused() -> None:
    kernels.refuse_unsupported_family("liger", "qwen3")
    kernels.refuse_unsupported_family("none", "gpt2")
    with pytest.raises(ConfigError) as caught:
        kernels.refuse_unsupported_family("liger", "gpt2")
    assert str(caught.value) == (
        "kernels=liger: liger-kernel has no kernels for gpt2, only for llama, qwen3: leave it out"
    )


def test_patches_of_the_process_are_undone() -> None:
    from transformers.models.qwen3 import modeling_qwen3

    before = modeling_qwen3.apply_rotary_pos_emb
    model: Any = modeling_qwen3.Qwen3ForCausalLM.__new__(modeling_qwen3.Qwen3ForCausalLM)
    with kernels.undoing_patches(model):
        modeling_qwen3.apply_rotary_pos_emb = None
    assert modeling_qwen3.apply_rotary_pos_emb is before


@pytest.mark.usefixtures("gpu", "bare")
def test_flex_attention_gets_one_type_and_no_kernel_for_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AttentionInterface
    from transformers.integrations import flex_attention

    seen = []

    def forward(_: Any, *states: torch.Tensor, kernel_options: dict[str, str]) -> None:
        seen.append(([state.dtype for state in states[:3]], kernel_options))

    monkeypatch.setattr(flex_attention, "flex_attention_forward", forward)
    model = load_model(resolve(str(REFERENCE)), range(1), dtype=torch.float32)
    kernels.use_attention("flex", model, "float32")
    attend = AttentionInterface()["flex_attention"]
    states = [torch.ones(1, 1, 2, 2, dtype=kind) for kind in (torch.float32, torch.bfloat16)]
    with torch.autocast("cpu", torch.bfloat16):
        attend(model, states[0], states[0], states[1], None)
    attend(model, *[states[0]] * 3, None)
    triton = {"BACKEND": "TRITON"}
    assert seen == [([torch.bfloat16] * 3, triton), ([torch.float32] * 3, triton)]


def test_an_adapter_on_a_head_of_any_name_is_refused() -> None:
    content = {"model_type": "gpt_neox_japanese", "num_hidden_layers": 1, "hidden_size": 64}
    given = {"learning_rate": 1e-3, "r": 4, "alpha": 4, "dropout": 0.0, "bias": "none"}
    for targets in (["dense"], ["dense", "embed_out"]):
        model = blueprint(config_class("model_type", content)(**content))
        model = adapted(model, Lora.of(**given, target_modules=targets))
        if targets == ["dense"]:
            kernels.refuse_adapted_head(model, "trainer=distill")
    with pytest.raises(ConfigError) as refused:
        kernels.refuse_adapted_head(model, "kernels=liger")
    assert str(refused.value) == (
        "kernels=liger computes the loss without the output head's adapter: remove embed_out from "
        "adapter.target_modules"
    )
