"""Speed at given sizes: what can be computed by hand is, and the rest is of the right order."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lamina.measure.serving_speed import SpeedSettings, serving_speed, share_of_ideal
from lamina.measure.tasks.files import EvaluatedModel, EvaluationResult, Speed
from tests.architectures import ARCHITECTURES
from tests.conftest import REFERENCE


def settings(**changes: Any) -> SpeedSettings:
    given = {"batch_sizes": [1, 3], "prompt_tokens": [16], "new_tokens": 8, "repeats": 2}
    return SpeedSettings(**{**given, **changes})


def test_each_batch_size_is_measured_with_each_length() -> None:
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32)
    found = serving_speed(model, settings(prompt_tokens=[16, 32]))
    assert found is not None
    assert [(each.batch, each.prompt_tokens) for each in found] == [
        (1, 16), (1, 32), (3, 16), (3, 32),
    ]  # fmt: skip
    config = model.config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    for each in found:
        tokens = each.batch * (each.prompt_tokens + each.new_tokens - 1)  # the last is not read
        assert each.kv_cache_bytes == per_token * tokens
        seconds = each.batch * each.prompt_tokens / each.prefill_tokens_per_second
        assert seconds == pytest.approx(each.first_token_seconds)
        assert each.decode_tokens_per_second > 0
        assert each.spread >= 0
        assert each.repeats == 2
        assert (each.peak_memory_bytes or 0) > model.num_parameters() * 4
    assert serving_speed(model, settings(batch_sizes=[])) is None


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_every_family_is_measured(family: str) -> None:
    config = AutoConfig.for_model(family, **ARCHITECTURES[family])
    model = AutoModelForCausalLM.from_config(config)
    (found,) = serving_speed(model, settings(batch_sizes=[2], repeats=1)) or ()
    assert found.decode_tokens_per_second > 0
    assert (found.kv_cache_bytes > 0) == (family != "mamba2")


def evaluation(layers: int, decode: float, **changes: Any) -> EvaluationResult:
    speed = Speed(
        batch=1, prompt_tokens=16, new_tokens=8, prefill_tokens_per_second=1.0,
        decode_tokens_per_second=decode, first_token_seconds=1.0, kv_cache_bytes=1,
        peak_memory_bytes=1, repeats=1, spread=0.0,
    )  # fmt: skip
    model = EvaluatedModel(
        name="m", revision=None, kept_layers=None, layers=layers, parameters=1, bytes=4,
        dtype="float32",
    )  # fmt: skip
    given: dict[str, Any] = {"role": "final", "speed": [speed], "device": "a CPU"}
    given |= {"model": model, "tasks": {}, "versions": {}, "seconds": 1.0}
    return EvaluationResult(**{**given, **changes})


def test_the_speed_up_is_compared_with_that_of_the_layers_alone() -> None:
    original = evaluation(12, 100.0)
    # 8 of 12 layers could be 1.5 times as fast; 1.2 times is 80 % of that.
    assert share_of_ideal(evaluation(8, 120.0), original) == pytest.approx(0.8)
    assert share_of_ideal(original, original) == 1
    assert share_of_ideal(evaluation(8, 120.0, device="another"), original) is None
    assert share_of_ideal(evaluation(8, 120.0, speed=None), original) is None
