"""Repairs against numpy's least squares and their formula, in models built without the pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import PreTrainedModel

from lamina.depth.loading import load_model
from lamina.depth.reduction import decoder_stack, reduction
from lamina.depth.surgery import layer_count
from lamina.errors import ModelError
from lamina.heal.repair.calibration_pass import CalibrationPass
from lamina.heal.repair.fitting import RIDGE, LeastSquares, growth
from lamina.heal.repair.methods import cuts_of, down_projection, refuse_unrepairable
from lamina.heal.repair.repairing import fold
from lamina.scan.calibration import Windows
from lamina.scan.layers import open_stack
from lamina.weights.source import Source, resolve
from tests.architectures import save
from tests.conftest import REFERENCE

EVERY = range(6)
KEPT = (0, 1, 3, 5)
"""Of six layers; without 2 and 4."""


def text(windows: int = 6, length: int = 20) -> Windows:
    ids = torch.randint(3, 60, (windows, length), generator=torch.Generator().manual_seed(1))
    return Windows(ids, None, torch.arange(length).expand(ids.shape) > 0)


def built(source: Source, kept: Sequence[int]) -> PreTrainedModel:
    return load_model(source, kept, dtype=torch.float32).eval()


@torch.no_grad()
def states(model: PreTrainedModel, windows: Windows) -> list[torch.Tensor]:
    """Each layer's output (tokens, width), in float64, and the logits."""
    stack = decoder_stack(model, model.config.num_hidden_layers)[1]
    found: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        found.append(output.flatten(0, 1).double())

    hooks = [block.register_forward_hook(keep) for block in stack]
    logits = model(windows.ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return [*found, logits.flatten(0, 1).double()]


@torch.no_grad()
def inputs_of(model: PreTrainedModel, position: int, windows: Windows) -> torch.Tensor:
    """What the down_proj of a layer gets (tokens, inputs), in float64."""
    block, seen = decoder_stack(model, model.config.num_hidden_layers)[1][position], []
    name = down_projection(block)
    assert name
    hook = block.get_submodule(name).register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    model(windows.ids, use_cache=False)
    hook.remove()
    return seen[0].flatten(0, -2).double()


def found_repair(
    method: str, source: Source, windows: Windows, kept: Sequence[int] = KEPT
) -> CalibrationPass:
    with open_stack(source, torch.float32, "cpu") as stack:
        repair = CalibrationPass(method, stack, windows, kept)
        repair.at_once = 4  # the windows in two portions
        repair.portions = list(windows.split(4))
        repair.run()
    return repair


def least_squares(a: numpy.ndarray, r: numpy.ndarray, x: numpy.ndarray) -> numpy.ndarray:
    """The change of a weight (outputs, inputs), by numpy's lstsq with the ridge as further rows."""
    scale = 1 / numpy.linalg.norm(x, axis=1, keepdims=True)
    a, r = a * scale, r * scale
    ridge = numpy.sqrt(RIDGE * (a**2).sum(axis=0).mean())
    rows = numpy.vstack([a, ridge * numpy.eye(a.shape[1])])
    return numpy.linalg.lstsq(rows, numpy.vstack([r, numpy.zeros((a.shape[1], r.shape[1]))]))[0].T


@pytest.mark.parametrize("tokens", [7, 300])
def test_the_fit_is_numpys(tokens: int) -> None:
    """With fewer tokens than inputs, too, and with a token whose state is huge."""
    draw = numpy.random.default_rng(3)
    a, r, x = (draw.normal(size=(tokens, n)) for n in (24, 16, 16))
    x[0] *= 1e4
    fit = LeastSquares(24, 16, "cpu")
    for part in numpy.array_split(numpy.arange(tokens), 3):
        fit.add(*(torch.tensor(each[part]) for each in (a, r, x)))
    error = ((r / numpy.linalg.norm(x, axis=1, keepdims=True)) ** 2).sum()
    assert fit.error == pytest.approx(error, rel=1e-6)
    numpy.testing.assert_allclose(fit.change().numpy(), least_squares(a, r, x), atol=2e-5)


def test_a_state_of_zeros_has_no_growth() -> None:
    before = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]])
    assert growth(before, torch.tensor([[[1.0, 1.0], [6.0, 8.0], [4.0, 0.0]]])) == 3.0


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return resolve(str(save("llama", tmp_path_factory.mktemp("llama"))))


