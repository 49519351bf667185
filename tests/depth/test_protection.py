"""depth.protect: the named layers stay, whatever chooses; a choice that removes one is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.depth import selection
from lamina.depth.plan import make_plan
from lamina.depth.protection import Protection, parse_protection
from lamina.depth.selection import NoScores, Selector
from lamina.depth.variants import Dropped, Layers, Original, Pruned, Variant
from lamina.errors import ConfigError
from tests.architectures import save
from tests.conftest import no_scores
from tests.depth.test_selection import FOUND, Scores

HYBRID: dict[str, Any] = {
    "num_hidden_layers": 6,
    "layer_types": [*["linear_attention"] * 2, "full_attention"] * 2,
}


def protecting(*layers: int) -> Protection:
    return Protection(frozenset(layers), f"depth.protect=[{','.join(map(str, layers))}]")


@pytest.mark.parametrize(
    ("selector", "keep", "protected", "kept"),
    [
        (selection.First(), 3, (4,), (0, 1, 4)),
        (selection.First(), 2, (3, 4), (3, 4)),
        (selection.Last(), 3, (0,), (0, 3, 4)),
        (selection.Uniform(), 3, (1,), (0, 1, 4)),
        (selection.Magnitude(), 3, (3,), (0, 3, 4)),
        (selection.BlockInfluence(), 3, (4,), (0, 2, 4)),
        (selection.LeaveOneOut(), 3, (2,), (0, 2, 4)),
        (selection.LeaveOneOutKL(), 3, (3,), (0, 3, 4)),
        (selection.Angular(token="mean"), 3, (3,), (2, 3, 4)),
        (selection.Greedy(), 3, (4,), (0, 3, 4)),
        (selection.Taylor(), 2, (1,), (0, 1)),
    ],
)
def test_every_selector_keeps_the_protected_layers_and_chooses_among_the_others(
    selector: Selector, keep: int, protected: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    variant = Pruned(keep_layers=keep, selector=selector)
    assert variant.kept_layers(5, Scores(), protecting(*protected)) == kept


@pytest.mark.parametrize("keep", range(3, 12))
def test_a_random_choice_keeps_the_given_number(keep: int) -> None:
    variant = Pruned(keep_layers=keep, selector=selection.Random(seed=1))
    kept = variant.kept_layers(12, NoScores(), protecting(0, 5, 11))
    assert len(set(kept)) == keep
    assert {0, 5, 11} <= set(kept)
    assert list(kept) == sorted(kept)


def test_the_cheapest_layer_that_is_not_protected_is_dropped() -> None:
    kept = Dropped(layer_to_drop="auto").kept_layers(5, Scores(), protecting(2))
    assert kept == (0, 2, 3, 4)


def test_nothing_protected_changes_nothing() -> None:
    for selector in (selection.First(), selection.Greedy(), selection.Angular(token="last")):
        expected = selector.kept(5, 3, Scores())
        variant = Pruned(keep_layers=3, selector=selector)
        assert variant.kept_layers(5, Scores(), protecting()) == expected


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (
            Dropped(layer_to_drop=2),
            "model.layer_to_drop=2 removes layer 2, which depth.protect=[0,2] protects; 3 of 5 "
            "layers may go: choose other layers, or protect fewer",
        ),
        (
            Layers(keep=None, drop=["1-3"]),
            "model.drop=[1-3] removes layer 2, which depth.protect=[0,2] protects; 3 of 5 layers "
            "may go: choose other layers, or protect fewer",
        ),
        (
            Layers(keep="1-5", drop=None),
            "model.keep=1-5 removes layer 0, which depth.protect=[0,2] protects; 3 of 5 layers may "
            "go: choose other layers, or protect fewer",
        ),
        (
            Pruned(keep_layers=1, selector=selection.First()),
            "model.keep_layers=1 leaves 1 of 5 layers, but depth.protect=[0,2] protects 2: keep at "
            "least those, or protect fewer",
        ),
        (
            Pruned(keep_layers=2, selector=selection.Angular(token="mean")),
            None,
        ),
    ],
)
def test_a_choice_that_removes_a_protected_layer_is_refused(
    variant: Variant, message: str | None
) -> None:
    if message is None:
        assert variant.kept_layers(5, Scores(), protecting(0, 2)) == (0, 2)
        return
    with pytest.raises(ConfigError) as raised:
        variant.kept_layers(5, NoScores(), protecting(0, 2))
    assert str(raised.value) == message


def test_angular_needs_a_block_without_a_protected_layer() -> None:
    variant = Pruned(keep_layers=3, selector=selection.Angular(token="mean"))
    with pytest.raises(ConfigError) as raised:
        variant.kept_layers(5, Scores(), protecting(1, 3))
    assert str(raised.value) == (
        "selector=angular drops one block of 2 layers, and depth.protect leaves no such block: "
        "keep more layers, protect fewer, or choose another selector"
    )


class Unscored(Scores):
    def greedy(self, count: int, protected: frozenset[int] = frozenset()) -> tuple[int, ...]:
        raise selection.NoScoreError(3)


def test_a_layer_without_a_score_keeps_its_index_in_the_message() -> None:
    losses = replace(FOUND.leave_one_out, loss=(9.0, 1.0, 1.1, float("nan"), 3.0))
    variant = Pruned(keep_layers=3, selector=selection.LeaveOneOut())
    found = Scores(replace(FOUND, leave_one_out=losses))
    with pytest.raises(ConfigError) as raised:
        variant.kept_layers(5, found, protecting(0))
    message = "layer 3 has no score (its loss is not finite): set dtype=float32"
    assert str(raised.value) == message
    searched = replace(variant, selector=selection.Greedy())
    with pytest.raises(ConfigError) as raised:
        searched.kept_layers(5, Unscored(), protecting(0))
    assert str(raised.value) == message
    for selector in (selection.Magnitude(), selection.LeaveOneOutKL()):  # they use other scores
        other = replace(variant, selector=selector)
        expected = other.kept_layers(5, Scores(), protecting(0))
        assert other.kept_layers(5, found, protecting(0)) == expected


@pytest.mark.parametrize(
    ("protect", "layers"),
    [
        ([], set()),
        ([0, 1], {0, 1}),
        (["0-2", 5], {0, 1, 5}),
        ([0, "full_attention"], {0, 2, 5}),
        ([0, 1, "linear_attention"], {0, 1, 3, 4}),
        ("0,full_attention", {0, 2, 5}),
        (5, {5}),
        (None, set()),
    ],
)
def test_layers_are_named_by_index_range_or_kind(protect: Any, layers: set[int]) -> None:
    assert parse_protection(protect, HYBRID).layers == layers


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"num_hidden_layers": 6, "full_attention_interval": 3}, "full_attention"),
        ({"num_hidden_layers": 6, "hybrid_override_pattern": "MM*MM*"}, "*"),
        ({"num_hidden_layers": 6, "hybrid_override_pattern": "MM-M*-"}, "-"),
        ({"num_hidden_layers": 6, "layers_block_type": ["m", "m", "attention"] * 2}, "attention"),
    ],
)
def test_kinds_come_from_whatever_list_the_config_has(config: dict[str, Any], kind: str) -> None:
    assert parse_protection([kind], config).layers == {2, 5}


@pytest.mark.parametrize(
    ("protect", "message"),
    [
        (
            ["linear_atention"],
            "depth.protect=[linear_atention]: 'linear_atention' is neither a layer of this model "
            "(0 to 5, or a half-open range such as 0-2), nor a kind of its layers (full_attention "
            "or linear_attention)",
        ),
        (
            [0, 6],
            "depth.protect=[0,6]: 6 lies outside of the model's 6 layers: indices are 0 to 5, "
            "ranges half-open (0-6 is all)",
        ),
        (
            "",
            "depth.protect='': '' is neither a layer of this model (0 to 5, or a half-open range "
            "such as 0-2), nor a kind of its layers (full_attention or linear_attention)",
        ),
        (
            [0, True],
            "depth.protect=[0,True]: 'True' is neither a layer of this model (0 to 5, or a "
            "half-open range such as 0-2), nor a kind of its layers (full_attention or "
            "linear_attention)",
        ),
    ],
)
def test_an_entry_that_names_no_layer_is_refused(protect: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_protection(protect, HYBRID)
    assert str(raised.value) == message


def test_while_kinds_are_unknown_indices_are_checked_and_the_value_is_shown_as_given() -> None:
    plain = {"num_hidden_layers": 6}
    given = [0, "linear_attention"]
    found = parse_protection(given, plain, strict=False)
    assert found == Protection(frozenset({0}), "depth.protect=[0,linear_attention]")
    with pytest.raises(ConfigError) as raised:
        parse_protection([*given, 99], plain, strict=False)
    assert str(raised.value) == (
        "depth.protect=[0,linear_attention,99]: 99 lies outside of the model's 6 layers: indices "
        "are 0 to 5, ranges half-open (0-6 is all)"
    )


def test_a_kind_that_only_the_config_class_derives_is_known(tmp_path: Path) -> None:
    folder = save("qwen3_next", tmp_path / "model")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for field in ("layer_types", "full_attention_interval"):
        content.pop(field, None)
    path.write_text(json.dumps(content))  # the class's default is every fourth layer
    with pytest.raises(ConfigError, match="removes layer 3, which"):
        make_plan(Layers(keep=None, drop=[3]), str(folder), no_scores, ["full_attention"])
    plan = make_plan(Original(), str(folder), no_scores, ["full_attention"])
    assert plan.kept_layers == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("drop", "layout"),
    [
        (
            [0],
            "1 linear_attention, 1 full_attention, 2 linear_attention, 1 full_attention (uneven: "
            "llama.cpp before September 2026 and Megatron-Bridge before July 2026 assign the wrong "
            "kind to some layers)",
        ),
        ([0, 3], "1 linear_attention, 1 full_attention, repeated over 4 layers"),
        (["3-6"], "2 linear_attention, 1 full_attention, repeated over 3 layers"),
        ([0, 1, 3, 4], None),
    ],
)
def test_the_layout_of_a_hybrid_is_reported(
    drop: list[Any], layout: str | None, tmp_path: Path
) -> None:
    folder = save("qwen3_next", tmp_path / "model")
    plan = make_plan(Layers(keep=None, drop=drop), str(folder), no_scores)
    assert plan.notes() == ([f"layout: {layout}"] if layout else [])


def test_other_hybrids_have_an_uneven_layout_without_a_warning(tmp_path: Path) -> None:
    folder = save("gemma3_text", tmp_path / "model")
    plan = make_plan(Layers(keep=None, drop=[0]), str(folder), no_scores)
    assert plan.notes() == [
        "layout: 1 sliding_attention, 1 full_attention, 2 sliding_attention, 1 full_attention"
    ]
