"""The check of what an export wrote: loaded again, it has the loss that the run recorded."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.depth.verification import refuse_misfits
from lamina.errors import ModelError
from lamina.measure.evaluate import row_losses
from lamina.measure.finished import FinishedRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Losses = tuple[float, float] | None
"""On a few recorded rows: of what was written, and as the run recorded it; None without rows."""

CHECKED_TOKENS = 512
"""Recorded tokens that the written model is evaluated on, about."""

TOLERANCES = {"same": 1e-4, "rounded": 0.03}
"""Allowed difference of the loss, in nats a token, and its share of the loss: where the model was
measured in float32 and is written in it, and where bfloat16 rounds."""


def model_loss(run: FinishedRun, folder: Path, dtype: str | None) -> Losses:
    """Load a written model and evaluate it; its weights stay on disk until a layer needs them.

    Args:
        run: What it was written from.
        folder: Where it is.
        dtype: torch's name of its type; None where it kept its own.

    Raises:
        ModelError: Its loss is not the recorded one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    offloaded = folder / ".offload"
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype) if dtype else "auto",
        device_map={"": "disk"},
        offload_folder=offloaded,
    )
    losses = _checked_loss(run, model, dtype)
    shutil.rmtree(offloaded, ignore_errors=True)
    return losses


def adapter_loss(run: FinishedRun, folder: Path) -> Losses:
    """Load a written adapter as its card says and evaluate it, in the base's own type.

    That maps the base's files. An offloaded base is of no use here: PEFT 0.21 would leave the
    adapter without weights.

    Args:
        run: What it was written from.
        folder: Where it is.

    Raises:
        ModelError: It does not fit the base, or its loss is not the recorded one.
    """
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        revision=run.note["revision"] or "main",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    refuse_misfits(f"{run.final} on {run.note['source_model']}", info)
    return _checked_loss(run, model, str(model.dtype).removeprefix("torch."))


def _checked_loss(run: FinishedRun, model: "PreTrainedModel", dtype: str | None) -> Losses:
    """Evaluate what was written, loaded again, on a few rows that the run recorded.

    Raises:
        ModelError: Its loss is not the recorded one.
    """
    rows: list[dict[str, Any]] = []
    for row in run.rows:
        if rows and sum(len(r["input_ids"]) for r in [*rows, row]) > CHECKED_TOKENS:
            break
        rows.append(row)
    if not rows:
        return None
    losses = row_losses(model, rows, max_tokens=CHECKED_TOKENS)
    counts = losses.tokens
    recorded = sum(row["loss"] * n for row, n in zip(rows, counts, strict=True)) / sum(counts)
    same = dtype == run.dtype == "float32"
    allowed = TOLERANCES["same" if same else "rounded"] * (1 + recorded)
    if not abs(losses.mean() - recorded) <= allowed:
        raise ModelError(
            f"{run.final}: loaded again, what was written has a loss of {losses.mean():.6g}; the "
            f"run recorded {recorded:.6g} on the same rows: nothing was kept of it; please report "
            "this"
        )
    return losses.mean(), recorded