def test_each_cut_is_fitted_on_the_states_that_earlier_repairs_leave(llama: Source) -> None:
    """Here the reduced model is repaired cut by cut, and measured anew in between."""
    windows, model = text(), built(llama, KEPT)
    repair, original = (
        found_repair("closed_form", llama, windows),
        states(built(llama, EVERY), windows),
    )
    for cut, (position, after) in zip(repair.cuts, [(1, 2), (2, 4)], strict=True):
        out, wanted = states(model, windows)[position].numpy(), original[after].numpy()
        a = inputs_of(model, position, windows).numpy()
        change = least_squares(a, wanted - out, wanted)
        name = f"{position}.mlp.down_proj.weight"
        weight = decoder_stack(model, 4)[1][position].mlp.down_proj.weight
        expected = weight.detach().double().numpy() + change
        numpy.testing.assert_allclose(repair.weights[name].numpy(), expected, atol=1e-4)
        with torch.no_grad():
            weight.copy_(repair.weights[name])
        mapped = out + a @ change.T
        numpy.testing.assert_allclose(states(model, windows)[position].numpy(), mapped, atol=1e-4)
        norms = numpy.linalg.norm(wanted, axis=1)
        for key, found in (("error_before", out), ("error_after", mapped)):
            error = ((numpy.linalg.norm(wanted - found, axis=1) / norms) ** 2).mean()
            assert cut[key] == pytest.approx(error, rel=1e-3)
        assert cut["error_after"] < cut["error_before"]
    assert [cut["removed"] for cut in repair.cuts] == [[2, 3], [4, 5]]
    assert [cut["layer"] for cut in repair.cuts] == [1, 3]
    folded = built(llama, KEPT)
    fold(folded, KEPT, repair.cuts, repair.weights)
    for ours, theirs in zip(states(folded, windows), states(model, windows), strict=True):
        assert (ours - theirs).abs().max() < 1e-4


def test_a_cut_at_the_end_is_fitted_to_the_last_state(llama: Source) -> None:
    repair = found_repair("closed_form", llama, text(), (0, 1, 2))
    assert [*repair.weights] == ["2.mlp.down_proj.weight"]
    assert repair.cuts[0]["removed"] == [3, 6]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "qwen3", "phi3", "smollm3"])
@pytest.mark.parametrize("kept", [KEPT, (1, 2, 5), (0, 1, 2)], ids=str)
def test_magnitudes_follow_the_formula_and_leave_the_embedding(
    family: str, kept: tuple[int, ...], tmp_path: Path
) -> None:
    """Dividing what later layers add equals multiplying the states at the cut."""
    exact = {"tie_word_embeddings": True, "rms_norm_eps": 1e-9}  # a norm's epsilon has a scale
    source = resolve(str(save(family, tmp_path / "model", **exact)))
    windows, original = text(), states(built(source, EVERY), text())
    repair = found_repair("magnitude", source, windows, kept)
    scaled, cuts = built(source, kept), cuts_of(kept, 6)
    stack = decoder_stack(scaled, len(kept))[1]
    for cut, about in zip(cuts, repair.cuts, strict=True):
        position = sum(layer < cut.start for layer in kept)
        with torch.no_grad():
            before = entering(scaled, position, windows)
        factor = (original[cut.stop - 1].norm(dim=-1) / before.norm(dim=-1)).mean().item()
        assert about == {
            "removed": [cut.start, cut.stop],
            "factor": pytest.approx(factor, rel=1e-4),
        }
        if position < len(kept):
            stack[position].register_forward_pre_hook(scaling(about["factor"]), with_kwargs=True)
    folded = built(source, kept)
    embedding = folded.get_input_embeddings().weight.detach().clone()
    fold(folded, kept, repair.cuts, repair.weights)
    assert torch.equal(folded.get_input_embeddings().weight, embedding)
    assert (states(folded, windows)[-1] - states(scaled, windows)[-1]).abs().max() < 1e-3


