"""The check of what an export wrote: loaded again, it has the loss that the run recorded."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.depth.loading import refuse_misfits
from lamina.depth.quantization import quantization
from lamina.errors import ModelError
from lamina.export.finished_run import FinishedRun
from lamina.measure.evaluate import row_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Losses:
    """On a few recorded rows, in nats a token."""

    written: float
    """Of what was written, loaded again."""

    recorded: float
    """As the run recorded it."""

    unquantized: float | None = None
    """Of the adapter on its base in its own type, where the run had that in four bits: what a
    merged model is held against."""


CHECKED_TOKENS = 512
"""Recorded tokens that the written model is evaluated on, about."""

TOLERANCES = {"same": 1e-4, "rounded": 0.03}
"""Allowed difference of the loss, in nats a token, and its share of the loss: where the model was
measured in float32 and is written in it, and where bfloat16 rounds."""


def model_loss(run: FinishedRun, folder: Path, dtype: str | None) -> Losses | None:
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
    plain = None
    if run.in_4bit and run.rows:
        plain = _mean(_adapted(run, run.final, dtype=model.dtype), _rows(run))[0]
    losses = _checked(run, model, dtype, plain)
    shutil.rmtree(offloaded, ignore_errors=True)
    return losses


def adapter_loss(run: FinishedRun, folder: Path) -> Losses | None:
    """Load a written adapter as its card says and evaluate it, in the base's own type.

    One that was trained beside four bits gets those.

    That maps the base's files. An offloaded base is of no use here: PEFT 0.21 would leave the
    adapter without weights.

    Args:
        run: What it was written from.
        folder: Where it is.

    Raises:
        ModelError: It does not fit the base, or its loss is not the recorded one.
    """
    import torch

    settings: dict[str, Any] = {}
    if run.in_4bit:
        dtype = getattr(torch, run.dtype or "bfloat16")
        settings = {"dtype": dtype, "quantization_config": quantization(dtype)}
    model = _adapted(run, folder, **settings)
    return _checked(run, model, str(model.dtype).removeprefix("torch."), None)


def _adapted(run: FinishedRun, folder: Path, **settings: Any) -> "PreTrainedModel":
    """Load an adapter's folder.

    Raises:
        ModelError: It does not fit the base.
    """
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        **{"dtype": "auto", **settings},
        revision=run.note["revision"] or "main",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    refuse_misfits(f"{run.final} on {run.note['source_model']}", info)
    return model


def _rows(run: FinishedRun) -> list[dict[str, Any]]:
    """Return a few rows that the run recorded."""
    rows: list[dict[str, Any]] = []
    for row in run.rows:
        if rows and sum(len(r["input_ids"]) for r in [*rows, row]) > CHECKED_TOKENS:
            break
        rows.append(row)
    return rows


def _mean(model: "PreTrainedModel", rows: list[dict[str, Any]]) -> tuple[float, tuple[int, ...]]:
    """Return a model's loss on rows, and how many tokens of each count."""
    losses = row_losses(model, rows, max_tokens=CHECKED_TOKENS)
    return losses.mean(), losses.tokens


def _checked(
    run: FinishedRun, model: "PreTrainedModel", dtype: str | None, unquantized: float | None
) -> Losses | None:
    """Evaluate what was written, loaded again, on a few rows that the run recorded.

    Raises:
        ModelError: Its loss is not the recorded one.
    """
    if not (rows := _rows(run)):
        return None
    loss, counts = _mean(model, rows)
    recorded = sum(row["loss"] * n for row, n in zip(rows, counts, strict=True)) / sum(counts)
    expected = recorded if unquantized is None else unquantized
    same = dtype == run.dtype == "float32" and (unquantized is not None or not run.in_4bit)
    allowed = TOLERANCES["same" if same else "rounded"] * (1 + expected)
    if not abs(loss - expected) <= allowed:
        raise ModelError(
            f"{run.final}: loaded again, what was written has a loss of {loss:.6g}; "
            f"{'the run recorded' if unquantized is None else 'its adapter has'} {expected:.6g} on "
            "the same rows: nothing was kept of it; please report this"
        )
    return Losses(loss, recorded, unquantized)
