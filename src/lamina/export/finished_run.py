"""A finished run, read from its files: the layers it kept, and its result."""

import json
import math
import reprlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.depth.surgery import MOST_LAYERS
from lamina.errors import ConfigError, ModelError, either
from lamina.export.folder import MANIFEST_FILE
from lamina.export.merge import WEIGHTS_FILE
from lamina.measure.results import RESULT_FILE, ROWS_FILE, load_result, read_rows, trained_tokens
from lamina.runtime.checkpoints import best_checkpoint, last_checkpoint
from lamina.weights.reading import DTYPES, weights_fingerprint
from lamina.weights.source import ADAPTER_FILE, Source, made_of, read_json, resolve

MANIFEST: dict[str, Any] = {
    "source_model": str | None,
    "revision": str | None,
    "model_type": str,
    "num_layers": int,
    "kept_layers": list,
    "adapter": str | None,
    **dict.fromkeys(("lamina", "license"), str | None),
    **dict.fromkeys(("notes", "datasets"), list | None),
    **dict.fromkeys(("healing", "evaluation", "tasks", "export", "repair"), dict | None),
}
"""Fields of lamina.json that are read, and their types."""


@dataclass(frozen=True)
class FinishedRun:
    """The result of a run, or of `lamina cut`."""

    final: Path
    """Folder of the resulting model or adapter."""
    manifest: dict[str, Any]
    """Content of its lamina.json."""
    result: dict[str, Any] | None
    """Content of result.json; None if the folder has only a model, without its run."""
    rows: list[dict[str, Any]]
    """Rows of eval.jsonl, each with final/'s loss; empty without such a file."""
    moved_base: str | None = None
    """Where the larger model is now, if not where the run recorded."""

    @property
    def adapter(self) -> Path | None:
        """Folder of the run's adapter: final/, or the best checkpoint of a merged run."""
        if self.final_is_adapter:
            return self.final
        last = last_checkpoint(self.final.parent)
        best = best_checkpoint(last) if last else None
        return best if best and (best / ADAPTER_FILE).is_file() else None

    @property
    def final_is_adapter(self) -> bool:
        """Whether final/ is an adapter, which loads onto its base."""
        return (self.final / ADAPTER_FILE).is_file()

    @property
    def in_4bit(self) -> bool:
        """Whether final/ is an adapter trained and measured on a four-bit base."""
        return self.final_is_adapter and self.manifest["adapter"] == "qlora"

    @property
    def dtype(self) -> str | None:
        """Type that final/ was measured in, as torch names it; None if it is not recorded."""
        exported = self.manifest.get("export") or {}  # older runs have none
        return self.result["dtype"] if self.result else exported.get("dtype")

    @property
    def all_rows(self) -> int:
        """How many rows the run evaluated; eval.jsonl has the first of them."""
        return int(self.result["data"]["eval"]["rows"]) if self.result else len(self.rows)

    def base(self) -> Source:
        """Find the larger model; raises ModelError if it is missing, or there was none."""
        name, revision = self.manifest["source_model"], self.manifest["revision"]
        if name is None:
            raise ModelError(f"{self.final} was trained from scratch: it has no larger model")
        if self.moved_base is not None:
            return resolve(self.moved_base, revision if self.moved_base == name else None)
        if revision is None and not Path(name).expanduser().is_dir():
            raise ModelError(
                f"{name}: no such folder; if the base has moved, lamina export takes --base PATH"
            )
        return resolve(name, revision)

    def copy_adapter(self, folder: Path) -> None:
        """Copy the adapter's two files; its config names the base where it is now.

        Of a bare name, transformers would ask the hub, where it may be a stranger's.
        """
        assert self.adapter is not None
        shutil.copyfile(self.adapter / WEIGHTS_FILE, folder / WEIGHTS_FILE)
        content = read_json(self.adapter / ADAPTER_FILE)
        content["base_model_name_or_path"] = self.base().name
        (folder / ADAPTER_FILE).write_text(json.dumps(content, indent=2, sort_keys=True))

    def checked_base(self) -> Source:
        """Find the larger model; raises ModelError if it is missing, or has other weights."""
        source = self.base()
        expected = self.manifest.get("source_fingerprint")
        if expected and weights_fingerprint(source) != expected:
            raise ModelError(
                f"{source.name} does not have the weights that the adapter in {self.final} was "
                "trained on, and an adapter on other weights gives wrong numbers: restore them"
            )
        return source


def finished_run(given: str, base: str | None = None) -> FinishedRun:
    """Find a run by its folder, or by final/, the folder of its model.

    `base` is where the larger model is now, if it has moved. Raises ConfigError if there is no run,
    or it did not finish.
    """
    folder = Path(given).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"{given}: no such folder; pass a run folder or its final/")
    result = load_result(folder) if (folder / RESULT_FILE).exists() else None
    final = folder
    if result is not None:
        if result["dtype"] not in (None, *DTYPES):
            found = f"dtype is {result['dtype']!r}, expected {either([*DTYPES])}"
            raise ModelError(f"{folder / RESULT_FILE}: {found}")
        with made_of(folder / RESULT_FILE):  # a path may hold what no file system does
            final = (folder / (result["final"] or "final")).resolve()
        if not result["final"] or not final.is_dir():
            raise ConfigError(
                f"{given}: the run left no final/ (status {result['status']}); run the same "
                "command with the same hydra.run.dir to finish it"
            )
    if not (final / MANIFEST_FILE).is_file():
        raise ConfigError(
            f"{given}: neither a run folder nor a model that Lamina wrote (no {MANIFEST_FILE})"
        )
    manifest = read_json(final / MANIFEST_FILE, MANIFEST)
    _refuse_impossible(final / MANIFEST_FILE, manifest["kept_layers"], manifest["num_layers"])
    return FinishedRun(final, manifest, result, read_rows(folder / ROWS_FILE), base)


def _refuse_impossible(path: Path, kept_layers: list[Any], num_layers: int) -> None:
    """Refuse kept layers that are no ascending indices of a model's layers."""
    are_indices = all(type(index) is int and 0 <= index < num_layers for index in kept_layers)
    if num_layers > MOST_LAYERS or not are_indices or kept_layers != sorted({*kept_layers}):
        raise ModelError(
            f"{path}: kept_layers is {reprlib.repr(kept_layers)}, expected ascending indices of "
            f"{num_layers} layers (at most {MOST_LAYERS:,})"
        )


def recorded_loss(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return final/'s loss on rows of eval.jsonl, in nats per trained token."""
    total = math.fsum(row["loss"] * trained_tokens(row) for row in rows)
    return total / sum(map(trained_tokens, rows))
