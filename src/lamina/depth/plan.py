"""The plan of a reduction: which layers of which model stay. Made before a weight is read."""

import re
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

from lamina.depth.layer_sets import half_open_ranges, split_entries
from lamina.depth.protection import Protection, names_kind, parse_protection
from lamina.depth.reduction import whole_config, with_derived_lists
from lamina.depth.selection import LayerScores
from lamina.depth.surgery import layer_count, layer_kinds, layout, reduced_config, refuse_sharing
from lamina.depth.targets import UNITS, sizes_of
from lamina.depth.tensor_names import has_mtp_heads, kept_tensors
from lamina.depth.variants import Pruned, Scratch, Variant
from lamina.errors import ModelError
from lamina.weights.source import Source, resolve

TRAINABLE = ("bitsandbytes", "mxfp4")
"""Quantization methods whose weights transformers itself can train an adapter on."""


@dataclass(frozen=True)
class Plan:
    """Which layers stay, of which model."""

    model_type: str
    """Name of the variant: original, dropped, pruned, layers or scratch."""
    source: Source | None
    """The larger model; None for a model from scratch."""
    num_layers: int
    """Decoder layers of the larger model."""
    kept_layers: tuple[int, ...]
    """0-based indices of the layers that stay, ascending."""
    selector: dict[str, Any]
    """Settings of the variant that chose them, such as keep_layers."""
    chosen: str | None = None
    """What a target chose, in words."""

    @property
    def is_reduced(self) -> bool:
        """Whether any layer is dropped."""
        return len(self.kept_layers) < self.num_layers

    def notes(self, *, saved: bool = False) -> list[str]:
        """Return lines on a target's choice, what is left out besides layers, a hybrid's layout.

        `saved` says that transformers writes the weights, not those of an adapter alone: it leaves
        out heads for multi-token prediction even if all layers stay.
        """
        if self.source is None:
            return []
        left_out = ["the vision part"] if self.source.is_text_part else []
        if (saved or self.is_reduced or self.source.is_text_part) and has_mtp_heads(self.source):
            left_out.append("the multi-token prediction heads")
        order = layout(reduced_config(_with_kinds(self.source), self.kept_layers))
        notes = [self.chosen] if self.chosen else []
        notes += [f"left out: {' and '.join(left_out)}"] if left_out else []
        return [*notes, f"layout: {order}"] if order else notes

    @property
    def selector_name(self) -> str | None:
        """The option of the selector that chose the layers, such as greedy; None without one."""
        chosen = self.selector.get("selector")
        return option_name(chosen["name"]) if chosen else None

    @property
    def name(self) -> str:
        """What stays or goes, such as keep-24-greedy or drop-3,5-11 (ranges are half-open)."""
        if self.selector_name:
            return f"keep-{len(self.kept_layers)}-{self.selector_name}"
        ranges = half_open_ranges(sorted({*range(self.num_layers)} - {*self.kept_layers}))
        dropped = ",".join(
            f"{start}-{end}" if end - start > 1 else f"{start}" for start, end in ranges
        )
        return f"drop-{dropped}" if dropped else self.model_type


def option_name(settings: str) -> str:
    """Return the name in YAML of a settings class: block_influence for BlockInfluence."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", settings).lower()


def make_plan(
    variant: Variant,
    model_name: str,
    scores_of: Callable[[Source], LayerScores],
    protect: Any = None,
    dtype: str | None = None,
) -> Plan:
    """Decide which layers stay: from config.json alone, unless the variant needs scores.

    `protect` is depth.protect, `dtype` that of `sizes_of`, for a target. Raises ConfigError if the
    variant does not fit the model's depth, or removes a protected layer, and ModelError if the
    model is not found, has no weights, or cannot be reduced exactly.
    """
    if isinstance(variant, Scratch):
        count = layer_count(variant.architecture, "model.architecture")
        return Plan(variant.model_type, None, count, tuple(range(count)), {})
    source = resolve(model_name)
    with source.reading("config.json"):
        refuse_unusable(source)
        num_layers = layer_count(source.config)
        if source.is_text_part:
            refuse_sharing(source.config)
        protected = protection_of(source, protect)
    chosen: str | None = None
    if isinstance(variant, Pruned) and (target := variant.target):
        sizes = sizes_of(source, UNITS[target.key], dtype)
        kept_layers = target.kept(variant.selector, scores_of(source), protected, sizes)
        chosen = target.chosen(kept_layers, sizes)
    else:
        kept_layers = variant.kept_layers(num_layers, scores_of(source), protected)
    with source.reading("config.json"):
        reduced_config(source.config, kept_layers)
        if source.is_local:
            source.stored(kept_tensors(source.weight_map, kept_layers, source.config))
    settings = {
        key: {"name": type(value).__name__, **vars(value)} if is_dataclass(value) else value
        for key, value in vars(variant).items()
        if value is not None or key not in UNITS
    }
    if chosen:
        settings["keep_layers"] = len(kept_layers)
    return Plan(variant.model_type, source, num_layers, kept_layers, settings, chosen)


def usable_source(model_name: str) -> Source:
    """Find a model; raises ModelError if it is missing, unusable or unknown to transformers."""
    source = resolve(model_name)
    refuse_unusable(source)
    whole_config(source)
    return source


def refuse_unusable(source: Source) -> None:
    """Refuse a config.json without an architecture, and weights that cannot be trained."""
    if not source.config.get("model_type"):
        raise ModelError(
            f"model_name={source.name}: config.json has no model_type: add that of the model's "
            'architecture, such as "model_type": "llama"'
        )
    method = source.config.get("quantization_config") or {}
    if isinstance(method, dict):
        method = method.get("quant_method", TRAINABLE[0])
    if method not in TRAINABLE:
        raise ModelError(
            f"model_name={source.name}: its weights are quantized ({method}) and can be neither "
            "reduced nor trained: use the unquantized model; adapter=qlora quantizes it in memory"
        )


def protection_of(source: Source, protect: Any) -> Protection:
    """Find a model's layers that depth.protect names; raises ConfigError if one does not exist."""
    by_kind = any(map(names_kind, split_entries(protect)))
    return parse_protection(protect, _with_kinds(source) if by_kind else source.config)


def _with_kinds(source: Source) -> dict[str, Any]:
    """Return config.json with its layers' kinds, which its config class may have to derive."""
    if any(layer_kinds(source.config)):
        return source.config
    return with_derived_lists(source.config, whole_config(source))
