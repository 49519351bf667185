"""Load a model with only its kept layers: the dropped ones are never read."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lamina.depth.quantization import quantization
from lamina.depth.reduction import reduction
from lamina.depth.surgery import layer_count, reduced_generation_config
from lamina.depth.tensor_names import kept_tensors
from lamina.depth.verification import refuse_misfits
from lamina.errors import ModelError, nearest
from lamina.weights.reading import DTYPES, tensor_slices
from lamina.weights.source import Source, read_json

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
    """Load the model that has only the kept layers, in order.

    With every layer kept this is plain `from_pretrained`. Otherwise the smaller model is built from
    its own config, and its tensors are read under their new names, one by one, into their dtype and
    device: each module's layer index, cache slot and config entry belong together from the start.

    Args:
        source: Where config.json and the safetensors files are.
        kept_layers: 0-based indices, ascending.
        dtype: Of all floating-point weights.
        device: Where the weights go: cpu, or an accelerator such as cuda:0.
        in_4bit: Whether each linear layer's weights become four bits wide as they are read.

    Raises:
        ConfigError: Four bits need a package that is not there.
        ModelError: Weights are missing or unreadable, the smaller model does not take them all, or
            it could not be exact.
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
    # An adapter trained on this model records it as its base.
    model.name_or_path = model.config.name_or_path = source.name
    if path := source.fetch("generation_config.json", required=False):
        content = reduced_generation_config(read_json(path))
        model.generation_config = GenerationConfig.from_dict(content)
    return model


def new_model(
    architecture: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", *, dtype: "torch.dtype"
) -> "PreTrainedModel":
    """Build a model with random weights for a tokenizer; seed the generators before.

    Args:
        architecture: Keyword arguments of the architecture's config, `model_type` among them.
        tokenizer: Gives the size of the vocabulary and the special tokens.
        dtype: Of the weights.

    Raises:
        ModelError: There is no such architecture, or it refuses an argument.
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
    """Refuse what transformers 5.17 would keep in the config and never read."""
    from transformers import CONFIG_MAPPING

    kind = architecture["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"model.architecture.model_type={kind}: transformers knows no such architecture"
            f"{nearest(kind, CONFIG_MAPPING)}"
        )
    settings = CONFIG_MAPPING[kind]
    known = {*settings().to_dict(), *settings.attribute_map}
    for key, value in architecture.items():
        if key not in known:
            raise ModelError(f"model.architecture.{key}={value}: no such key{nearest(key, known)}")


def model_class(content: Mapping[str, Any]) -> "type[PreTrainedModel]":
    """Return the class of a model, of which no weight is read.

    Args:
        content: Of its config.json, or an architecture of `new_model`.

    Raises:
        ModelError: transformers has none.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    kind = content["model_type"]
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"model_type={kind}: transformers has no causal language model of it")
    found: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]]
    return found


def torch_dtype(name: str, *, automatic: str) -> "torch.dtype":
    """Return the dtype of this name; that of `automatic` where the name is auto."""
    import torch

    dtype: torch.dtype = getattr(torch, automatic if name == "auto" else name)
    return dtype


def load_tokenizer(source: Source) -> "PreTrainedTokenizerBase":
    """Load the tokenizer, its chat template included.

    Raises:
        ModelError: The source has none, or one that cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**_location(source))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"model_name={source.name}: no usable tokenizer ({reason})") from error


def _location(source: Source) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": source.name, "revision": source.revision or "main"}
