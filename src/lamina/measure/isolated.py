"""Measures a model in a process of its own: `python -m lamina.measure.isolated FOLDER`.

A backend may patch the classes of models for its whole process. What is measured there would not be
what anyone finds who loads the model with plain transformers.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lamina.errors import TrainingError
from lamina.measure.evaluate import RowLosses, answers, row_losses
from lamina.runtime.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ASKED, FOUND = "asked.json", "found.json"


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A model that is not in this process."""

    name: str
    """Hub id, or folder."""

    revision: str | None
    """Commit on the hub; of an adapter, its base's."""

    kept_layers: Sequence[int] | None
    """0-based indices of the layers to load; None for the model, or adapter, as it stands there."""

    dtype: str
    """torch's name of the type to load it in."""

    in_4bit: bool
    """Whether its linear layers are read into four bits."""

    rows: Sequence[dict[str, Any]]
    """Tokenized rows to find its losses on."""

    prompts: Sequence[Sequence[int]]
    """Token ids that it is to answer."""

    max_tokens: int
    """Tokens at most in one forward pass."""

    max_new_tokens: int
    """Tokens at most in one answer."""

    @cached_property
    def found(self) -> tuple[RowLosses, list[str]]:
        """Its losses, and its answers; see `lamina.measure.evaluate`.

        Raises:
            TrainingError: The process failed.
        """
        with TemporaryDirectory(prefix="lamina-") as folder:
            write_json(Path(folder) / ASKED, asdict(self))
            done = subprocess.run(
                [sys.executable, "-m", __name__, folder],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                logging.getLogger("elsewhere").warning("%s", done.stderr)
                reason = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
                raise TrainingError(f"{self.name} could not be measured: {reason}; see train.log")
            found = json.loads((Path(folder) / FOUND).read_text())
        return RowLosses(tuple(found["nll"]), tuple(found["tokens"])), found["answers"]

    def load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load it here, with plain transformers."""
        from lamina.depth import loading
        from lamina.runtime.device import compute_device
        from lamina.weights.source import resolve

        dtype = loading.torch_dtype(self.dtype, automatic=self.dtype)
        if self.kept_layers is None:
            return load_as_saved(Path(self.name), dtype, self.revision, in_4bit=self.in_4bit)
        source = resolve(self.name, self.revision)
        model = loading.load_model(
            source,
            self.kept_layers,
            dtype=dtype,
            device=compute_device(),
            in_4bit=self.in_4bit,
        )
        return model, loading.load_tokenizer(source)


@dataclass(frozen=True)
class Final:
    """The written final/."""

    folder: Path
    """Its absolute path."""

    dtype: str
    """In which to load it: of a model's weights, or of an adapter's base."""

    in_4bit: bool = False
    """Whether an adapter's base is loaded in four bits, as it was trained on."""


def reload(
    final: Final, base_revision: str | None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load final/ the way a user would: with plain transformers, in the recorded dtype.

    An adapter that was trained beside four bits gets its base in four bits: that is what it was
    trained to correct, and what there is memory for.

    Args:
        final: What `save_final` wrote.
        base_revision: Commit of an adapter's base.
    """
    import torch

    dtype = getattr(torch, final.dtype)
    return load_as_saved(final.folder, dtype, base_revision, in_4bit=final.in_4bit)


def load_as_saved(
    folder: Path, dtype: Any, base_revision: str | None, *, in_4bit: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a model, or an adapter with its base, the way a user would.

    Args:
        folder: With the model or the adapter.
        dtype: torch's.
        base_revision: Commit of an adapter's base. transformers 5.17 does not take it from
            adapter_config.json, and would load another base once the hub has moved on.
        in_4bit: Whether an adapter's base is read into four bits.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lamina.depth.quantization import quantization

    settings: dict[str, Any] = {"dtype": dtype, "revision": base_revision or "main"}
    if in_4bit:
        settings["quantization_config"] = quantization(dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, **settings)
    return model, AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """Measure what the other process asks for."""
    from lamina.runtime.device import on_device

    folder = Path(sys.argv[1])
    asked = Elsewhere(**json.loads((folder / ASKED).read_text()))
    model, tokenizer = asked.load()
    model = on_device(model)
    losses = row_losses(model, asked.rows, max_tokens=asked.max_tokens)
    said = answers(model, tokenizer, asked.prompts, asked.max_new_tokens)
    write_json(folder / FOUND, {"nll": losses.nll, "tokens": losses.tokens, "answers": said})


if __name__ == "__main__":
    main()
