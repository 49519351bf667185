"""Load a model with only its kept layers: the dropped ones are never read."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from typing import TYPE_CHECKING, Any

from lamina.depth.layer_sets import parse_layers
from lamina.depth.plan import usable_source
from lamina.depth.quantization import quantization
from lamina.depth.reduction import (
    Reduction,
    blueprint,
    config_class,
    config_of,
    reduction,
    single_layer_config,
    whole_config,
)
from lamina.depth.surgery import layer_count, reduced_generation_config
from lamina.depth.tensor_names import is_mtp_tensor, kept_tensors, layer_of, with_layer
from lamina.errors import ConfigError, ModelError, did_you_mean, either, naming
from lamina.runtime.console import stage
from lamina.weights.reading import DTYPES, tensor_slices
from lamina.weights.source import Source, read_json, refuse_mistyped

if TYPE_CHECKING:
    import torch
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

GENERATION_FILE = "generation_config.json"

GENERATION = {"num_beams": int | None, "max_length": int | None, "suppress_tokens": list | None}
"""Types of settings that transformers' own check of generation_config.json leaves out."""

POSITIONS = ("n_positions", "max_position_embeddings")
"""Names in config.json of the longest sequence."""

FLOATS = ("bfloat16", "float16", "float32", "float64")
"""Types that `load_reduced` takes."""

DISAGREEMENT = "the checkpoint and its config.json disagree"


def load_model(
    source: Source,
    kept_layers: Sequence[int],
    *,
    dtype: "torch.dtype",
    device: str = "cpu",
    in_4bit: bool = False,
) -> "PreTrainedModel":
    """Load the model that consists of the kept layers (0-based, ascending).

    `dtype` is the type of all floating-point weights. `in_4bit` quantizes those of linear layers
    while it reads them. Raises ConfigError if 4-bit weights need a package that is not installed,
    and ModelError if weights are missing or unreadable, do not fit the smaller model, or removal is
    not exact.
    """
    settings: dict[str, Any] = {"dtype": dtype}
    if device != "cpu" or in_4bit:
        settings["device_map"] = {"": device}
    if in_4bit:
        settings["quantization_config"] = quantization(dtype)
    mapping = kept_tensors(source.weight_map, kept_layers, source.config)
    stored = source.stored(mapping)
    if len(kept_layers) == layer_count(source.config) and not source.is_text_part:
        with stage("reading weights"):
            return _checked(source, _load_whole(source, settings))
    name = DTYPES.get(str(dtype).removeprefix("torch."))
    mapped = settings.keys() == {"dtype"} and {name} == {each.dtype for each in stored.values()}
    with stage("reading weights"), tensor_slices(source, mapping, mapped=mapped) as slices:
        return _checked(source, _load_reduced(source, kept_layers, slices, settings))


def load_reduced(
    model: str | PathLike[str], keep: Any, dtype: "torch.dtype | str | None" = None
) -> "PreTrainedModel":
    """Load the kept layers of a model, for notebooks; the others are never read.

    `model` is a folder or a hub id. `keep` has 0-based layer indices and half-open ranges, as
    model.keep: [0, 1, "5-11"], "0-24", range(24). `dtype` is that of the weights; None for that of
    config.json. Raises ConfigError for an impossible `keep` or `dtype`, ModelError as `load_model`.
    """
    source = usable_source(str(model))
    given = list(keep) if isinstance(keep, Iterable) and not isinstance(keep, str) else keep
    with source.reading("config.json"):
        kept_layers = parse_layers("keep", given, layer_count(source.config))
    name = str(dtype or whole_config(source).dtype or "float32").removeprefix("torch.")
    if name not in FLOATS:
        raise ConfigError(f"dtype={dtype}: use {either(FLOATS)}")
    return load_model(source, kept_layers, dtype=torch_dtype(name, automatic=name))


def _checked(source: Source, model: "PreTrainedModel") -> "PreTrainedModel":
    """Refuse weights that are not finite; name the module below the head, for TRL's loss.

    Gives the model its generation settings, with which transformers can save it.
    """
    refuse_not_finite(source.name, model)
    if generation := generation_config(source):
        model.generation_config = generation
    if model.base_model is model and hasattr(model, "model"):
        model.base_model_prefix = "model"  # transformers 5.17: Llama 4 names one that it lacks
    return model


def _load_whole(source: Source, settings: Mapping[str, Any]) -> "PreTrainedModel":
    """Load a model with all its layers, as any user of transformers does."""
    from transformers import AutoModelForCausalLM

    failed = f"model_name={source.name} cannot be loaded"
    with naming(failed, ImportError, OSError, ValueError, kind=ModelError):
        model, info = AutoModelForCausalLM.from_pretrained(
            **_location(source), ignore_mismatched_sizes=True, output_loading_info=True, **settings
        )
    heads = {n for n in info["unexpected_keys"] if is_mtp_tensor(n, layer_count(source.config))}
    info["unexpected_keys"] = set(info["unexpected_keys"]) - heads
    refuse_misfits(f"model_name={source.name}", info)
    return model


