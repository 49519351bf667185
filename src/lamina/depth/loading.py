"""Load a model with only its kept layers: the dropped ones are never read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.depth.quantization import quantization
from lamina.depth.reduction import Reduction, blueprint, reduction, with_derived_lists
from lamina.depth.surgery import layer_count, reduced_config, reduced_generation_config
from lamina.depth.tensor_names import kept_tensors, with_layer
from lamina.errors import ModelError, did_you_mean
from lamina.weights.header import StoredTensor
from lamina.weights.reading import DTYPES, tensor_slices
from lamina.weights.source import Source, read_json, resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    source: Source,
    kept_layers: Sequence[int],
    *,
    dtype: "torch.dtype",
    device: str = "cpu",
    in_4bit: bool = False,
) -> "PreTrainedModel":
    """Load the model that consists of the kept layers, in order.

    With every layer kept this is plain `from_pretrained`. Otherwise the smaller model is built from
    its own config, and its tensors are read one by one under their new names, straight into their
    dtype and device: every module's layer index, cache slot and config entry agree from the start.

    Args:
        source: The larger model.
        kept_layers: 0-based indices, ascending.
        dtype: Type of all floating-point weights.
        device: cpu, or an accelerator such as cuda:0.
        in_4bit: Whether the weights of linear layers are quantized to four bits as they are read.

    Raises:
        ConfigError: 4-bit weights need a package that is not installed.
        ModelError: Weights are missing or unreadable, do not fit the smaller model, or removal is
            not exact.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    mapping = kept_tensors(source.weight_map, kept_layers, source.config)
    stored = source.stored(mapping)
    settings: dict[str, Any] = {"dtype": dtype}
    if device != "cpu" or in_4bit:
        settings["device_map"] = {"": device}
    if in_4bit:
        settings["quantization_config"] = quantization(dtype)
    if len(kept_layers) == layer_count(source.config):
        return AutoModelForCausalLM.from_pretrained(**_location(source), **settings)
    smaller = reduction(source, kept_layers)
    name = DTYPES.get(str(dtype).removeprefix("torch."))
    same = device == "cpu" and all(name == tensor.dtype for tensor in stored.values())
    with tensor_slices(source, mapping, mapped=same and not in_4bit) as slices:
        model, info = type(smaller.blueprint).from_pretrained(
            None, config=smaller.config, state_dict=slices, output_loading_info=True, **settings
        )
    refuse_misfits(f"model_name={source.name}", info)
    # An adapter trained on this model records this name as its base.
    model.name_or_path = model.config.name_or_path = source.name
    if path := source.fetch("generation_config.json", required=False):
        content = reduced_generation_config(read_json(path))
        model.generation_config = GenerationConfig.from_dict(content)
    return model


