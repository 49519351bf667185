"""Model variants: which layers stay. Decided from the depth alone; nothing here imports torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

from typing_extensions import override

from lamina.depth.layer_sets import as_given, parse_layers
from lamina.depth.protection import Protection
from lamina.depth.selection import LayerScores, LeaveOneOut, Selector
from lamina.depth.targets import UNITS, Target
from lamina.errors import ConfigError
from lamina.limits import LAYER_INDEX

UNPROTECTED = Protection()


class Variant(Protocol):
    """A choice of layers."""

    model_type: ClassVar[str]
    """Name of the variant, and of its folder below checkpoints/ and logs/."""

    def kept_layers(
        self, num_layers: int, scores: LayerScores, protected: Protection = UNPROTECTED
    ) -> tuple[int, ...]:
        """Return the 0-based indices that stay, ascending: all, unless the variant chooses.

        Scores are computed only if used. Of a target, which depends on the layers' sizes, it is the
        largest choice. Raises ConfigError if the choice does not fit a model of this depth, or
        removes a protected layer.
        """
        return tuple(range(num_layers))


@dataclass(frozen=True, kw_only=True)
class Original(Variant):
    """The untouched model."""

    model_type: ClassVar[str] = "original"


@dataclass(frozen=True, kw_only=True)
class Dropped(Variant):
    """The model without one layer."""

    layer_to_drop: Annotated[Any, LAYER_INDEX]
    """0-based index of the decoder layer to remove; auto for the cheapest one."""
    model_type: ClassVar[str] = "dropped"

    @override
    def kept_layers(
        self, num_layers: int, scores: LayerScores, protected: Protection = UNPROTECTED
    ) -> tuple[int, ...]:
        if self.layer_to_drop != "auto" and type(self.layer_to_drop) is not int:
            raise ConfigError(f"model.layer_to_drop={self.layer_to_drop}: {LAYER_INDEX.advice}")
        if num_layers < 2:
            raise ConfigError(
                f"model.layer_to_drop={self.layer_to_drop}, but the model has {num_layers} layer: "
                "nothing would be left; choose model=original"
            )
        if self.layer_to_drop == "auto":
            cheapest, setting = LeaveOneOut(), "model.layer_to_drop=auto"
            return protected.kept(cheapest, num_layers, num_layers - 1, scores, setting)
        if not 0 <= self.layer_to_drop < num_layers:
            raise ConfigError(
                f"model.layer_to_drop={self.layer_to_drop}, but the model has {num_layers} layers: "
                f"use 0 to {num_layers - 1} (0-based)"
            )
        kept = tuple(index for index in range(num_layers) if index != self.layer_to_drop)
        protected.refuse_removal(f"model.layer_to_drop={self.layer_to_drop}", kept, num_layers)
        return kept


@dataclass(frozen=True, kw_only=True)
class Pruned(Variant):
    """A given number of the model's layers, chosen by a selector."""

    keep_layers: int
    """How many layers stay, without a target."""
    selector: Selector
    """Chooses which ones."""
    target_parameters: Any = None
    """Most parameters of the reduced model, such as 6e9 or 6B."""
    target_bytes: Any = None
    """Most bytes of its saved weights, such as 12GB."""
    model_type: ClassVar[str] = "pruned"

    @property
    def target(self) -> Target | None:
        """What decides the number of layers in place of `keep_layers`, if anything."""
        given = (Target(key, getattr(self, key)) for key in UNITS)
        return next((target for target in given if target.given is not None), None)

    @property
    def count(self) -> int | None:
        """How many layers stay; None if a target decides it."""
        return self.keep_layers if self.target is None else None

    def problems(self) -> Iterator[str]:
        """Refuse a target that cannot be read."""
        try:
            _ = self.target and self.target.limit
        except ConfigError as error:
            yield str(error)

    @override
    def kept_layers(
        self, num_layers: int, scores: LayerScores, protected: Protection = UNPROTECTED
    ) -> tuple[int, ...]:
        if self.target is not None:
            setting = self.target.setting
            return protected.kept(self.selector, num_layers, num_layers - 1, scores, setting)
        if not 0 < self.keep_layers < num_layers:
            whole = "; for the whole model choose model=original"
            raise ConfigError(
                f"model.keep_layers={self.keep_layers}, but the model has {num_layers} layers: "
                f"use 1 to {num_layers - 1}" + (whole if self.keep_layers == num_layers else "")
            )
        setting = f"model.keep_layers={self.keep_layers}"
        return protected.kept(self.selector, num_layers, self.keep_layers, scores, setting)


@dataclass(frozen=True, kw_only=True)
class Layers(Variant):
    """Any set of the model's layers, given by those that stay or by those that go."""

    keep: Any
    """Layers that stay: 0-based indices and half-open ranges; None with `drop`."""
    drop: Any
    """Layers that go, in the same form; None with `keep`."""
    model_type: ClassVar[str] = "layers"

    @override
    def kept_layers(
        self, num_layers: int, scores: LayerScores, protected: Protection = UNPROTECTED
    ) -> tuple[int, ...]:
        if (self.keep is None) == (self.drop is None):
            raise ConfigError(
                "model=layers takes either model.keep or model.drop, such as "
                "'model.keep=[0,1,2,5-11]' or 'model.drop=[3,4]' (ranges are half-open)"
            )
        if self.keep is not None:
            kept = parse_layers("model.keep", self.keep, num_layers)
        else:
            dropped = parse_layers("model.drop", self.drop, num_layers)
            kept = tuple(index for index in range(num_layers) if index not in dropped)
        if not 0 < len(kept) < num_layers:
            nothing = "no layer would be left" if not kept else "every layer would stay"
            raise ConfigError(f"model=layers: {nothing}; for the whole model choose model=original")
        key, value = ("drop", self.drop) if self.keep is None else ("keep", self.keep)
        protected.refuse_removal(f"model.{key}={as_given(value)}", kept, num_layers)
        return kept


@dataclass(frozen=True, kw_only=True)
class Scratch(Variant):
    """A new, small model with random weights and a byte-level tokenizer; model_name is not read."""

    architecture: dict[str, Any]
    """Keyword arguments of the architecture's transformers config, including `model_type`."""
    model_type: ClassVar[str] = "scratch"


@dataclass(frozen=True, kw_only=True)
class DepthDefaults:
    """Defaults of the variants' own keys; an experiment can set them whatever the variant."""

    keep_layers: int
    """Layers that stay with model=pruned."""
    layer_to_drop: Annotated[Any, LAYER_INDEX]
    """0-based index of the layer that goes with model=dropped, or auto."""
    protect: Any
    """Layers that always stay: 0-based indices, half-open ranges, and kinds of layers."""
