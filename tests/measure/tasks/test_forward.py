"""Rows that share a prefix get what plain rows get, in each family that can; others say so."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lamina.measure.tasks.forward import Row, log_likelihoods, longest_packed, packed
from tests.architectures import ARCHITECTURES, build
from tests.conftest import REFERENCE

CANNOT_PACK = {"mamba2", "qwen3_next", "falcon_h1", "mpt"}
"""Recurrent layers, and positions that cannot be set."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_branches_do_not_see_each_other(name: str) -> None:
    wide = {"sliding_window": 40} if "sliding_window" in ARCHITECTURES[name] else {}
    model = build(name, **wide)
    prefix, branches = [5, 9, 7], [[4, 8, 6], [11], [4, 3], []]
    texts = [prefix + branch for branch in branches]
    plain = [Row(ids=t[:-1], sources=range(1, len(t) - 1), targets=t[2:]) for t in texts]
    alone = [found for row in plain for found in log_likelihoods(model, [row])[0]]
    together = [found for each in log_likelihoods(model, plain) for found in each]
    assert together == pytest.approx(alone, abs=1e-4)
    most = longest_packed(model)
    assert (most is None) == (name in CANNOT_PACK)
    if most is not None:
        assert most == wide.get("sliding_window", 2**31)
        rows = [packed(prefix, branches, 2), packed([*prefix, 8], branches[::-1], 2)] * 2
        first, other, third, _ = log_likelihoods(model, rows)
        assert first == pytest.approx(alone, abs=1e-4)
        assert third == pytest.approx(alone, abs=1e-4)
        assert other != pytest.approx(first, abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_does_not_pass_for_a_wrong_mask(dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=dtype).eval()
    assert longest_packed(model) is not None


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_a_window_shorter_than_the_row_is_not_packed(name: str) -> None:
    assert longest_packed(build(name)) is None