def load_single_layer(
    model: Reduction,
    layer: int | None,
    slices: Mapping[str, Any],
    dtype: "torch.dtype",
    device: str = "cpu",
) -> "PreTrainedModel":
    """Load one layer as a model of its own, so that the whole model need not be in memory.

    Transformers does the loading, with whatever it does to names and weights.

    Args:
        model: The model that the layer belongs to.
        layer: 0-based index; None for everything outside the layers (embeddings, norm, head),
            which comes with one layer of random weights.
        slices: The tensors, by their names in the model's checkpoint.
        dtype: Type of floating-point weights.
        device: cpu, or an accelerator such as cuda:0.
    """
    content = reduced_config(with_derived_lists(model.content, model.config), (layer or 0,))
    if layer is not None:
        # Embeddings are not part of this layer and would be filled with random numbers.
        content["vocab_size"] = 1
        content.update(dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")))
    placed = {} if device == "cpu" else {"device_map": {"": device}}
    return type(model.blueprint).from_pretrained(
        None,
        config=type(model.config).from_dict(content),
        state_dict={with_layer(name, 0): piece for name, piece in slices.items()},
        dtype=dtype,
        **placed,
    )


def new_model(
    architecture: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", *, dtype: "torch.dtype"
) -> "PreTrainedModel":
    """Build a model with random weights for a tokenizer; the caller seeds the generators.

    Args:
        architecture: Keyword arguments of the architecture's config, including `model_type`.
        tokenizer: Provides the vocabulary size and the special tokens.
        dtype: Type of the weights.

    Raises:
        ModelError: transformers does not know the architecture, or rejects an argument.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _refuse_unknown_keys(architecture)
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(**{**ids, **architecture})
    except (ValueError, TypeError) as error:
        raise ModelError(f"model.architecture: {str(error).splitlines()[0]}") from error
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _refuse_unknown_keys(architecture: dict[str, Any]) -> None:
    """Refuse keys that transformers 5.17 would store in the config and never read."""
    from transformers import CONFIG_MAPPING

    kind = architecture["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"model.architecture.model_type={kind}: transformers knows no such architecture"
            f"{did_you_mean(kind, CONFIG_MAPPING)}"
        )
    settings = CONFIG_MAPPING[kind]
    known = {*settings().to_dict(), *settings.attribute_map}
    for key, value in architecture.items():
        if key not in known:
            raise ModelError(
                f"model.architecture.{key}={value}: no such key{did_you_mean(key, known)}"
            )


def model_class(content: Mapping[str, Any]) -> "type[PreTrainedModel]":
    """Return a model's class without reading a weight.

    Args:
        content: A config.json, or an architecture for `new_model`.

    Raises:
        ModelError: transformers has none.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    kind = content["model_type"]
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"model_type={kind}: transformers has no causal language model for it")
    found: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]]
    return found


def torch_dtype(name: str, *, automatic: str) -> "torch.dtype":
    """Return the dtype of this name, or of `automatic` if the name is auto."""
    import torch

    dtype: torch.dtype = getattr(torch, automatic if name == "auto" else name)
    return dtype


def load_tokenizer(source: Source) -> "PreTrainedTokenizerBase":
    """Load the tokenizer with its chat template.

    Raises:
        ModelError: The source has no tokenizer, or an unreadable one.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**_location(source))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"model_name={source.name}: no usable tokenizer ({reason})") from error


def _location(source: Source) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": source.name, "revision": source.revision or "main"}


def refuse_unloadable(folder: Path) -> None:
    """Check that transformers would load a model folder, by names and shapes alone.

    Raises:
        ModelError: A file is incomplete, or a tensor is missing, unexpected or of another shape.
    """
    from transformers import AutoConfig

    source = resolve(str(folder))
    stored = source.stored(source.weight_map)
    config = AutoConfig.from_pretrained(folder)
    _, info = type(blueprint(config)).from_pretrained(
        None,
        config=config,
        state_dict={name: MetaSlice(tensor) for name, tensor in stored.items()},
        device_map={"": "meta"},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    refuse_misfits(f"{folder}", info)


class MetaSlice:
    """A stored tensor as a slice of a safetensors file that reads nothing."""

    def __init__(self, stored: StoredTensor) -> None:
        self.stored = stored

    def get_shape(self) -> list[int]:
        """Return the shape, as safetensors' slices do."""
        return list(self.stored.shape)

    def get_dtype(self) -> str:
        """Return the safetensors name of the type, as safetensors' slices do."""
        return self.stored.dtype

    def __getitem__(self, _: Any) -> Any:
        import torch

        return torch.empty(self.stored.shape, device="meta")


def refuse_misfits(name: str, info: dict[str, Any]) -> None:
    """Raise if `from_pretrained` reported a tensor as missing, unexpected or of another shape.

    Args:
        name: The model, for the message.
        info: The loading info that it returned.

    Raises:
        ModelError: There is such a tensor.
    """
    mismatched = {str(entry[0]) for entry in info["mismatched_keys"]}
    wrong = sorted(set(info["missing_keys"]) | set(info["unexpected_keys"]) | mismatched)
    if wrong:
        raise ModelError(
            f"{name}: {len(wrong)} tensors do not fit the model (first: {wrong[0]}): "
            "the checkpoint and its config.json disagree"
        )
