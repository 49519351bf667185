"""Model variants: which layers stay. Decided from the depth alone; nothing here imports torch.

A variant answers one question, `kept_layers(num_layers)`: the 0-based indices of the decoder layers
that stay, in ascending order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from lamina.errors import ConfigError


class Variant(Protocol):
    """A choice of layers."""

    model_type: ClassVar[str]
    """Name of the variant, and of its folder below checkpoints/ and logs/."""

    def kept_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the 0-based indices that stay, ascending, of a model with `num_layers` layers.

        Raises:
            ConfigError: The choice does not fit a model of this depth.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Original:
    """The untouched model."""

    model_type: ClassVar[str] = "original"

    def kept_layers(self, num_layers: int) -> tuple[int, ...]:
        """Keep every layer."""
        return tuple(range(num_layers))


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """The model without one layer."""

    layer_to_drop: int
    """0-based index of the decoder layer to remove."""

    model_type: ClassVar[str] = "dropped"

    def kept_layers(self, num_layers: int) -> tuple[int, ...]:
        """Keep all layers but `layer_to_drop`.

        Raises:
            ConfigError: There is no such layer, or the model has only one.
        """
        if num_layers < 2:
            raise ConfigError(
                f"model.layer_to_drop={self.layer_to_drop}, but the model has {num_layers} layer: "
                "nothing would be left; choose model=original"
            )
        if not 0 <= self.layer_to_drop < num_layers:
            raise ConfigError(
                f"model.layer_to_drop={self.layer_to_drop}, but the model has {num_layers} layers: "
                f"give 0 to {num_layers - 1} (0-based)"
            )
        return tuple(index for index in range(num_layers) if index != self.layer_to_drop)


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """The model's first layers."""

    keep_layers: int
    """How many layers stay: those with indices in [0, keep_layers)."""

    model_type: ClassVar[str] = "pruned"

    def kept_layers(self, num_layers: int) -> tuple[int, ...]:
        """Keep the first `keep_layers` layers.

        Raises:
            ConfigError: Nothing, everything or more than there is would be kept.
        """
        if not 0 < self.keep_layers < num_layers:
            whole = "; for the whole model choose model=original"
            raise ConfigError(
                f"model.keep_layers={self.keep_layers}, but the model has {num_layers} layers: "
                f"give 1 to {num_layers - 1}" + (whole if self.keep_layers == num_layers else "")
            )
        return tuple(range(self.keep_layers))


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A new, small model with random weights and a byte-level tokenizer; model_name is not read."""

    architecture: dict[str, Any]
    """Keyword arguments of the architecture's transformers config, `model_type` among them."""

    model_type: ClassVar[str] = "scratch"

    def kept_layers(self, num_layers: int) -> tuple[int, ...]:
        """Keep every layer."""
        return tuple(range(num_layers))


def half_open_ranges(kept_layers: Sequence[int]) -> list[list[int]]:
    """Write ascending indices as half-open ranges: (0, 1, 4) becomes [[0, 2], [4, 5]]."""
    ranges: list[list[int]] = []
    for index in kept_layers:
        if ranges and ranges[-1][1] == index:
            ranges[-1][1] = index + 1
        else:
            ranges.append([index, index + 1])
    return ranges
