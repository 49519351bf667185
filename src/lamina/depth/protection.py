"""`depth.protect`: layers that nothing removes. A selector chooses among the others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from typing_extensions import override

from lamina.depth.layer_kinds import layer_kinds
from lamina.depth.layer_sets import parse_layers
from lamina.depth.selection import LayerScores, Selector, without_lowest
from lamina.depth.statistics import Numbers, Statistics
from lamina.depth.surgery import layer_count
from lamina.errors import ConfigError, either


@dataclass(frozen=True)
class Protection:
    """The layers of one model that stay in any case."""

    layers: frozenset[int] = frozenset()
    """0-based indices."""

    given: str = "depth.protect=[]"
    """The setting, for messages."""

    def refuse_removal(self, setting: str, kept: Sequence[int], num_layers: int) -> None:
        """Raise a ConfigError if a choice of kept layers, made by `setting`, leaves one out."""
        if lost := sorted(self.layers.difference(kept)):
            free = num_layers - len(self.layers)
            count = f"; {free} of {num_layers} layers may go" if free else " like every other"
            raise ConfigError(
                f"{setting} removes layer {lost[0]}, which {self.given} protects{count}: choose "
                "other layers, or protect fewer"
            )

    def kept(
        self,
        selector: Selector,
        num_layers: int,
        keep_layers: int,
        scores: LayerScores,
        setting: str,
    ) -> tuple[int, ...]:
        """Return the layers that stay (0-based, ascending): these, and the selector's choice.

        `setting` decides their number, for messages.

        Raises:
            ConfigError: More layers are protected than may stay.
        """
        if not self.layers:
            return selector.kept(num_layers, keep_layers, scores)
        free = tuple(index for index in range(num_layers) if index not in self.layers)
        wanted = keep_layers - len(self.layers)
        if wanted < 0:
            raise ConfigError(
                f"{setting} leaves {keep_layers} of {num_layers} layers, but {self.given} protects "
                f"{len(self.layers)}: keep at least those, or protect fewer"
            )
        if wanted == 0:
            return tuple(sorted(self.layers))
        chosen = selector.kept(len(free), wanted, FreeScores(scores, free, self.layers))
        return tuple(sorted({*self.layers, *(free[index] for index in chosen)}))


@dataclass(frozen=True)
class FreeScores(LayerScores):
    """The scores of the layers that are not protected, as if there were no others."""

    scores: LayerScores

    free: tuple[int, ...]
    """0-based indices in the model."""

    protected: frozenset[int]

    @override
    def statistics(self) -> Statistics:
        whole = self.scores.statistics()
        alone = whole.leave_one_out
        return replace(
            whole,
            num_layers=len(self.free),
            leave_one_out=replace(alone, loss=self._of(alone.loss), kl=self._of(alone.kl)),
            block_influence=self._of(whole.block_influence),
            magnitude=self._of(whole.magnitude),
            angular_distance=self._blocks(whole.angular_distance),
            angular_distance_last=self._blocks(whole.angular_distance_last),
        )

    @override
    def greedy(self, count: int, protected: frozenset[int] = frozenset()) -> tuple[int, ...]:
        return tuple(map(self.free.index, self.scores.greedy(count, self.protected)))

    @override
    def taylor(self) -> tuple[float, ...]:
        return self._of(self.scores.taylor())

    def _of(self, values: Numbers) -> Numbers:
        without_lowest(values, len(values))  # refuses NaN, with the layer's index in the model
        return tuple(values[index] for index in self.free)

    def _blocks(self, table: tuple[Numbers, ...]) -> tuple[Numbers, ...]:
        """Return the distances of blocks without a protected layer; infinity for all others."""
        depth = len(self.free)
        return tuple(
            tuple(
                table[self.free[start]][size]
                if size == 0 or self.free[start + size - 1] == self.free[start] + size - 1
                else inf
                for size in range(depth - start + 1)
            )
            for start in range(depth)
        )


def entries(protect: Any) -> list[str]:
    """Return the entries of depth.protect, which may also be one entry, or several in one text."""
    given = protect if isinstance(protect, list | tuple) else [] if protect is None else [protect]
    return [part.strip() for item in given for part in str(item).split(",")]


def names_kind(entry: str) -> bool:
    """Whether an entry of depth.protect is not an index or a range."""
    return re.fullmatch(r"[\d\s-]+", entry) is None


def protection(protect: Any, config: dict[str, Any]) -> Protection:
    """Find the layers that depth.protect names by index, half-open range or kind.

    Raises:
        ConfigError: An entry is none of these in this model.
    """
    parts, kinds = entries(protect), layer_kinds(config)
    given = f"depth.protect=[{','.join(parts)}]"
    found: set[int] = set()
    for part in parts:
        if not names_kind(part):
            found.update(parse_layers("depth.protect", part, layer_count(config)))
            continue
        named = {index for index, each in enumerate(kinds) if part in each}
        if not named:
            known = sorted({kind for each in kinds for kind in each})
            allowed = f", nor a kind of its layers ({either(known)})" if known else ""
            raise ConfigError(
                f"{given}: {part!r} is neither a layer of this model (0 to {len(kinds) - 1}, or a "
                f"half-open range such as 0-2){allowed}"
            )
        found |= named
    return Protection(frozenset(found), given)
