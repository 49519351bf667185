"""What `lamina show` prints: the layers of a model, and which of them a run kept."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lamina.depth.layer_sets import format_layers
from lamina.depth.surgery import PER_LAYER_FIELDS, layer_count
from lamina.depth.tensor_names import kept_tensors, layer_of
from lamina.errors import ConfigError
from lamina.export.finished_run import FinishedRun, finished_run
from lamina.export.folder import MANIFEST_FILE
from lamina.measure.results import RESULT_FILE
from lamina.runtime.console import stage
from lamina.units import format_bytes
from lamina.weights.header import StoredTensor
from lamina.weights.source import ADAPTER_FILE, Source, resolve

SHOWN_FILES = (RESULT_FILE, MANIFEST_FILE, "config.json", ADAPTER_FILE)
"""Any of these makes a folder one of a run, a model or an adapter."""


@dataclass(frozen=True)
class Part:
    """A layer, or everything outside the layers: embeddings, norm, head."""

    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]
    kind: str
    """Entries of the config's per-layer lists, such as full_attention."""


@stage("reading headers")
def overview(given: str) -> RenderableType:
    """Return the layers of a hub id, a model or a run; raises ConfigError or ModelError."""
    folder = Path(given).expanduser()
    if folder.exists() and not any((folder / name).is_file() for name in SHOWN_FILES):
        what = "holds nothing to show" if folder.is_dir() else "is a file"
        raise ConfigError(
            f"{given} {what}: pass a hub id, or the folder of a model, run, sweep or scan"
        )
    if (folder / RESULT_FILE).is_file() or (folder / MANIFEST_FILE).is_file():
        return _of_run(finished_run(given))
    source = resolve(given)
    parts = parts_of(source)
    every = range(layer_count(source.config))
    return Group(Text(source.name, style="bold"), Text(), _table(parts, every))


def parts_of(source: Source) -> dict[int | None, Part]:
    """Sum up each layer by its 0-based index, and the rest as None; may raise a ModelError."""
    tensors: dict[int | None, list[StoredTensor]] = defaultdict(list)
    with source.reading("config.json"):
        found = source.all_stored()
        kept_tensors(found, range(layer_count(source.config)), source.config)
        for name, stored in found.items():
            tensors[layer_of(name)].append(stored)
        return {index: _part(source.config, index, tensors[index]) for index in tensors}


def _part(config: dict[str, Any], index: int | None, tensors: Sequence[StoredTensor]) -> Part:
    lists = [config.get(field) for field in sorted(PER_LAYER_FIELDS)] if index is not None else []
    kinds = [str(entries[index]) for entries in lists if entries and index is not None]
    return Part(
        sum(tensor.size for tensor in tensors),
        sum(tensor.nbytes for tensor in tensors),
        tuple(sorted({tensor.dtype for tensor in tensors})),
        " ".join(kinds),
    )


def _of_run(run: FinishedRun) -> RenderableType:
    manifest = run.manifest
    kept, total = manifest["kept_layers"], manifest["num_layers"]
    strip = Text("".join("■" if index in kept else "□" for index in range(total)))
    source_model = manifest["source_model"]
    origin = f" of {source_model}" if source_model else ", trained from random weights"
    lines: list[RenderableType] = [
        Text(f"{manifest['model_type']}: {len(kept)} of {total} layers{origin}"),
        Text(),
        strip,
        Text(f"kept: {format_layers(kept)}  (0-based, half-open)", style="dim"),
        Text(),
    ]
    if files := sorted(run.final.glob("*.gguf")):
        lines += [Text(f"{path}: {format_bytes(path.stat().st_size)}") for path in files]
    elif run.final_is_adapter:
        lines += [_table(parts_of(run.base()), kept), Text()]
        lines.append(Text(f"{run.final}: an adapter; lamina export merges it into a full model"))
    else:
        source = resolve(str(run.final))
        every = range(layer_count(source.config))
        lines += [_table(parts_of(source), every), Text(), Text(str(run.final))]
    return Group(*lines)


def _table(parts: dict[int | None, Part], kept: Sequence[int]) -> Table:
    """Return a row for each group of equal neighbours, for the rest of the model and the sum."""
    table = Table(box=None, pad_edge=False)
    table.add_column("layers", style="bold")
    table.add_column("kind")
    for name in ("parameters", "bytes"):
        table.add_column(name, justify="right")
    table.add_column("type")
    for group in _equal_neighbours(kept, parts):
        part = parts[group[0]]
        each = "" if len(group) == 1 else " each"
        table.add_row(format_layers(group), part.kind, *_sizes(part, each), " ".join(part.dtypes))
    rest = parts.get(None, Part(0, 0, (), ""))
    table.add_row("others", "embeddings, norm, head", *_sizes(rest, ""), " ".join(rest.dtypes))
    every = [*(parts[index] for index in kept), rest]
    total = Part(sum(p.parameters for p in every), sum(p.nbytes for p in every), (), "")
    table.add_row("all", f"{len(kept)} layers", *_sizes(total, ""), "", style="bold")
    return table


def _sizes(part: Part, each: str) -> tuple[str, str]:
    return f"{part.parameters:,}{each}", f"{part.nbytes:,}{each}"


def _equal_neighbours(kept: Sequence[int], parts: dict[int | None, Part]) -> list[list[int]]:
    # The difference of an index and its position is the same for neighbours.
    pairs = groupby(enumerate(kept), key=lambda pair: (pair[1] - pair[0], parts[pair[1]]))
    return [[index for _, index in group] for _, group in pairs]
