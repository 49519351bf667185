"""A finished run, read from its files: the layers it kept, and its result."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, ModelError
from lamina.export.folder import MANIFEST_FILE
from lamina.measure.results import ROWS_FILE, read_result
from lamina.runtime.checkpoints import best_checkpoint, last_checkpoint
from lamina.weights.reading import weights_fingerprint
from lamina.weights.source import ADAPTER_FILE, Source, read_json, resolve


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
        return self.result["dtype"] if self.result else None

    def base(self) -> Source:
        """Find the larger model; raises ModelError if it is missing, or there was none."""
        name, revision = self.manifest["source_model"], self.manifest["revision"]
        if name is None:
            raise ModelError(f"{self.final} was trained from scratch: it has no larger model")
        return resolve(name, revision)

    def checked_base(self) -> Source:
        """Find the larger model; raises ModelError if it is missing, or its weights changed."""
        source = self.base()
        expected = self.manifest.get("source_fingerprint")
        if source.is_local and expected and weights_fingerprint(source) != expected:
            raise ModelError(
                f"{source.name} no longer has the weights that the adapter in {self.final} was "
                "trained on, and an adapter on other weights gives wrong numbers: restore them"
            )
        return source


def finished_run(given: str) -> FinishedRun:
    """Find a run by its folder, or by final/, the folder of its model.

    Raises:
        ConfigError: There is no run, or it did not finish.
    """
    folder = Path(given).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"{given}: no such folder; pass a run folder or its final/")
    result = read_result(folder)
    if result is not None:
        if not result.get("final") or not (folder / result["final"]).is_dir():
            raise ConfigError(
                f"{given}: the run left no final/ (status {result['status']}); run the same "
                "command with the same hydra.run.dir to finish it"
            )
        final = (folder / result["final"]).resolve()
    else:
        final = folder
    if not (final / MANIFEST_FILE).is_file():
        raise ConfigError(
            f"{given}: neither a run folder nor a model that Lamina wrote (no {MANIFEST_FILE})"
        )
    path = folder / ROWS_FILE
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    measured = [row for row in rows if row.get("loss") is not None]
    return FinishedRun(final, read_json(final / MANIFEST_FILE), result, measured)
