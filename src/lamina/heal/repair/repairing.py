"""repair=magnitude|closed_form: found once for all jobs of a sweep, and folded into the weights."""

import logging
from collections.abc import Sequence
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lamina.depth.reduction import decoder_stack
from lamina.errors import ConfigError
from lamina.export.card import repair_lines
from lamina.heal.repair.calibration_pass import CalibrationPass
from lamina.heal.repair.fitting import divide
from lamina.heal.repair.methods import CLOSED_FORM, writers
from lamina.runtime import distributed
from lamina.runtime.cache import cached, digest, folder_of
from lamina.runtime.files import replacing
from lamina.scan.cached import CachedScores
from lamina.units import format_bytes, parse_bytes, parse_tokens
from lamina.weights.reading import identity

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

PROTOCOL = 2
"""Raise it when a code change alters a repair: older cached ones are then ignored."""

WEIGHTS_FILE = "weights.safetensors"


def refuse_beyond_memory(method: str, scores: CachedScores, config: "PretrainedConfig") -> None:
    """Raise a ConfigError if scan.memory is too small for the states of scan.tokens and a fit."""
    settings, text = scores.settings, config.get_text_config()
    tokens = parse_tokens("scan.tokens", settings.tokens) * settings.sets
    needed = 3 * tokens * text.hidden_size * scores.dtype().itemsize
    if method == CLOSED_FORM:
        inputs = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        needed += 16 * inputs * (inputs + text.hidden_size)
    if needed > parse_bytes("scan.memory", settings.memory):
        raise ConfigError(
            f"scan.memory={settings.memory} is too small for repair={method} with {tokens:,} "
            f"calibration tokens, which takes {format_bytes(needed)}: lower scan.tokens, or raise "
            "scan.memory"
        )


def repaired(
    method: str, model: "PreTrainedModel", scores: CachedScores, kept_layers: Sequence[int]
) -> dict[str, Any]:
    """Repair a reduced model in memory; return what result.json says of it.

    `scores` has the original model and the calibration windows.
    """
    about, weights = distributed.first_process_first(
        "repair", lambda: _cached(method, scores, kept_layers)
    )
    fold(model, kept_layers, about["cuts"], weights)
    for line in repair_lines(about):
        logger.info("repaired: %s", line)
    return about


def fold(
    model: "PreTrainedModel",
    kept_layers: Sequence[int],
    cuts: Sequence[dict[str, Any]],
    weights: "dict[str, torch.Tensor]",
) -> None:
    """Change a reduced model's weights: to new ones, and by the factors of the cuts before them.

    After a cut, hidden states are too small by its factor. The outputs of later layers are divided
    by it, since embeddings may be tied to the head; the norm before the head takes any scale.
    """
    import torch

    stack = decoder_stack(model, len(kept_layers))[1]
    with torch.no_grad():
        for name, weight in weights.items():
            place, _, own = name.partition(".")
            stack[int(place)].get_parameter(own).copy_(weight)
    for position, layer in enumerate(kept_layers):
        before = [cut["factor"] for cut in cuts if "factor" in cut and cut["removed"][1] <= layer]
        for module in writers(stack[position]) if before else ():
            divide(module, prod(before))


def _cached(
    method: str, scores: CachedScores, kept_layers: Sequence[int]
) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """Return a repair's entry and its new weights; other jobs that need them wait."""
    from safetensors.torch import load_file, save_file

    windows = scores.windows
    parts = [
        *identity(scores.source),
        windows.fingerprint,
        f"{scores.dtype()} {method} {list(kept_layers)} protocol {PROTOCOL}",
    ]
    folder = folder_of("repairs", parts)
    path = folder / WEIGHTS_FILE
    with cached(folder, "repair.json") as entry:
        if entry.content is None or entry.content["sha256"] != digest(path):
            started = perf_counter()
            with scores.opened() as stack:
                found = CalibrationPass(method, stack, windows, kept_layers)
                found.run()
            if weights := {name: each.cpu() for name, each in found.weights.items()}:
                with replacing(path) as partial:
                    save_file(weights, partial)
            about = {
                "method": method,
                "tokens": windows.ids.numel(),
                "cuts": found.cuts,
                "seconds": perf_counter() - started,
            }
            entry.content = {"about": about, "sha256": digest(path)}
        return entry.content["about"], load_file(path) if path.is_file() else {}
