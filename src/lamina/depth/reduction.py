"""The smaller model's config as transformers reads it, proven block by block.

Both models are built without weights, from their configs. A block's computation is determined by
its modules, the shapes of their weights and their plain attributes (sliding_window, use_rope,
scaling, ...); only its index may differ. The comparison finds any config field that reaches a block
through its position and that the surgery missed, whatever the architecture.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamina.depth.surgery import PER_LAYER_FIELDS, layer_count, reduced_config
from lamina.errors import ModelError, did_you_mean, naming
from lamina.runtime.console import stage
from lamina.weights.reading import TensorSlice, byte_blocks
from lamina.weights.source import Source

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

INDEX_ATTRIBUTES = frozenset({"layer_idx", "layer_id", "layer_index", "layer_number", "block_idx"})
"""Attributes that hold a block's own position."""

_PLAIN = (bool, int, float, str, type(None), tuple, list)


@dataclass(frozen=True)
class Reduction:
    """A proven reduction: what the smaller model is built from."""

    content: dict[str, Any]
    """The smaller model's config.json."""
    config: "PretrainedConfig"
    """The same, as transformers reads it."""
    blueprint: "PreTrainedModel"
    """The smaller model without weights."""


def reduction(source: Source, kept_layers: Sequence[int]) -> Reduction:
    """Derive the smaller model's config and prove that its blocks equal the larger model's.

    Raises ModelError if transformers does not know the architecture, or removal is not exact.
    """
    larger = whole_config(source)
    with source.reading("config.json"):
        if len(kept_layers) == larger.num_hidden_layers:
            return Reduction(dict(source.config), larger, blueprint(larger))
        content = reduced_config(with_derived_lists(source.config, larger), kept_layers)
        smaller = config_of(type(larger), content)
        smaller.name_or_path = source.name
        model = blueprint(smaller)
        refuse_changed_blocks(blueprint(larger), model, kept_layers)
    return Reduction(content, smaller, model)


def true_ties(model: Reduction, slices: Mapping[str, TensorSlice]) -> Reduction:
    """Set tie_word_embeddings=false if the tied tensors differ; `slices` are stored ones, by name.

    transformers then keeps both, with a warning; other engines would believe config.json.
    """
    pairs = tied_tensors(model, slices).items()
    differ = any(name in slices and not _are_equal(slices[name], piece) for name, piece in pairs)
    return untied(model) if differ else model


def tied_tensors(model: Reduction, slices: Mapping[str, TensorSlice]) -> dict[str, TensorSlice]:
    """Return, by the name of each tied tensor, the stored one that it shares its values with.

    `slices` are stored ones, by name.
    """
    prefix, found = f"{model.blueprint.base_model_prefix}.", {}
    for name, source in model.blueprint.all_tied_weights_keys.items():
        for start in ("", prefix):  # some checkpoints leave out the base model's prefix
            if piece := slices.get(source.removeprefix(start)):
                found[name] = piece
    return found


def untied(model: Reduction) -> Reduction:
    """Return a model whose head has a weight of its own."""
    config = deepcopy(model.config)
    config.tie_word_embeddings = False
    content = {**model.content, "tie_word_embeddings": False}
    return Reduction(content, config, blueprint(config))


def is_tied(model: "PreTrainedModel") -> bool:
    """Whether the output head shares its weight with the embedding."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def untie_head(model: "PreTrainedModel") -> None:
    """Give a tied output head a copy of the embedding's weight."""
    if not is_tied(model):
        return
    from torch.nn import Parameter

    head = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)  # an adapter's
    head.weight = Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def _are_equal(first: TensorSlice, second: TensorSlice) -> bool:
    blocks = zip(byte_blocks(first, None), byte_blocks(second, None), strict=True)
    return first.stored == second.stored and all(bytes(a) == bytes(b) for a, b in blocks)


def whole_config(source: Source) -> "PretrainedConfig":
    """Return the larger model's config as transformers reads it; may raise a ModelError."""
    with stage("importing transformers"):
        from transformers import AutoConfig

    kind = config_class(f"model_name={source.name}: config.json's model_type", source.config)
    with source.reading("config.json"):
        if source.is_text_part:
            config = config_of(kind, source.config)
        else:
            config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
        config.name_or_path = source.name
        return config


def config_class(key: str, content: Mapping[str, Any]) -> "type[PretrainedConfig]":
    """Return transformers' class of a model_type, which `key` names; raises ModelError."""
    from transformers import CONFIG_MAPPING

    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{key}={kind}: transformers knows no such architecture"
            f"{did_you_mean(str(kind), CONFIG_MAPPING)}"
        )
    return CONFIG_MAPPING[kind]


def config_of(kind: "type[PretrainedConfig]", content: dict[str, Any]) -> "PretrainedConfig":
    """Build a config from config.json, where infinity stands as `{"__float__": "Infinity"}`."""

    def decoded(value: dict[str, Any]) -> Any:
        return float(value["__float__"]) if value.keys() == {"__float__"} else value

    return kind.from_dict(json.loads(json.dumps(content), object_hook=decoded))


def with_derived_lists(content: dict[str, Any], config: "PretrainedConfig") -> dict[str, Any]:
    """Add to config.json the per-layer lists that it lacks and its config class derives."""
    derived = json.loads(config.to_json_string(use_diff=False))
    lists = {field: derived[field] for field in PER_LAYER_FIELDS if derived.get(field)}
    return {**content, **{field: lists[field] for field in lists if not content.get(field)}}