def scaling(factor: float) -> Any:
    def scale(_: Any, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if given:
            return (given[0] * factor, *given[1:]), options
        return given, {**options, "hidden_states": options["hidden_states"] * factor}

    return scale


def entering(model: PreTrainedModel, position: int, windows: Windows) -> torch.Tensor:
    """The states that enter a layer (tokens, width), as earlier hooks have scaled them."""
    stack = decoder_stack(model, model.config.num_hidden_layers)[1]
    if position == 0:
        seen: list[torch.Tensor] = []
        hook = stack[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        model(windows.ids, use_cache=False)
        hook.remove()
        return seen[0].flatten(0, 1).double()
    return states(model, windows)[position - 1]


def test_cuts_are_the_gaps() -> None:
    assert cuts_of((1, 2, 5), 8) == [range(1), range(3, 5), range(6, 8)]
    assert cuts_of(range(8), 8) == []


REFUSED = {
    ("closed_form", "llama", (1, 2, 3)): "no layer precedes the cut [0, 1): keep layer 0 "
    "(depth.protect=[0]), or use repair=magnitude",
    ("closed_form", "qwen3_moe", (0, 1, 2, 3, 4)): None,
    ("closed_form", "qwen3_moe", (0, 1, 2, 3, 5)): "layer 3 (Qwen3MoeDecoderLayer), before the cut "
    "[4, 5), has no down_proj",
    (
        "closed_form",
        "gemma3_text",
        KEPT,
    ): "layer 1 (Gemma3DecoderLayer), before the cut [2, 3), has no down_proj",
    ("closed_form", "gpt_oss", KEPT): "layer 1 (GptOssDecoderLayer), before the cut [2, 3), has no "
    "down_proj",
    (
        "closed_form",
        "falcon_h1",
        KEPT,
    ): "layer 1 (FalconH1DecoderLayer), before the cut [2, 3), has no down_proj",
    ("magnitude", "gpt2", KEPT): "layer 3 (GPT2Block), after the cut [2, 3), has no o_proj and "
    "down_proj",
    ("magnitude", "olmo3", KEPT): "layer 3 (Olmo3DecoderLayer), after the cut [2, 3), has no "
    "o_proj and down_proj",
    ("magnitude", "gpt2", (0, 1, 2)): "no layer follows the cut [3, 6), so nothing would change: "
    "use repair=closed_form or repair=none",
}
END = " whose output is added to the hidden states unchanged: use repair=none"


@pytest.mark.parametrize(("method", "family", "kept"), REFUSED)
def test_what_cannot_be_repaired_is_named_before_a_weight_is_read(
    method: str, family: str, kept: tuple[int, ...], tmp_path: Path
) -> None:
    source, expected = resolve(str(save(family, tmp_path / "model"))), REFUSED[method, family, kept]
    model, depth = reduction(source, kept).blueprint, layer_count(source.config)
    if expected is None:
        refuse_unrepairable(method, model, kept, depth)
        return
    with pytest.raises(ModelError) as raised:
        refuse_unrepairable(method, model, kept, depth)
    end = END if expected.startswith("layer ") else ""
    assert str(raised.value) == f"repair={method}: {expected}{end}"


def test_the_reference_model_can_be_repaired_everywhere() -> None:
    source = resolve(str(REFERENCE))
    for method in ("closed_form", "magnitude"):
        refuse_unrepairable(method, reduction(source, (0, 5, 9)).blueprint, (0, 5, 9), 12)
