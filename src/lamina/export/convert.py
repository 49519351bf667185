"""`lamina export`: a finished run's result in another form, a whole model or the adapter."""

import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.depth.reduction import adapter_obstacle, reduction, true_ties
from lamina.depth.surgery import layer_count
from lamina.depth.tensor_names import kept_tensors, layer_of
from lamina.errors import ConfigError, ModelError
from lamina.export.check import Losses, adapter_loss, model_loss
from lamina.export.finished_run import FinishedRun, finished_run
from lamina.export.folder import (
    copy_tokenizer,
    new_folder,
    outgoing,
    write_config,
    write_manifest,
    write_weights,
)
from lamina.export.merge import (
    WEIGHTS_FILE,
    AdapterUpdates,
    adapter_updates,
    non_lora_trainable,
    rename_magnitudes,
)
from lamina.runtime.console import quiet_libraries
from lamina.weights.reading import TensorSlice, as_bytes, tensor_slices, torch_dtype_of
from lamina.weights.source import ADAPTER_FILE, Source, resolve
from lamina.weights.writing import Outgoing

if TYPE_CHECKING:
    import torch


def export(run: str, output: str, form: str, dtype: str | None) -> tuple[str | None, Losses | None]:
    """Write a run's result in another form, and check that it loads as the measured model.

    `run` is the folder of a run, or of a model that Lamina wrote. `form` is merged (a whole model)
    or adapter (which PEFT loads onto the untouched base). `dtype` is torch's name for the weights'
    type; None takes the one the run was measured in. Return the weights' type, None if each tensor
    kept its own, and the losses, None if the run recorded no rows.

    Raises:
        ConfigError: There is no such run, or it does not have that form.
        ModelError: The base or the adapter has changed, or the export does not load.
        OutputError: The output is a source, is not empty, or cannot be written.
    """
    finished = finished_run(run)
    sources = [finished.final, Path(run).expanduser()]
    if form == "merged" and finished.final_is_adapter:
        sources.append(finished.base().folder)
    with new_folder("--output", Path(output), *sources) as folder:
        quiet_libraries()
        if form == "adapter":
            return None, _export_adapter(finished, folder, dtype)
        dtype = dtype or finished.dtype
        return dtype, _export_model(finished, folder, dtype)


def _export_adapter(run: FinishedRun, folder: Path, dtype: str | None) -> Losses | None:
    if dtype is not None:
        raise ConfigError(f"--dtype={dtype} needs --form merged: an adapter keeps its own type")
    if run.adapter is None:
        raise ConfigError(f"--form adapter: {run.final} has no adapter; choose --form merged")
    if lost := non_lora_trainable(run.adapter):
        raise ConfigError(f"--form adapter: {lost}; choose --form merged")
    base, kept_layers = run.checked_base(), run.manifest["kept_layers"]
    if obstacle := adapter_obstacle(base, kept_layers, "this set of layers"):
        raise ConfigError(f"--form adapter: {obstacle}; choose --form merged")
    adapter_updates(run.adapter, reduction(base, kept_layers))
    for name in (ADAPTER_FILE, WEIGHTS_FILE):
        shutil.copyfile(run.adapter / name, folder / name)
    rename_magnitudes(folder / WEIGHTS_FILE)
    copy_tokenizer(_tokenizer(run), folder)
    write_manifest(folder, run.manifest, is_adapter=True)
    return adapter_loss(run, folder)


def _export_model(run: FinishedRun, folder: Path, dtype: str | None) -> Losses | None:
    """Write final/ itself if it is a model, or its base with the adapter's updates."""
    import torch

    is_adapter = run.final_is_adapter
    if is_adapter and (lost := non_lora_trainable(run.final)):
        raise ModelError(
            f"{run.final}: {lost}, so the run's losses are not this model's: run the same command "
            "with export.form=merged and the same hydra.run.dir"
        )
    source = run.checked_base() if is_adapter else resolve(str(run.final))
    kept = run.manifest["kept_layers"] if is_adapter else range(layer_count(source.config))
    reduced = reduction(source, kept)
    updates = adapter_updates(run.final, reduced) if is_adapter else None
    wanted: torch.dtype | None = getattr(torch, dtype) if dtype else None
    copy_tokenizer(_tokenizer(run), folder)
    write_manifest(folder, run.manifest)
    mapping = kept_tensors(source.weight_map, kept, source.config)
    with tensor_slices(source, mapping) as slices:
        write_config(folder, true_ties(reduced, slices).content, source, dtype)
        write_weights(str(run.final), folder, _tensors(updates, slices, wanted))
    return model_loss(run, folder, dtype)


def _tokenizer(run: FinishedRun) -> Source:
    """Return final/, which has the tokenizer used in training."""
    return Source(name=str(run.final), revision=None, folder=run.final)


def _tensors(
    updates: AdapterUpdates | None,
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
    updates: AdapterUpdates,
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