def causal_class(kind: "type[PretrainedConfig]") -> "type[PreTrainedModel]":
    """Return the class of a config's language model; raises ModelError without one."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        name = kind.model_type
        raise ModelError(f"model_type={name}: transformers has no causal language model for it")
    return MODEL_FOR_CAUSAL_LM_MAPPING[kind]


def blueprint(config: "PretrainedConfig") -> "PreTrainedModel":
    """Build a model without weights, its modules on the meta device; raises ModelError."""
    import torch
    from transformers import AutoModelForCausalLM

    causal_class(type(config))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def decoder_stack(model: "PreTrainedModel", depth: int) -> tuple[str, "torch.nn.ModuleList"]:
    """Return the list of `depth` decoder layers, its name first; raises ModelError without one."""
    for name, module in model.named_modules():
        if type(module).__name__ == "ModuleList" and len(module) == depth:
            return name, module
    raise ModelError(
        f"{type(model).__name__} has no list of {depth} decoder layers: it cannot be reduced"
    )


def single_layer_config(model: Reduction, layer: int | None) -> dict[str, Any]:
    """Return the config.json of one layer (0-based) as a model of its own.

    None stands for all that is outside the layers, with one layer.
    """
    content = reduced_config(with_derived_lists(model.content, model.config), (layer or 0,))
    if layer is not None:
        # Embeddings are not part of this layer and would be filled with random numbers.
        ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
        content.update(vocab_size=1, **ids)
    return content


def single_layers(model: Reduction) -> "list[torch.nn.Module]":
    """Return each layer as a model of its own has it, without weights.

    Raises ModelError if the architecture has no model of that one layer.
    """
    found: dict[str, Any] = {}
    names = []
    for layer in range(model.config.num_hidden_layers):
        content = single_layer_config(model, layer)
        names.append(json.dumps(content, sort_keys=True))
        if names[-1] not in found:
            key = f"model_name={model.config.name_or_path}: layer {layer} cannot be loaded alone"
            with naming(key, Exception, kind=ModelError):  # architectures raise anything
                alone = blueprint(config_of(type(model.config), content))
            found[names[-1]] = decoder_stack(alone, 1)[1][0]
    return [found[name] for name in names]


def adapter_form_is_exact(model: "PreTrainedModel") -> bool:
    """Whether an adapter with PEFT's layer replication rebuilds exactly this reduced model.

    PEFT 0.21 descends through `.model`, takes `layers`, `encoder.layer` or `h` there, and leaves
    `layer_types` unchanged: with mixed types, layers behind a gap would get the wrong mask.
    """
    inner: Any = model
    while hasattr(inner, "model"):
        inner = inner.model
    stack = decoder_stack(model, model.config.num_hidden_layers)[1]
    parents = ((inner, "layers"), (inner, "h"), (getattr(inner, "encoder", None), "layer"))
    types = set(getattr(model.config, "layer_types", None) or ())
    return len(types) <= 1 and any(getattr(*parent, None) is stack for parent in parents)


def adapter_obstacle(source: Source | None, kept_layers: Sequence[int], name: str) -> str | None:
    """Say why an adapter cannot stand for the reduced model called `name`; None if it can."""
    if source is not None and source.is_text_part:
        return "transformers would load the adapter onto the whole multimodal model"
    if source is not None:
        is_whole = len(kept_layers) == layer_count(source.config)
        if is_whole or adapter_form_is_exact(reduction(source, kept_layers).blueprint):
            return None
    return f"an adapter cannot rebuild {name} of this architecture exactly"


def refuse_changed_blocks(
    larger: "PreTrainedModel", smaller: "PreTrainedModel", kept_layers: Sequence[int]
) -> None:
    """Refuse a smaller model whose blocks differ from those they come from; both lack weights."""
    depth = larger.config.num_hidden_layers
    blocks = decoder_stack(larger, depth)[1]
    kept = decoder_stack(smaller, len(kept_layers))[1]
    for new, old in enumerate(kept_layers):
        if difference := difference_of(blocks[old], kept[new]):
            raise ModelError(
                f"layer {old} of this {larger.config.model_type} would not compute the same as "
                f"layer {new} ({difference}): this set of layers cannot be removed exactly"
            )


def difference_of(old: Any, new: Any) -> str | None:
    """Say what makes two blocks without weights compute differently; None if nothing does."""
    return next(_differences(old, new), None)


def _differences(old: Any, new: Any) -> Iterator[str]:
    theirs, ours = dict(old.named_modules()), dict(new.named_modules())
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        if type(theirs.get(name)) is not type(ours.get(name)):
            was, now = (type(m.get(name)).__name__ for m in (theirs, ours))
            yield f"{name}: {was} would become {now}"
            return
        before, after = _settings(theirs[name]), _settings(ours[name])
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                change = f"{before.get(key)} would become {after.get(key)}"
                yield f"{name}.{key}: {change}".lstrip(".")


def _settings(module: Any) -> dict[str, Any]:
    """A module's plain attributes, and the shapes of its own weights and buffers."""
    plain = {
        key: value
        for key, value in vars(module).items()
        if key not in INDEX_ATTRIBUTES and not key.startswith("_") and isinstance(value, _PLAIN)
    }
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {**plain, **{key: tuple(tensor.shape) for key, tensor in own}}
