"""Any form of a run's result, made later: a whole model in any type, or the adapter."""

import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.depth.reduction import Reduction, adapter_form_is_exact, reduction
from lamina.depth.surgery import layer_count
from lamina.depth.tensor_names import kept_tensors, layer_of
from lamina.errors import ConfigError
from lamina.export.check import Losses, adapter_loss, model_loss
from lamina.export.finished_run import ADAPTER_FILE, FinishedRun, finished_run
from lamina.export.folder import (
    copy_tokenizer,
    new_folder,
    outgoing,
    refuse_output,
    write_beside,
    write_config,
    write_weights,
)
from lamina.export.magnitudes import make_readable
from lamina.export.merge import WEIGHTS_FILE, AdapterUpdates, adapter_updates
from lamina.runtime.console import quiet_libraries
from lamina.weights.reading import TensorSlice, as_bytes, tensor_slices, torch_dtype_of
from lamina.weights.source import Source, resolve
from lamina.weights.writing import MAX_SHARD_BYTES, Outgoing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Exported:
    """What was written."""

    output: Path
    form: str
    dtype: str | None
    """torch's name of the weights' type; None where they kept their own."""

    loss: Losses | None
    """On a few recorded rows; None without rows."""


def export(
    run: str,
    output: str,
    form: str,
    dtype: str | None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Write a run's result in another form, and load it to see that it is what the run measured.

    Args:
        run: A run folder, or the folder of a model that Lamina wrote.
        output: New or empty folder.
        form: merged for a whole model, adapter for what PEFT loads onto the untouched base.
        dtype: torch's name of the weights' type; None for the one that the run measured in.
        max_shard_bytes: Size from which on a model's weights are split into several files.

    Raises:
        ConfigError: There is no such run, or the form does not fit it.
        ModelError: The base or the adapter is not what it was, or what was written does not load.
        OutputError: The output is a source, is not empty or cannot be written.
    """
    finished = finished_run(run)
    refuse_output("--output", Path(output), finished.final, Path(run).expanduser())
    quiet_libraries()
    if form == "adapter":
        return _export_adapter(finished, Path(output), dtype)
    return _export_model(finished, Path(output), dtype or finished.dtype, max_shard_bytes)


def _export_adapter(run: FinishedRun, output: Path, dtype: str | None) -> Exported:
    if dtype is not None:
        raise ConfigError(f"--dtype={dtype} goes with --form merged: an adapter keeps its own")
    if run.adapter is None:
        raise ConfigError(f"--form adapter: {run.final} has no adapter; choose --form merged")
    smaller = reduction(run.checked_base(), run.note["kept_layers"])
    reduced = len(run.note["kept_layers"]) < run.note["num_layers"]
    if reduced and not adapter_form_is_exact(smaller.blueprint):
        raise ConfigError(
            "--form adapter: an adapter cannot rebuild this set of layers of this architecture "
            "exactly; choose --form merged"
        )
    adapter_updates(run.adapter, smaller)
    with new_folder(output) as folder:
        for name in (ADAPTER_FILE, WEIGHTS_FILE):
            shutil.copyfile(run.adapter / name, folder / name)
        make_readable(folder / WEIGHTS_FILE)
        copy_tokenizer(_beside(run), folder)
        write_beside(folder, run.note, is_adapter=True)
        loss = adapter_loss(run, folder)
    return Exported(output, "adapter", None, loss)


def _export_model(
    run: FinishedRun, output: Path, dtype: str | None, max_shard_bytes: int
) -> Exported:
    import torch

    origin = _origin(run)
    refuse_output("--output", output, origin.source.folder)
    wanted: torch.dtype | None = getattr(torch, dtype) if dtype else None
    with new_folder(output) as folder:
        write_config(folder, origin.reduction.content, origin.source, dtype)
        copy_tokenizer(_beside(run), folder)
        write_beside(folder, run.note)
        with tensor_slices(origin.source, origin.mapping) as slices:
            tensors = _tensors(origin, slices, wanted)
            write_weights(folder, tensors, max_shard_bytes)
        loss = model_loss(run, folder, dtype)
    return Exported(output, "merged", dtype, loss)


@dataclass(frozen=True)
class _Origin:
    """What a whole model is written from."""

    source: Source
    mapping: dict[str, str]
    """Names of the source's tensors, and those of the model."""

    reduction: Reduction
    updates: AdapterUpdates | None


def _origin(run: FinishedRun) -> _Origin:
    """A model is its own origin; an adapter has the base and its updates."""
    source = run.checked_base() if run.final_is_adapter else resolve(str(run.final))
    count = layer_count(source.config)
    kept = run.note["kept_layers"] if run.final_is_adapter else range(count)
    smaller = reduction(source, kept)
    updates = adapter_updates(run.final, smaller) if run.final_is_adapter else None
    return _Origin(source, kept_tensors(source.weight_map, kept, source.config), smaller, updates)


def _beside(run: FinishedRun) -> Source:
    """final/ as a source of files: the tokenizer there is the one that was trained with."""
    return Source(name=str(run.final), revision=None, folder=run.final)


def _tensors(
    origin: _Origin, slices: Mapping[str, TensorSlice], dtype: "torch.dtype | None"
) -> dict[str, Outgoing]:
    """Make every tensor ready, layer after layer, with an adapter's updates where it has them."""
    tensors = outgoing(slices, dtype)
    groups: dict[int | None, list[str]] = defaultdict(list)
    for name in slices:
        groups[layer_of(name)].append(name)
    ordered: dict[str, Outgoing] = {}
    for layer in sorted(groups, key=lambda index: -1 if index is None else index):
        group = {name: tensors[name] for name in groups[layer]}
        if origin.updates and layer in origin.updates.updates:
            group = _merging(origin.updates, layer, slices, group)
        ordered.update(group)
    return ordered


def _merging(
    updates: AdapterUpdates,
    layer: int | None,
    slices: Mapping[str, TensorSlice],
    group: Mapping[str, Outgoing],
) -> dict[str, Outgoing]:
    """Merge a layer when its first tensor is written, and let go of it with the last."""
    merged: dict[str, torch.Tensor] = {}

    def blocks(name: str) -> Iterator[memoryview]:
        """Give one tensor's bytes; the first call merges the layer."""
        if not merged:
            merged.update(updates.merged(layer, {name: slices[name] for name in group}))
        yield as_bytes(merged.pop(name), torch_dtype_of(group[name].stored))

    return {name: Outgoing(tensor.stored, partial(blocks, name)) for name, tensor in group.items()}
