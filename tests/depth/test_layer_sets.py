"""Parsing and formatting sets of layers."""

from typing import Any

import pytest

from lamina.depth.layer_sets import format_layers, half_open_ranges, parse_layers
from lamina.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0, 1, 2, "5-11"], (0, 1, 2, 5, 6, 7, 8, 9, 10)),
        ("0,1, 5-7", (0, 1, 5, 6)),
        ("0-12", tuple(range(12))),
        (4, (4,)),
        (["7", 3], (3, 7)),
    ],
)
def test_indices_and_half_open_ranges_are_parsed(value: Any, expected: tuple[int, ...]) -> None:
    assert parse_layers("model.keep", value, 12) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([12], r"model\.keep=\[12\]: 12 lies outside of the model's 12 layers: .* 0 to 11"),
        ("5-13", "5-13 lies outside"),
        ("5-5", "5-5 lies outside"),
        ([-1], "'-1' is neither a 0-based layer index nor"),
        ("a-b", "'a-b' is neither"),
        ("", "'' is neither"),
        ([True], "'True' is neither"),
        ([1.5], "'1.5' is neither"),
        ([1, "0-3"], "layer 1 is named more than once"),
    ],
)
def test_invalid_sets_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_layers("model.keep", value, 12)


def test_ranges_are_written_half_open() -> None:
    assert half_open_ranges((0, 1, 4)) == [[0, 2], [4, 5]]
    assert format_layers((0, 1, 4)) == "[0, 2), [4, 5)"
    assert format_layers(()) == ""
