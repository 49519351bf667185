"""`lamina export`: a finished run's result in another form, a whole model or the adapter."""

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.depth.reduction import adapter_obstacle, reduction, tied_tensors, true_ties, untied
from lamina.depth.surgery import layer_count
from lamina.depth.tensor_names import kept_tensors, layer_of
from lamina.errors import ConfigError, ModelError
from lamina.export import merge
from lamina.export.card import portable
from lamina.export.check import Losses, adapter_loss, few_rows, model_loss
from lamina.export.finished_run import FinishedRun, finished_run
from lamina.export.folder import (
    MANIFEST_FILE,
    copy_tokenizer,
    new_folder,
    outgoing,
    write_config,
    write_manifest,
    write_weights,
)
from lamina.export.gguf import KINDS, write_gguf
from lamina.export.verify import measured_in
from lamina.measure.separate import in_engine
from lamina.runtime.console import announce, quiet_libraries, stage
from lamina.weights.reading import TensorSlice, as_bytes, tensor_slices, torch_dtype_of
from lamina.weights.source import Source, made_of, resolve
from lamina.weights.writing import Outgoing

if TYPE_CHECKING:
    import torch


@stage("preparing the export")
def export(
    run: str,
    output: str,
    form: str,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    base: str | None = None,
    python: str | None = None,
) -> tuple[str | None, Losses | None]:
    """Write a run's result in another form, and check that it loads as the measured model.

    `run` is the folder of a run, or of a model that Lamina wrote. `form` is merged (a whole model),
    adapter (which PEFT loads onto the untouched base) or gguf (a whole model for llama.cpp).
    `dtype` is torch's name for the weights' type; None takes the one the run was measured in.
    `quantize` is one of `engines.QUANTIZED`, `base` where the larger model is now, and `python` an
    interpreter that has llama.cpp's packages. Return the weights' type, None if each tensor kept
    its own, and the losses, None if the run recorded no rows. Raises ConfigError if there is no
    such run, it does not have that form, or a package is missing, ModelError if the base or the
    adapter has changed, or the export does not load, and OutputError if the output is a source, is
    not empty, or cannot be written.
    """
    if quantize and (form != "gguf" or dtype):
        what = f"--dtype={dtype}" if dtype else f"--form={form}"
        raise ConfigError(f"--quantize={quantize} needs --form gguf and no --dtype, not {what}")
    if dtype and form == "adapter":
        raise ConfigError(f"--dtype={dtype} needs --form merged: an adapter keeps its own type")
    finished = finished_run(run, base)
    sources = [finished.final, Path(run).expanduser()]
    if form != "adapter" and finished.final_is_adapter:
        sources.append(finished.base().folder)
    with new_folder("--output", Path(output), *sources) as folder:
        announce(f"exporting {run} into {output}, {form}")
        quiet_libraries()
        if form == "adapter":
            losses, kind = _export_adapter(finished, folder), None
        elif form == "merged":
            kind = dtype or finished.dtype
            losses = _export_model(finished, folder, kind)
        else:
            kind = quantize or dtype or finished.dtype or "bfloat16"
            losses = _export_gguf(finished, folder, kind, python)
        _describe(finished, folder, form, kind, losses)
    return kind, losses


def _describe(
    run: FinishedRun, folder: Path, form: str, kind: str | None, losses: Losses | None
) -> None:
    """Write lamina.json and the card of an export, which name no path of this machine."""
    content = portable(run.manifest, run.moved_base)
    content["export"] = {
        "form": form,
        "dtype": kind or run.dtype,
        "loss": losses.written if losses else None,
        "rows": losses.rows if losses else 0,
        "all_rows": losses.all_rows if losses else 0,
    }
    with made_of(run.final / MANIFEST_FILE):
        write_manifest(folder, content)


def _export_adapter(run: FinishedRun, folder: Path) -> Losses | None:
    if run.adapter is None:
        raise ConfigError(f"--form adapter: {run.final} has no adapter; choose --form merged")
    if lost := merge.non_lora_trainable(run.adapter):
        raise ConfigError(f"--form adapter: {lost}; choose --form merged")
    if repair := run.manifest.get("repair"):
        raise ConfigError(
            f"--form adapter: repair={repair['method']} changed the base, which an adapter alone "
            "cannot rebuild; choose --form merged"
        )
    if rounds := (run.manifest["healing"] or {}).get("ladder.keep_layers"):
        raise ConfigError(
            f"--form adapter: with ladder.keep_layers={rounds} its base is what the round before "
            "left, not the original; choose --form merged"
        )
    base, kept_layers = run.checked_base(), run.manifest["kept_layers"]
    if obstacle := adapter_obstacle(base, kept_layers, "this set of layers"):
        raise ConfigError(f"--form adapter: {obstacle}; choose --form merged")
    merge.adapter_updates(run.adapter, reduction(base, kept_layers))
    run.copy_adapter(folder)
    merge.rename_magnitudes(folder / merge.WEIGHTS_FILE)
    copy_tokenizer(_tokenizer(run), folder)
    return adapter_loss(run, folder)


