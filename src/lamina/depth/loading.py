"""Load a model with only its kept layers: the dropped ones are never read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.depth.source import Source
from lamina.depth.surgery import kept_tensors, reduced_config
from lamina.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    source: Source, kept_layers: Sequence[int], *, dtype: "torch.dtype"
) -> "PreTrainedModel":
    """Load the model that has only the kept layers, in order.

    With every layer kept this is plain `from_pretrained`. Otherwise the smaller model is built from
    its own config and a state dict with the kept tensors under their new names, so that each
    module's layer index, cache slot and config entry belong together from the start.

    Args:
        source: Where config.json and the safetensors files are.
        kept_layers: 0-based indices, ascending.
        dtype: Of all floating-point weights.

    Raises:
        ModelError: Weights are missing or unreadable, or the smaller model does not take them all.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    location = _location(source)
    weights = source.weight_files()
    reduced = reduced_config(source.config, kept_layers)
    if reduced == source.config:
        return AutoModelForCausalLM.from_pretrained(**location, dtype=dtype)
    config = type(AutoConfig.from_pretrained(**location)).from_dict(reduced)
    state_dict = _read_tensors(source, weights, kept_layers, dtype)
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=state_dict, dtype=dtype, output_loading_info=True
    )
    _refuse_mismatch(source, info, model)
    # An adapter trained on this model records it as its base.
    model.name_or_path = model.config.name_or_path = source.name
    if source.fetch("generation_config.json", required=False):
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
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


def _read_tensors(
    source: Source, weights: dict[str, str], kept_layers: Sequence[int], dtype: "torch.dtype"
) -> dict[str, "torch.Tensor"]:
    """Read the kept tensors under their new names, one file at a time."""
    from safetensors import SafetensorError

    if "" in weights:
        with _opened(source, weights[""]) as file:
            weights = dict.fromkeys(file.keys(), weights[""])
    mapping = kept_tensors(weights, kept_layers)
    tensors: dict[str, torch.Tensor] = {}
    for filename in sorted({weights[name] for name in mapping}):
        try:
            with _opened(source, filename) as file:
                for name in (name for name in mapping if weights[name] == filename):
                    tensor = file.get_tensor(name)
                    # A copy in any case: without one the tensor stays a view of the mapped file,
                    # and whoever rewrites that file takes the process down.
                    tensors[mapping[name]] = tensor.to(
                        dtype if tensor.is_floating_point() else tensor.dtype, copy=True
                    )
        except SafetensorError as error:
            raise ModelError(f"model_name={source.name}: {filename}: {error}") from error
    return tensors


def _opened(source: Source, filename: str) -> Any:
    from safetensors import SafetensorError, safe_open

    path = source.fetch(filename)
    try:
        return safe_open(Path(str(path)), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model_name={source.name}: {filename} is truncated or corrupt: {error}"
        ) from error


def _refuse_mismatch(source: Source, info: dict[str, Any], model: "PreTrainedModel") -> None:
    """Raise if a weight of the smaller model was not found, or one found has no place in it."""
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = set(info["missing_keys"]) - tied
    wrong = sorted(missing | set(info["unexpected_keys"]) | set(map(str, info["mismatched_keys"])))
    if wrong:
        raise ModelError(
            f"model_name={source.name}: {len(wrong)} weights do not fit the smaller model "
            f"(first: {wrong[0]}): the checkpoint and its config.json disagree"
        )
