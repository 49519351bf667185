"""Which layers stay."""

from typing import Any

import pytest

from lamina.depth.plan import Plan
from lamina.depth.selection import First, LeaveOneOut, NoScores
from lamina.depth.variants import Dropped, Layers, Original, Pruned
from lamina.errors import ConfigError


def test_original_keeps_every_layer() -> None:
    assert Original().kept_layers(4, NoScores()) == (0, 1, 2, 3)


@pytest.mark.parametrize("layer", range(4))
def test_dropped_keeps_all_but_one(layer: int) -> None:
    kept = Dropped(layer_to_drop=layer).kept_layers(4, NoScores())
    assert kept == tuple(index for index in range(4) if index != layer)


@pytest.mark.parametrize("layer", [-1, 4, 99])
def test_dropped_refuses_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"layer_to_drop={layer}, .* has 4 layers: use 0 to 3"):
        Dropped(layer_to_drop=layer).kept_layers(4, NoScores())


def test_the_only_layer_is_not_dropped() -> None:
    with pytest.raises(ConfigError, match="nothing would be left"):
        Dropped(layer_to_drop=0).kept_layers(1, NoScores())


def test_pruned_keeps_the_first_layers() -> None:
    assert Pruned(keep_layers=3, selector=First()).kept_layers(4, NoScores()) == (0, 1, 2)


@pytest.mark.parametrize("count", [-1, 0, 4, 5])
def test_pruned_refuses_nothing_everything_and_more(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"keep_layers={count}, .* has 4 layers: use 1 to 3"):
        Pruned(keep_layers=count, selector=First()).kept_layers(4, NoScores())


def test_any_set_of_layers_is_kept_or_dropped() -> None:
    assert Layers(keep=[5, 0, "2-4"], drop=None).kept_layers(6, NoScores()) == (0, 2, 3, 5)
    assert Layers(keep=None, drop=[3, 4]).kept_layers(6, NoScores()) == (0, 1, 2, 5)
    assert Layers(keep=None, drop="0-2").kept_layers(6, NoScores()) == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("keep", "drop", "message"),
    [
        (None, None, r"takes either model\.keep or model\.drop"),
        ([0], [1], r"takes either model\.keep or model\.drop"),
        ("0-4", None, "every layer would stay; for the whole model choose model=original"),
        (None, "0-4", "no layer would be left"),
        (None, [], r"model\.drop=\[\]: names no layer"),
        ([4], None, r"model\.keep=\[4\]: 4 lies outside"),
    ],
)
def test_an_impossible_set_is_refused(keep: Any, drop: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Layers(keep=keep, drop=drop).kept_layers(4, NoScores())


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (Original(), "original"),
        (Dropped(layer_to_drop=16), "drop-16"),
        (Pruned(keep_layers=24, selector=First()), "keep-24-first"),
        (Layers(keep=None, drop=[3, "5-11"]), "drop-3,5-11"),
        (Layers(keep="0-24", drop=None), "drop-24-36"),
    ],
)
def test_a_plans_name_says_what_stays_or_goes(variant: Any, name: str) -> None:
    kept = variant.kept_layers(36, NoScores())
    chosen = {"selector": {"name": "First"}} if isinstance(variant, Pruned) else {}
    assert Plan(variant.model_type, None, 36, kept, chosen).name == name
    further = {"selector": {"name": LeaveOneOut.__name__}}
    assert Plan("pruned", None, 36, kept, further).name == f"keep-{len(kept)}-leave_one_out"