def _export_gguf(run: FinishedRun, folder: Path, kind: str, python: str | None) -> Losses | None:
    """Write a whole model, and convert it; llama.cpp computes the loss."""
    in_engine("convert", python, {"model": None})
    variant = re.sub(r"\W+", "_", run.manifest["model_type"])  # it may be someone else's
    whole, name = folder / ".whole", f"{variant}-{KINDS.get(kind, kind)}.gguf"
    whole.mkdir()
    _export_model(run, whole, kind if kind in KINDS else run.dtype)
    write_gguf(whole, folder / name, KINDS.get(kind, kind), python)
    shutil.rmtree(whole)
    if not (rows := few_rows(run)):
        return None
    found = measured_in("llama.cpp", python, folder / name, kind, rows)
    if not found.within:
        raise ModelError(
            f"{run.final}: in llama.cpp {found.version}, {kind}, the export has a loss of "
            f"{found.loss:.6g}, but the run recorded {found.recorded:.6g} on the same rows: the "
            "export was deleted; try another --quantize"
        )
    return Losses(found.loss, found.recorded, found.rows, run.all_rows, found.allowed)


def _export_model(run: FinishedRun, folder: Path, dtype: str | None) -> Losses | None:
    """Write final/ itself if it is a model, or its base with the adapter's updates."""
    import torch

    is_adapter = run.final_is_adapter
    if is_adapter and (lost := merge.non_lora_trainable(run.final)):
        raise ModelError(
            f"{run.final}: {lost}, so the run's losses are not this model's: run the same command "
            "with export.form=merged and the same hydra.run.dir"
        )
    source = run.checked_base() if is_adapter else resolve(str(run.final))
    kept = run.manifest["kept_layers"] if is_adapter else range(layer_count(source.config))
    reduced = reduction(source, kept)
    wanted: torch.dtype | None = getattr(torch, dtype) if dtype else None
    copy_tokenizer(_tokenizer(run), folder)
    mapping = kept_tensors(source.weight_map, kept, source.config)
    with tensor_slices(source, mapping) as slices:
        reduced = true_ties(reduced, slices)
        updates = merge.adapter_updates(run.final, reduced) if is_adapter else None
        if updates and updates.unties:
            slices |= tied_tensors(reduced, slices)
            reduced = untied(reduced)
            updates = replace(updates, reduction=reduced)
        write_config(folder, reduced.content, source, dtype)
        write_weights(str(run.final), folder, _tensors(updates, slices, wanted))
    return model_loss(run, folder, dtype)


def _tokenizer(run: FinishedRun) -> Source:
    """Return final/, which has the tokenizer used in training."""
    return Source(name=str(run.final), revision=None, folder=run.final)


def _tensors(
    updates: merge.AdapterUpdates | None,
    slices: Mapping[str, TensorSlice],
    dtype: "torch.dtype | None",
) -> dict[str, Outgoing]:
    """Return every tensor, layer by layer, with the adapter's updates if there are any."""
    tensors = outgoing(slices, dtype)
    groups: dict[int | None, list[str]] = defaultdict(list)
    for name in slices:
        groups[layer_of(name)].append(name)
    ordered: dict[str, Outgoing] = {}
    for layer in sorted(groups, key=lambda index: -1 if index is None else index):
        group = {name: tensors[name] for name in groups[layer]}
        if updates and layer in updates.updates:
            group = _merging(updates, layer, slices, group)
        ordered.update(group)
    return ordered


def _merging(
    updates: merge.AdapterUpdates,
    layer: int | None,
    slices: Mapping[str, TensorSlice],
    group: Mapping[str, Outgoing],
) -> dict[str, Outgoing]:
    """Merge a layer when its first tensor is written, and free each tensor once it is written."""
    merged: dict[str, torch.Tensor] = {}

    def blocks(name: str) -> Iterator[memoryview]:
        if not merged:
            merged.update(updates.merged(layer, {name: slices[name] for name in group}))
        yield as_bytes(merged.pop(name), torch_dtype_of(group[name].stored))

    return {name: Outgoing(tensor.stored, partial(blocks, name)) for name, tensor in group.items()}
