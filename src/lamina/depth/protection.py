"""`depth.protect`: layers that nothing removes. A selector chooses among the others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from typing_extensions import override

from lamina.depth.layer_sets import as_given, parse_entry, split_entries
from lamina.depth.selection import LayerScores, NoScoreError, Selector
from lamina.depth.statistics import Numbers, Statistics
from lamina.depth.surgery import layer_kinds
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

        `setting` decides their number, for messages. Raises ConfigError if more layers are
        protected than may stay.
        """
        free = tuple(index for index in range(num_layers) if index not in self.layers)
        wanted = keep_layers - len(self.layers)
        if wanted < 0:
            raise ConfigError(
                f"{setting} leaves {keep_layers} of {num_layers} layers, but {self.given} protects "
                f"{len(self.layers)}: keep at least those, or protect fewer"
            )
        if wanted == 0:
            return tuple(sorted(self.layers))
        try:
            chosen = selector.kept(len(free), wanted, FreeScores(scores, free, self.layers))
        except NoScoreError as error:
            raise NoScoreError(free[error.layer]) from None
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
        try:
            return tuple(map(self.free.index, self.scores.greedy(count, self.protected)))
        except NoScoreError as error:
            raise NoScoreError(self.free.index(error.layer)) from None

    @override
    def taylor(self) -> tuple[float, ...]:
        return self._of(self.scores.taylor())

    def _of(self, values: Numbers) -> Numbers:
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


def names_kind(entry: str) -> bool:
    """Whether an entry of depth.protect is not an index or a range; `-` alone is a kind."""
    return re.fullmatch(r"[\s-]*\d[\d\s-]*", entry) is None


def parse_protection(protect: Any, config: dict[str, Any], *, strict: bool = True) -> Protection:
    """Find the layers that depth.protect names by index, half-open range or kind.

    Unless `strict`, unknown kinds are skipped. Raises ConfigError if an entry is none of these in
    this model.
    """
    setting, kinds = f"depth.protect={as_given(protect)}", layer_kinds(config)
    found: set[int] = set()
    for entry in split_entries(protect):
        if not names_kind(entry):
            found.update(parse_entry(setting, entry, len(kinds)))
            continue
        named = {index for index, each in enumerate(kinds) if entry in each}
        if strict and not named:
            known = sorted({kind for each in kinds for kind in each})
            allowed = f", nor a kind of its layers ({either(known)})" if known else ""
            raise ConfigError(
                f"{setting}: {entry!r} is neither a layer of this model (0 to {len(kinds) - 1}, or "
                f"a half-open range such as 0-2){allowed}"
            )
        found |= named
    return Protection(frozenset(found), setting)
