"""Writing a model's folder in the standard layout, with its weights as a stream."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from lamina.depth.loading import refuse_unfit
from lamina.depth.reduction import Reduction
from lamina.depth.surgery import reduced_generation_config, without_mtp_heads
from lamina.errors import OutputError
from lamina.export.card import CARD_FILE, card
from lamina.measure.engines import ENGINES
from lamina.runtime.console import stage
from lamina.runtime.files import replacing
from lamina.units import format_bytes
from lamina.weights.header import StoredTensor
from lamina.weights.reading import DTYPES, TensorSlice, byte_blocks
from lamina.weights.source import Source, read_json, refuse_mistyped
from lamina.weights.writing import MAX_SHARD_BYTES, Outgoing, write_shards

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MANIFEST_FILE = "lamina.json"
VERIFICATION_FILE = "verification.json"

TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json vocab.json "
    "vocab.txt merges.txt added_tokens.json spiece.model sentencepiece.bpe.model tekken.json "
    "chat_template.jinja chat_template.json"
).split()
"""Files of a tokenizer and its chat template."""

TEMPLATES = "additional_chat_templates"
"""Folder of a tokenizer's further chat templates."""

QUANTIZED = "quantization_config"

SET_IN_TRAINING = "bos_token_id eos_token_id pad_token_id tie_word_embeddings use_cache".split()
"""Fields of a config that a training, or the merging of its adapter, may change."""


@dataclass(frozen=True)
class Verification:
    """A model's loss in an engine beside the recorded one, in nats per token on the same rows."""

    version: str
    """Of the engine."""
    dtype: str
    """Of the weights in the engine."""
    rows: int
    loss: float
    recorded: float
    allowed: float
    """The largest difference that the type explains."""
    within: bool


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write lamina.json (see `lamina.export.card.manifest`) and the model card."""
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    card_text = card(manifest, read_verification(folder))
    (folder / CARD_FILE).write_text(card_text, encoding="utf-8")


def read_verification(folder: Path) -> dict[str, Any]:
    """Return verification.json, by engine; empty without one. Raises ModelError if damaged."""
    path = folder / VERIFICATION_FILE
    if not path.is_file():
        return {}
    content = read_json(path, dict.fromkeys(ENGINES, dict | None))
    found = {engine: content[engine] for engine in ENGINES if content[engine] is not None}
    for engine, each in found.items():
        refuse_mistyped(f"{path}: {engine}", each, get_type_hints(Verification))
    return found


def copy_tokenizer(source: Source, folder: Path) -> None:
    """Copy the files of a model's tokenizer unchanged."""
    templates = [f"{TEMPLATES}/{name}" for name in source.names_in(TEMPLATES, ".jinja")]
    for name in (*TOKENIZER_FILES, *templates):
        if path := source.fetch(name, required=False):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)


def write_tokenizer(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", source: Source | None
) -> None:
    """Write a tokenizer, in its source's own files if these are readable on their own.

    transformers 5 saves a form that 4.57 does not read. Files without `tokenizer_class` need the
    model's config.json, which an adapter's folder lacks.
    """
    from transformers import AutoTokenizer

    if source is not None and source.is_at_hand:
        try:
            copy_tokenizer(source, folder)
            again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (KeyError, OSError, ValueError):
            again = None
        if again is not None and again.get_vocab() == tokenizer.get_vocab():
            if again.chat_template != tokenizer.chat_template:
                _write_template(folder, again, tokenizer.chat_template)
            return
        _remove(folder, *TOKENIZER_FILES)
    tokenizer.save_pretrained(folder)


def _write_template(folder: Path, tokenizer: "PreTrainedTokenizerBase", template: str) -> None:
    """Make a chat template the default of a tokenizer's files; named ones stay, wherever they are.

    A default that it replaces becomes `source_default`.
    """
    if isinstance(named := tokenizer.chat_template, dict):
        renamed = {"source_default" if k == "default" else k: v for k, v in named.items()}
        tokenizer.chat_template = {"default": template, **renamed}
    else:
        tokenizer.chat_template = template
    _remove(folder, "chat_template.json")
    tokenizer.save_chat_templates(folder, {}, None, save_jinja_files=True)
    path = folder / "tokenizer_config.json"
    if path.is_file() and "chat_template" in (config := read_json(path)):
        changed, _ = tokenizer.save_chat_templates(folder, config, None, save_jinja_files=False)
        path.write_text(json.dumps(changed, indent=2) + "\n")


