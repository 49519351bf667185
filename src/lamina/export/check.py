"""Check that an export, loaded again, has the loss that the run recorded."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.depth.loading import refuse_misfits
from lamina.depth.quantization import quantization
from lamina.errors import ModelError
from lamina.export.finished_run import FinishedRun, recorded_loss
from lamina.measure.evaluate import TOLERANCES, row_losses
from lamina.runtime.console import stage
from lamina.weights.source import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Losses:
    """Losses on a few recorded rows, in nats per token."""

    written: float
    """Of the written files, loaded again."""
    recorded: float
    """Of final/, as the run recorded it."""
    rows: int
    """How many rows these are."""
    all_rows: int
    """How many rows the run evaluated."""
    allowed: float
    """The largest difference between the two that rounding explains."""
    unquantized: float | None = None
    """Of a qlora adapter on the unquantized base, which a merged model must match."""


CHECKED_TOKENS = 512
"""Most recorded tokens to evaluate, unless the first row is longer."""

LLAMA_4 = {
    **dict.fromkeys(("model.embed_tokens", "model.rotary_emb"), "cpu"),
    **dict.fromkeys(("model.layers", "model.norm", "lm_head"), "disk"),
}
"""Where Llama 4's weights stay. It moves its input to the embedding's device, which must therefore
not be meta, as it would be on disk."""


@stage("checking the export")
def model_loss(run: FinishedRun, folder: Path, dtype: str | None) -> Losses | None:
    """Load a written model and evaluate it; its weights stay on disk until a layer needs them.

    `dtype` is torch's name for the weights' new type; None if they kept theirs. Raises ModelError
    if its loss is not the recorded one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    offloaded = folder / ".offload"
    is_llama_4 = read_json(folder / "config.json")["model_type"] == "llama4_text"
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype) if dtype else "auto",
        device_map=LLAMA_4 if is_llama_4 else {"": "disk"},
        offload_folder=offloaded,
        trust_remote_code=False,
    )
    unquantized = None
    if run.in_4bit and run.rows:
        run.copy_adapter(offloaded)
        adapted = _load_adapter(run, offloaded, dtype=model.dtype)
        unquantized = row_losses(adapted, few_rows(run), max_tokens=CHECKED_TOKENS).mean()
    losses = _checked(run, model, dtype, unquantized)
    shutil.rmtree(offloaded, ignore_errors=True)
    return losses


@stage("checking the export")
def adapter_loss(run: FinishedRun, folder: Path) -> Losses | None:
    """Load a written adapter as its card says and evaluate it.

    Its base is loaded in its own type, or in four bits if the adapter was trained on those, and
    never offloaded: PEFT 0.21 would leave the adapter without weights. Raises ModelError if the
    adapter does not fit the base, or its loss is not the recorded one.
    """
    import torch

    settings: dict[str, Any] = {}
    if run.in_4bit:
        dtype = getattr(torch, run.dtype or "bfloat16")
        settings = {"dtype": dtype, "quantization_config": quantization(dtype)}
    model = _load_adapter(run, folder, **settings)
    return _checked(run, model, str(model.dtype).removeprefix("torch."), None)


def _load_adapter(run: FinishedRun, folder: Path, **settings: Any) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        **{"dtype": "auto", **settings},
        revision=run.base().revision or "main",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        trust_remote_code=False,
    )
    refuse_misfits(f"{run.final} on {run.manifest['source_model']}", info)
    return model


def few_rows(run: FinishedRun) -> list[dict[str, Any]]:
    """Return the first recorded rows, of at most `CHECKED_TOKENS` together."""
    rows: list[dict[str, Any]] = []
    for row in run.rows:
        if rows and sum(len(r["input_ids"]) for r in [*rows, row]) > CHECKED_TOKENS:
            break
        rows.append(row)
    return rows


def _checked(
    run: FinishedRun, model: "PreTrainedModel", dtype: str | None, unquantized: float | None
) -> Losses | None:
    """Compare a loaded export with the run's record; None if the run recorded no rows."""
    if not (rows := few_rows(run)):
        return None
    found = row_losses(model, rows, max_tokens=CHECKED_TOKENS)
    loss, recorded = found.mean(), recorded_loss(rows)
    expected = recorded if unquantized is None else unquantized
    same = dtype == run.dtype == "float32" and (unquantized is not None or not run.in_4bit)
    allowed = TOLERANCES["same" if same else "rounded"] * (1 + expected)
    if not abs(loss - expected) <= allowed:
        reference = "the run recorded" if unquantized is None else "its adapter has"
        raise ModelError(
            f"{run.final}: loaded again, the export has a loss of {loss:.6g}, but {reference} "
            f"{expected:.6g} on the same rows: the export was deleted; please report this"
        )
    return Losses(loss, recorded, len(rows), run.all_rows, allowed, unquantized)
