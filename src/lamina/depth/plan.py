"""The plan of a reduction: which layers of which model stay. Made before a weight is read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamina.depth.source import Source, resolve
from lamina.depth.surgery import layer_count, reduced_config
from lamina.depth.variants import Scratch, Variant, half_open_ranges

if TYPE_CHECKING:
    from transformers import PretrainedConfig

REPLICABLE_STACKS = ("layers", "h")
"""Names of layer stacks that PEFT's layer replication finds."""


@dataclass(frozen=True)
class Plan:
    """Which layers stay, of which model."""

    model_type: str
    """Name of the variant: original, dropped, pruned or scratch."""

    source: Source | None
    """The larger model's files; None for a model from scratch."""

    num_layers: int
    """Decoder layers of the larger model."""

    kept_layers: tuple[int, ...]
    """0-based indices of the layers that stay, ascending."""

    @property
    def is_reduced(self) -> bool:
        """Whether any layer goes."""
        return len(self.kept_layers) < self.num_layers

    @property
    def layer_replication(self) -> list[list[int]] | None:
        """The kept layers as PEFT's `layer_replication`: half-open ranges; None if all stay."""
        return half_open_ranges(self.kept_layers) if self.is_reduced else None

    @property
    def name(self) -> str:
        """The variant and its depth, such as pruned-24of36."""
        return f"{self.model_type}-{len(self.kept_layers)}of{self.num_layers}"


def make_plan(variant: Variant, model_name: str) -> Plan:
    """Decide which layers stay, from config.json alone.

    Raises:
        ConfigError: The variant does not fit the model's depth.
        ModelError: The model is not found, has no weights, or cannot be reduced exactly.
    """
    if isinstance(variant, Scratch):
        count = layer_count(variant.architecture)
        return Plan(variant.model_type, None, count, variant.kept_layers(count))
    source = resolve(model_name)
    num_layers = layer_count(source.config)
    kept_layers = variant.kept_layers(num_layers)
    reduced_config(source.config, kept_layers)
    if source.is_local:
        source.weight_files()
    return Plan(variant.model_type, source, num_layers, kept_layers)


def adapter_form_is_exact(plan: Plan, config: "PretrainedConfig", stack: str) -> bool:
    """Say whether an adapter with layer replication rebuilds exactly the reduced model.

    PEFT replicates only stacks whose names it knows, and leaves `layer_types` as they were: with
    mixed types the wrong mask would reach the layers behind a gap.

    Args:
        plan: What was removed.
        config: The reduced model's.
        stack: Name of the module list that holds its decoder layers.
    """
    if not plan.is_reduced:
        return True
    types = set(getattr(config, "layer_types", None) or ())
    return stack in REPLICABLE_STACKS and len(types) <= 1