def _remove(folder: Path, *names: str) -> None:
    shutil.rmtree(folder / TEMPLATES, ignore_errors=True)
    for name in names:
        (folder / name).unlink(missing_ok=True)


def write_config(folder: Path, content: dict[str, Any], source: Source, dtype: str | None) -> None:
    """Write config.json with its content, and generation_config.json if the source has one.

    `dtype` is torch's name for the weights' new type; None keeps theirs.
    """
    _write_config(folder, content, dtype)
    if path := source.fetch("generation_config.json", required=False):
        generation = reduced_generation_config(read_json(path))
        (folder / path.name).write_text(json.dumps(generation, indent=2) + "\n")


def keep_config_form(
    folder: Path, reduced: Reduction, config: "PretrainedConfig", dtype: str
) -> None:
    """Write a saved model's config.json in its source's form, which `reduced` has.

    transformers 5 saves a form of its own, such as `rope_parameters`; older versions and other
    engines would read defaults instead. `config` is the saved one.
    """
    saved = read_json(folder / "config.json")
    content = without_mtp_heads(reduced.content)  # transformers neither loads nor saves them
    if QUANTIZED not in saved:  # even if the source is quantized
        content.pop(QUANTIZED, None)
    content.setdefault("architectures", saved["architectures"])
    for field in SET_IN_TRAINING:
        if (value := getattr(config, field, None)) != getattr(reduced.config, field, None):
            content[field] = value
    _write_config(folder, content, dtype)


def _write_config(folder: Path, content: dict[str, Any], dtype: str | None) -> None:
    names = {"dtype", "torch_dtype"} & content.keys() or {"dtype"}
    changed = {**content, **(dict.fromkeys(names, dtype) if dtype else {})}
    (folder / "config.json").write_text(json.dumps(changed, indent=2) + "\n")


def outgoing(slices: Mapping[str, TensorSlice], dtype: "torch.dtype | None") -> dict[str, Outgoing]:
    """Return tensors, by their new names, that are read and converted only when they are written.

    `dtype` is the new type of floating-point tensors; None keeps theirs.
    """
    tensors, wanted = {}, DTYPES[str(dtype).removeprefix("torch.")] if dtype else None
    for name, piece in slices.items():
        stored, new, file = piece.stored, None, None if piece.stored.columns else piece.file
        if wanted and stored.is_floating_point and stored.dtype != wanted:
            stored, new, file = StoredTensor(wanted, stored.shape), dtype, None
        tensors[name] = Outgoing(stored, partial(byte_blocks, piece, new), file)
    return tensors


@contextmanager
def new_folder(key: str, output: Path, *sources: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the output if the body succeeds.

    Enter it before slow work. `key` is the output's option or config key. Raises OutputError if the
    output is a source or a file, is not empty, or cannot be written.
    """
    place = output.expanduser().resolve()
    if place in [source.resolve() for source in sources]:
        raise OutputError(f"{key}={output} is the source itself: use another folder")
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        reason = "is a file" if place.is_file() else "is not empty"
        raise OutputError(f"{key}={output} {reason}: use a new or empty folder")
    try:
        with replacing(place, flush=False) as folder:
            folder.mkdir()
            yield folder
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{key}={output} cannot be written: {error.strerror or error}; nothing of it remains: "
            "make room or use another folder"
        ) from error


def write_weights(
    name: str, folder: Path, tensors: Mapping[str, Outgoing], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write a model's tensors once transformers has a place for each.

    The folder already holds config.json; the tensors are in the order that reads fastest. `name` is
    the model's in an error. Raises ModelError if a tensor is missing, unexpected or of another
    shape.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    refuse_unfit(name, config, tensors)
    total = sum(tensor.stored.nbytes for tensor in tensors.values())
    with stage("writing weights", total, format=format_bytes) as shown:
        write_shards(folder, tensors, shown.advance, max_shard_bytes)