def _load_reduced(
    source: Source,
    kept_layers: Sequence[int],
    slices: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> "PreTrainedModel":
    """Build the smaller model from its own config, with tensors under their new names.

    Each goes straight into its dtype and device, and every module's layer index, cache slot and
    config entry agree from the start.
    """
    smaller = reduction(source, kept_layers)
    model, info = type(smaller.blueprint).from_pretrained(
        None,
        config=smaller.config,
        state_dict=slices,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **settings,
    )
    refuse_misfits(f"model_name={source.name}", info)
    # An adapter trained on this model records this name as its base.
    model.name_or_path = model.config.name_or_path = source.name
    return model


def load_sharing(
    source: Source, reduced: "PreTrainedModel", kept_layers: Sequence[int]
) -> "PreTrainedModel":
    """Load a whole model around a reduced one, whose weights outside layers it shares.

    It also shares those of `kept_layers`, the first layers of the reduced model; only the others
    are read. Raises ModelError as `load_model` does.
    """
    kept, shared = dict(enumerate(kept_layers)), {}
    for name, tensor in reduced.state_dict().items():
        layer = layer_of(name)
        if layer is None or layer in kept:
            shared[name if layer is None else with_layer(name, kept[layer])] = tensor
    every = range(layer_count(source.config))
    mapping = kept_tensors(source.weight_map, every, source.config)
    removed = {n: n for n in mapping if layer_of(n) in {*every} - {*kept_layers}}
    settings: dict[str, Any] = {"dtype": reduced.dtype}
    if reduced.device.type != "cpu":
        settings["device_map"] = {"": str(reduced.device)}
    with stage("reading removed layers"), tensor_slices(source, removed) as slices:
        return _checked(source, _load_reduced(source, every, {**shared, **slices}, settings))


def generation_config(source: Source) -> "GenerationConfig | None":
    """Return a model's generation settings, if any, without layers; may raise a ModelError."""
    from transformers import GenerationConfig

    path = source.fetch(GENERATION_FILE, required=False)
    if path is None:
        return None
    content = reduced_generation_config(read_json(path))
    refuse_mistyped(str(path), content, GENERATION)
    for field in content.keys() & {"bos_token_id", "eos_token_id", "pad_token_id"}:
        tokens = content[field] if isinstance(content[field], list) else [content[field]]
        if any(type(token) is not int for token in tokens if token is not None):
            raise ModelError(f"{path}: {field} is {content[field]!r}, expected a token id")
    with source.reading(GENERATION_FILE):
        found = GenerationConfig.from_dict(content)
        # A temperature without do_sample, as in Llama 2, which transformers refuses to save.
        sampling = GenerationConfig.from_dict({**content, "do_sample": True})
    for each in (found, sampling):
        with suppress(ValueError):
            each.validate(strict=True)
            return each
    return found


def load_single_layer(
    model: Reduction,
    layer: int | None,
    slices: Mapping[str, Any],
    dtype: "torch.dtype",
    device: str = "cpu",
) -> "PreTrainedModel":
    """Load one layer (0-based) as a model of its own: the whole one need not be in memory.

    Transformers does the loading, with whatever it does to names and weights. None loads everything
    outside the layers (embeddings, norm, head), and one layer of random weights with it. `slices`
    are the tensors by their names in the model's checkpoint.
    """
    content = single_layer_config(model, layer)
    placed = {} if device == "cpu" else {"device_map": {"": device}}
    loaded = type(model.blueprint).from_pretrained(
        None,
        config=config_of(type(model.config), content),
        state_dict={with_layer(name, 0): piece for name, piece in slices.items()},
        dtype=dtype,
        **placed,
    )
    refuse_not_finite(model.config.name_or_path, loaded, layer)
    return loaded


def refuse_not_finite(name: str, model: "PreTrainedModel", layer: int | None = None) -> None:
    """Raise a ModelError that names the first weight with a NaN or an infinity.

    `layer` is the 0-based layer that the model's only one is of the whole model `name`.
    """
    for weight, tensor in model.named_parameters():
        if tensor.is_floating_point() and tensor.itemsize > 1:  # torch cannot add float8
            # One pass without a temporary tensor; the sum of finite weights may still overflow.
            total = tensor.detach().sum()
            if not total.isfinite() and not tensor.isfinite().all():
                full = weight if layer is None else with_layer(weight, layer)
                raise ModelError(
                    f"model_name={name}: {full} has a weight that is NaN or infinite: download or "
                    "copy the model again"
                )


def new_model(
    architecture: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", *, dtype: "torch.dtype"
) -> "PreTrainedModel":
    """Build a model with random weights for a tokenizer; the caller seeds the generators.

    `architecture` has the keyword arguments of its config, including `model_type`. Raises
    ModelError if transformers does not know the architecture, or rejects an argument.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = config_class("model.architecture.model_type", architecture)
    known = {*settings().to_dict(), *settings.attribute_map}
    for key, value in architecture.items():
        if key not in known:  # transformers 5.17 would store it and never read it
            raise ModelError(
                f"model.architecture.{key}={value}: no such key{did_you_mean(key, known)}"
            )
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with naming("model.architecture", ValueError, TypeError, kind=ModelError):
        config = AutoConfig.for_model(**{**ids, **architecture})
    return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def torch_dtype(name: str, *, automatic: str) -> "torch.dtype":
    """Return the torch dtype called `name`, or `automatic` if the name is auto."""
    import torch

    return getattr(torch, automatic if name == "auto" else name)


def load_tokenizer(source: Source) -> "PreTrainedTokenizerBase":
    """Load the tokenizer with its chat template; raises ModelError if none is readable."""
    from transformers import AutoTokenizer

    # Without an answer from the hub, its client would spend half a minute on retries.
    only_cached = not source.is_at_hand
    with source.reading("no usable tokenizer"):
        found = AutoTokenizer.from_pretrained(**_location(source), local_files_only=only_cached)
        if not found.model_max_length > 0:  # text has no order either
            raise ValueError(f"model_max_length={found.model_max_length}")
        return found


def refuse_long_sequences(source: Source, tokens: int, key: str = "max_seq_length") -> None:
    """Refuse what `refuse_beyond_positions` does, before a weight is read."""
    declared = [source.config[field] for field in POSITIONS if source.config.get(field)]
    if not declared or tokens > declared[0]:
        whole = reduction(source, range(layer_count(source.config)))
        refuse_beyond_positions(whole.blueprint, tokens, key)


def refuse_beyond_positions(
    model: "PreTrainedModel", tokens: int, key: str = "max_seq_length"
) -> None:
    """Refuse sequences longer than a table of positions; most models compute them instead."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None or tokens <= limit:
        return
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        is_table = tensor.ndim == 2 and any(part in name for part in ("wpe", "pos"))
        if is_table and tensor.shape[0] in (limit, limit + 2):  # OPT's has two more rows
            raise ConfigError(
                f"{key}={tokens}: this {model.config.model_type} has learned "
                f"positions for {limit} tokens: use {limit} or less"
            )


def refuse_unknown_tokens(
    source: Source, tokenizer: "PreTrainedTokenizerBase", rows: Iterable[Iterable[int]]
) -> None:
    """Refuse rows of token ids that the embedding has no row for.

    A tokenizer may be larger than the embedding as long as neither text nor padding shows it.
    """
    size = source.config.get("vocab_size")
    if not isinstance(size, int) or len(tokenizer) <= size:
        return
    largest = max((max(row, default=0) for row in rows), default=0)
    token = max(largest, tokenizer.pad_token_id or 0)
    if token >= size:
        raise ModelError(
            f"model_name={source.name}: its tokenizer has {len(tokenizer)} tokens, its embedding "
            f"{size}, and token {token} ({tokenizer.decode([token])}) is used: take the tokenizer "
            "that the model was trained with, or enlarge the embedding with transformers' "
            "resize_token_embeddings first"
        )


def _location(source: Source) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": source.name,
        "revision": source.revision or "main",
        "trust_remote_code": False,  # transformers would ask on the terminal
    }


def refuse_unfit(name: str, config: "PretrainedConfig", tensors: Mapping[str, Any]) -> None:
    """Refuse tensors, read or written, that do not fit a model, by names and shapes alone."""
    import torch

    model, shapes = blueprint(config), {key: each.stored.shape for key, each in tensors.items()}
    tied = model.all_tied_weights_keys.keys() - shapes.keys()
    if shapes == {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in tied}:
        return  # nothing to rename or convert, so transformers need not try
    _, info = type(model).from_pretrained(
        None,
        config=config,
        state_dict={k: torch.empty(shape, device="meta") for k, shape in shapes.items()},
        device_map={"": "meta"},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    refuse_misfits(name, info)


def refuse_misfits(name: str, info: dict[str, Any], advice: str = DISAGREEMENT) -> None:
    """Refuse a model if its loading info lists a missing, unexpected or misshapen tensor.

    `advice` ends the message.
    """
    mismatched = {str(entry[0]) for entry in info["mismatched_keys"]}
    wrong = sorted(set(info["missing_keys"]) | set(info["unexpected_keys"]) | mismatched)
    if wrong:
        raise ModelError(
            f"{name}: {len(wrong)} tensors do not fit the model (first: {wrong[0]}): {advice}"
        )
