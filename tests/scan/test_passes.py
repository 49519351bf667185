"""One pass gives the scores of each removal, compared with models actually built."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lamina.data.sources import Synthetic
from lamina.depth.loading import load_model
from lamina.depth.reduction import decoder_stack
from lamina.depth.statistics import Statistics
from lamina.depth.surgery import layer_count
from lamina.errors import ConfigError, ModelError
from lamina.scan import greedy
from lamina.scan import passes as scan_module
from lamina.scan.cached import CachedScores, taylor_importance
from lamina.scan.calibration import Windows
from lamina.scan.greedy import greedy_order
from lamina.scan.layers import LayerStack, open_stack
from lamina.scan.passes import Budget, ScanSettings, budget, score_removals
from lamina.scan.scores import Scores, jaccard, kendall_tau
from lamina.scan.streams import PARTS
from lamina.weights.source import Source, resolve
from tests.architectures import SIZE, build, save
from tests.conftest import GENERATED, REFERENCE

MODELS = (
    "qwen3",
    "llama",
    "gemma3_text",
    "gpt2",
    "qwen3_next",
    "gpt_oss",
    "falcon_h1",
    "llama4",
    "reference",
)

SETTINGS = ScanSettings(
    tokens="1k", sets=1, rows="joined", sublayers=True, stream="auto", memory="8GB", candidates=2
)


def text(windows: int = 5, length: int = 12) -> Windows:
    ids = torch.randint(3, 60, (windows, length), generator=torch.Generator().manual_seed(1))
    return Windows(ids, None, torch.arange(ids.shape[1]).expand(ids.shape) > 0)


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    if request.param == "reference":
        return resolve(str(REFERENCE))
    return resolve(str(save(request.param, tmp_path_factory.mktemp(request.param))))


def depth_of(source: Source) -> int:
    return layer_count(source.config)


def scores(
    source: Source, windows: Windows, *, hold: bool = True, portion: int = 99, **options: Any
) -> tuple[Scores, scan_module.Cost]:
    given = {"sublayers": True, "folder": None, **options}
    with open_stack(source, torch.float32, "cpu") as stack:
        return score_removals(stack, windows, Budget(hold=hold, windows=portion), **given)


def statistics(source: Source, windows: Windows, **options: Any) -> Statistics:
    return scores(source, windows, **options)[0].statistics(depth_of(source), [range(len(windows))])


@torch.no_grad()
def predictions(model: PreTrainedModel, windows: Windows) -> torch.Tensor:
    return model.eval()(windows.ids, use_cache=False).logits[:, :-1].float()


def loss(logits: torch.Tensor, windows: Windows) -> float:
    return cross_entropy(logits.flatten(0, 1), windows.ids[:, 1:].flatten()).item()


def whole(source: Source) -> PreTrainedModel:
    if source.is_text_part:
        return load_model(source, range(depth_of(source)), dtype=torch.float32).eval()
    return AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()


def test_leave_one_out_is_the_loss_of_the_model_built_without_the_layer(source: Source) -> None:
    windows = text()
    found = statistics(source, windows)
    full = predictions(whole(source), windows)
    assert found.baseline_loss == pytest.approx(loss(full, windows), abs=1e-5)
    assert (found.num_tokens, found.num_windows) == (55, 5)
    for layer in range(depth_of(source)):
        kept = [index for index in range(depth_of(source)) if index != layer]
        built = predictions(load_model(source, kept, dtype=torch.float32), windows)
        assert found.leave_one_out.loss[layer] == pytest.approx(loss(built, windows), abs=1e-5)
        divergence = kl_div(
            built.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="none"
        )
        assert found.leave_one_out.kl[layer] == pytest.approx(
            divergence.sum(-1).mean().item(), abs=1e-5
        )


RECURRENT_OR_UNMASKED = {"qwen3_next", "gpt_oss", "falcon_h1", "llama4_text"}
"""Model types whose layers do not see, or not only, from positions where a document begins."""


@torch.no_grad()
def test_rows_apart_are_scored_as_if_alone_or_refused(source: Source) -> None:
    places = torch.tensor([[*range(5), *range(7)]]).expand(3, -1)
    windows = Windows(text(3).ids, places, places > 0)
    given = CachedScores(
        source=source,
        data=Synthetic(train_rows=3, eval_rows=1, seed=1, **GENERATED),
        settings=SETTINGS,
        max_seq_length=12,
        seed=1,
        dtype=lambda: torch.bfloat16,
    )
    vars(given)["_calibration"] = (windows, (range(3),))
    if source.config["model_type"] in RECURRENT_OR_UNMASKED:
        for needs_windows in (given.scan, given.taylor):
            with pytest.raises(ModelError, match="does not keep rows apart that share a window"):
                needs_windows()
        return
    with given.opened():
        model, documents = whole(source), [d for row in windows.ids for d in (row[:5], row[5:])]
    alone = [
        cross_entropy(model(d[None], use_cache=False).logits[0, :-1], d[1:], reduction="sum").item()
        for d in documents
    ]
    found = statistics(source, windows, sublayers=False)
    assert found.baseline_loss == pytest.approx(sum(alone) / found.num_tokens, abs=1e-5)


def test_a_head_that_config_json_calls_tied_is_scored_as_it_is(tmp_path: Path) -> None:
    source = resolve(str(save("qwen2", tmp_path / "model")))
    path = tmp_path / "model" / "model.safetensors"
    head = torch.randn(64, 16, generator=torch.Generator().manual_seed(2))
    save_file({**load_file(path), "lm_head.weight": head}, path, {"format": "pt"})
    windows = text()
    model = whole(source)
    assert torch.equal(model.lm_head.weight, head)
    assert statistics(source, windows).baseline_loss == pytest.approx(
        loss(predictions(model, windows), windows), abs=1e-5
    )


BAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 4,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
    "attn_layer_indices": [1, 4],
}


@pytest.mark.parametrize(("kind", "own"), [("cwm", {"sliding_window": 4}), ("bamba", BAMBA)])
def test_layers_that_need_token_ids_or_return_pairs(
    kind: str, own: dict[str, Any], tmp_path: Path
) -> None:
    source = random_model(kind, tmp_path, **own)
    windows, found = text(), statistics(source, text(), sublayers=False)
    full = loss(predictions(whole(source), windows), windows)
    built = load_model(source, [0, 1, 2, 4, 5], dtype=torch.float32)
    assert found.baseline_loss == pytest.approx(full, abs=1e-5)
    without = loss(predictions(built, windows), windows)
    assert found.leave_one_out.loss[3] == pytest.approx(without, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "own", "reason"),
    [
        ("diffllama", {}, "layer 1 of this diffllama cannot be scored, .*self_attn.lambda_init: "),
        ("rwkv", {}, "layer 1 of this rwkv cannot be scored, .*pre_ln: "),
    ],
)
def test_a_layer_that_computes_another_thing_alone_is_not_scored(
    kind: str, own: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    source = random_model(kind, tmp_path, **own)
    with pytest.raises(ModelError, match=reason), open_stack(source, torch.float32, "cpu"):
        pass


def random_model(kind: str, folder: Path, **own: Any) -> Source:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZE, **own})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return resolve(str(folder))


@pytest.mark.parametrize("depth", [1, 2])
def test_mpt_takes_layers_that_return_tuples_at_every_depth(depth: int, tmp_path: Path) -> None:
    build("mpt", n_layers=depth).save_pretrained(tmp_path)
    source, windows = resolve(str(tmp_path)), text()
    full = predictions(whole(source), windows)
    found = statistics(source, windows, sublayers=False)
    assert found.baseline_loss == pytest.approx(loss(full, windows), abs=1e-5)


def test_a_sublayer_score_is_the_loss_with_its_output_zeroed(source: Source) -> None:
    windows = text()
    found = statistics(source, windows)
    model = whole(source)
    for part, names in PARTS.items():
        for layer, block in enumerate(decoder_stack(model, depth_of(source))[1]):
            module = next(getattr(block, name) for name in names if hasattr(block, name))
            hook = module.register_forward_hook(zeroed)
            expected = loss(predictions(model, windows), windows)
            hook.remove()
            assert found.sublayer[part].loss[layer] == pytest.approx(expected, abs=1e-5)


def zeroed(_: Any, __: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def test_influences_and_distances_are_those_of_the_states_seen_by_hooks(source: Source) -> None:
    windows = text()
    found = statistics(source, windows)
    model = whole(source)
    states: list[torch.Tensor] = []
    blocks = decoder_stack(model, depth_of(source))[1]
    blocks[0].register_forward_pre_hook(lambda _, given: states.append(given[0]))
    for block in blocks:
        block.register_forward_hook(
            lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
    predictions(model, windows)
    for start in range(depth_of(source)):
        for end in range(start + 1, depth_of(source) + 1):
            cosine = cosine_similarity(states[start].double(), states[end].double(), dim=-1)
            angle = cosine.clamp(-1, 1).acos() / math.pi
            mean, last = angle.mean().item(), angle[:, -1].mean().item()
            assert found.angular_distance[start][end - start] == pytest.approx(mean, abs=1e-6)
            assert found.angular_distance_last[start][end - start] == pytest.approx(last, abs=1e-6)
        now, before = states[start + 1].double(), states[start].double()
        cosine = cosine_similarity(before, now, dim=-1).mean().item()
        assert found.block_influence[start] == pytest.approx(1 - cosine, abs=1e-6)
        ratio = ((now - before).norm(dim=-1) / now.norm(dim=-1)).mean().item()
        assert found.magnitude[start] == pytest.approx(ratio, abs=1e-6)


def test_streamed_and_held_in_one_pass_or_several_the_numbers_are_the_same(source: Source) -> None:
    windows = text()
    held = statistics(source, windows)
    assert statistics(source, windows, hold=False) == held
    portions = statistics(source, windows, hold=False, portion=2)
    assert portions.leave_one_out.loss == pytest.approx(held.leave_one_out.loss, abs=1e-6)
    assert portions.num_tokens == held.num_tokens


def test_every_layer_is_read_once_and_applied_as_often_as_documented(source: Source) -> None:
    _, cost = scores(source, text(), sublayers=False)
    assert cost.layer_forwards == depth_of(source) * (depth_of(source) + 1) // 2
    assert cost.passes == 1
    _, cost = scores(source, text(), sublayers=True)
    assert cost.layer_forwards == 3 * depth_of(source) * (depth_of(source) + 1) // 2


def test_the_standard_error_is_that_of_the_window_means(source: Source) -> None:
    windows = text()
    found = statistics(source, windows)
    logits = predictions(whole(source), windows)
    means = torch.tensor(
        [cross_entropy(logits[w], windows.ids[w, 1:]).item() for w in range(len(windows))]
    )
    assert found.baseline_stderr == pytest.approx(means.std().item() / math.sqrt(5), rel=1e-3)


def test_one_window_has_no_standard_error(source: Source) -> None:
    found = statistics(source, text(windows=1))
    errors = [found.baseline_stderr, *found.leave_one_out.delta_stderr]
    assert all(map(math.isnan, errors))
    again = Statistics.from_dict({**json.loads(json.dumps(asdict(found))), "baseline_stderr": None})
    assert math.isnan(again.baseline_stderr)


def interrupted(
    source: Source, windows: Windows, after: int, folder: Path, *, portion: int
) -> list[int]:
    """Interrupt a scan that saves at each layer after so many layers, and return these."""
    advance, applied = scan_module.Streams.advance, list[int]()

    def stopping(self: Any, index: int, block: Any, tick: Callable[[int], object]) -> None:
        if len(applied) == after:
            raise KeyboardInterrupt
        applied.append(index)
        advance(self, index, block, tick)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "SAVE_SECONDS", 0.0)
        patch.setattr(scan_module, "SAVE_SHARE", 1e9)
        patch.setattr(scan_module.Streams, "advance", stopping)
        with pytest.raises(KeyboardInterrupt):
            scores(source, windows, folder=folder, portion=portion)
    return applied


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_scan_resumes_at_the_layer_where_it_stopped(
    source: Source, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = text()
    advance = scan_module.Streams.advance
    applied = interrupted(source, windows, depth_of(source) + stop, tmp_path, portion=3)
    assert (tmp_path / scan_module.STATE_FILE).is_file()

    def counted(self: Any, index: int, block: Any, tick: Callable[[int], object]) -> None:
        applied.append(index)
        advance(self, index, block, tick)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module.Streams, "advance", counted)
        found, cost = scores(source, windows, folder=tmp_path, portion=3)
    assert applied == [*range(depth_of(source)), *range(depth_of(source))]
    assert found == scores(source, windows, portion=3)[0]
    assert cost.passes == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("portion", [1, 2, 4, 99])
@pytest.mark.parametrize("stop", [0, 1])
def test_a_scan_resumes_with_other_memory(stop: int, portion: int, tmp_path: Path) -> None:
    """It stops after the first pass of two windows, or in the second."""
    source, windows = resolve(str(REFERENCE)), text()
    interrupted(source, windows, depth_of(source) + 2 * stop, tmp_path, portion=2)
    assert (tmp_path / scan_module.PROGRESS_FILE).is_file()
    resumed = statistics(source, windows, folder=tmp_path, portion=portion)
    undisturbed = statistics(source, windows)
    assert (resumed.num_windows, resumed.num_tokens) == (5, 55)
    losses = resumed.leave_one_out.loss
    assert losses == pytest.approx(undisturbed.leave_one_out.loss, abs=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_greedy_removes_what_the_naive_loop_removes(source: Source) -> None:
    windows = text()
    left, order = list(range(depth_of(source))), []
    for _ in range(3):
        candidates = {
            layer: loss(
                predictions(
                    load_model(source, [i for i in left if i != layer], dtype=torch.float32),
                    windows,
                ),
                windows,
            )
            for layer in left
        }
        order.append(min(candidates, key=lambda layer: candidates[layer]))
        left.remove(order[-1])
    with open_stack(source, torch.float32, "cpu") as stack:
        assert greedy_order(stack, windows, SETTINGS, 3, [], 10**10) == order
        assert greedy_order(stack, windows, SETTINGS, 3, order[:2], 10**10) == order
        protected = frozenset(order[:1])
        others = greedy_order(stack, windows, SETTINGS, 2, [], 10**10, protected)
        assert len(set(others) - protected) == 2
        with pytest.MonkeyPatch.context() as patch:
            # Passes of two windows leave no memory to share anything with the next round.
            patch.setattr(greedy, "budget", lambda *_: Budget(hold=False, windows=2))
            assert greedy_order(stack, windows, SETTINGS, 3, [], 10**10) == order
            assert greedy_order(stack, windows, SETTINGS, 2, [], 10**10, protected) == others


def test_a_layer_without_a_score_is_not_the_cheapest() -> None:
    losses = {0: math.nan, 1: 3.0, 2: 2.0, 4: 2.0}
    with pytest.raises(ConfigError, match="layer 0 has no score"):
        greedy.cheapest(losses, frozenset())
    assert greedy.cheapest(losses, frozenset({0})) == 2


def forwards(stack: LayerStack, spare: int, rounds: int) -> list[int]:
    """Layer-forwards of each round of a greedy search, then the layers it dropped."""
    windows = text()
    search = greedy.GreedySearch(stack, windows, Budget(hold=True, windows=5, spare=spare), [])
    taken = []
    for _ in range(rounds):
        before = search.layer_forwards
        search.drop_next()
        taken.append(search.layer_forwards - before)
    return [*taken, *search.dropped]


def test_a_greedy_round_starts_where_the_last_removal_makes_a_difference() -> None:
    source, count = resolve(str(REFERENCE)), 5
    with open_stack(source, torch.float32, "cpu") as stack:
        without, room = forwards(stack, 0, count), forwards(stack, 10**9, count)
        state = text().ids.numel() * stack.shell.model.config.hidden_size * 4
        half = forwards(stack, 20 * state, count)
    gone = room[count:]
    assert without[count:] == gone == half[count:]
    assert without[:count] == [n * (n + 1) // 2 - p for n, p in positions(gone)]
    assert room[:count] == [sum(range(p + 1, n + 1)) for n, p in positions(gone)]
    assert sum(room[:count]) <= sum(half[:count]) <= sum(without[:count])


def positions(gone: list[int]) -> list[tuple[int, int]]:
    """For each round, how many layers are left, and how many of them precede the last removal."""
    left, found = list(range(12)), [(12, 0)]
    for layer in gone[:-1]:
        position = left.index(layer)
        left.remove(layer)
        found.append((len(left), position))
    return found


@pytest.mark.parametrize(("room", "marks"), [(66, 1), (65, 2), (30, 2), (29, 3), (0, None)])
def test_marks_are_as_close_as_memory_allows(room: int, marks: int | None) -> None:
    assert greedy.marked_depths(12, room) == (range(marks, 12, marks) if marks else range(0))


def test_taylor_is_the_sum_of_weight_times_gradient(source: Source) -> None:
    windows = text()
    model = whole(source)
    logits = model(windows.ids, use_cache=False).logits[:, :-1]
    cross_entropy(logits.flatten(0, 1), windows.ids[:, 1:].flatten()).backward()
    expected = [
        sum((p * p.grad).abs().sum().item() for p in block.parameters() if p.grad is not None)
        for block in decoder_stack(model, depth_of(source))[1]
    ]
    assert taylor_importance(source, windows, "cpu") == pytest.approx(expected, rel=1e-3)


def test_the_budget_error_says_how_much_is_needed(source: Source) -> None:
    with open_stack(source, torch.float32, "cpu") as stack:
        windows = text()
        whole = budget(SETTINGS, stack, windows, 10**10, depth_of(source))
        assert (whole.hold, whole.windows) == (True, 5)
        assert 0 < whole.spare < 8 * 10**9
        short = {**vars(SETTINGS), "memory": "1MB"}
        with pytest.raises(ConfigError, match=r"scan.memory=1MB is too small .* at least 0\.\dGB"):
            budget(ScanSettings(**short), stack, windows, 10**10, depth_of(source))
        streamed = ScanSettings(**{**vars(SETTINGS), "stream": "true"})
        assert not budget(streamed, stack, windows, 10**10, depth_of(source)).hold
        little = budget(SETTINGS, stack, windows, 0, depth_of(source))
        assert (little.hold, little.windows) == (False, 1)


def test_statistics_survive_their_file(source: Source) -> None:
    found = statistics(source, text())
    assert Statistics.from_dict({**json.loads(json.dumps(asdict(found))), "seconds": 1.0}) == found


def test_rank_stability() -> None:
    assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(2 / 3)
    assert kendall_tau([1, 1, 1], [1, 2, 3]) == 0
    assert jaccard({1, 2}, {2, 3}) == pytest.approx(1 / 3)
