"""The smaller model's config in transformers' form, proven block by block."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamina.depth.blocks import blueprint, refuse_changed_blocks
from lamina.depth.surgery import PER_LAYER_FIELDS, reduced_config
from lamina.errors import ModelError
from lamina.weights.source import Source

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Reduction:
    """A proven reduction: what the smaller model is built from."""

    content: dict[str, Any]
    """Its config.json: the larger one's, with the fields that follow the kept layers."""

    config: "PretrainedConfig"
    """The same, as transformers reads it."""

    blueprint: "PreTrainedModel"
    """The smaller model without weights."""


def reduction(source: Source, kept_layers: Sequence[int]) -> Reduction:
    """Derive the smaller model's config and prove that its blocks are the larger one's.

    Args:
        source: The larger model's.
        kept_layers: 0-based indices, ascending.

    Raises:
        ModelError: The architecture is not known to transformers, or cannot be reduced exactly.
    """
    from transformers import AutoConfig

    try:
        larger = AutoConfig.from_pretrained(source.folder)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"model_name={source.name}: config.json: {reason}") from error
    if len(kept_layers) == larger.num_hidden_layers:
        return Reduction(dict(source.config), larger, blueprint(larger))
    content = reduced_config(explicit(source.config, larger), kept_layers)
    smaller = type(larger).from_dict(content)
    model = blueprint(smaller)
    refuse_changed_blocks(blueprint(larger), model, kept_layers)
    return Reduction(content, smaller, model)


def explicit(content: dict[str, Any], config: "PretrainedConfig") -> dict[str, Any]:
    """Add the per-layer lists that a config's class derives where config.json has none.

    Args:
        content: Of config.json.
        config: The same, as transformers reads it.
    """
    derived = json.loads(config.to_json_string(use_diff=False))
    lists = {field: derived[field] for field in PER_LAYER_FIELDS if derived.get(field)}
    return {**content, **{field: lists[field] for field in lists if not content.get(field)}}
