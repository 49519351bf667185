"""A finished run, found again from its files: what was kept of which model, and where it lies."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, ModelError
from lamina.export.folder import NOTE_FILE
from lamina.measure.results import ROWS_FILE, read_result
from lamina.weights.reading import weights_fingerprint
from lamina.weights.source import Source, read_json, resolve

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class FinishedRun:
    """What a run, or `lamina cut`, left."""

    final: Path
    """The folder with its result: a model or an adapter."""

    note: dict[str, Any]
    """Content of its lamina.json."""

    result: dict[str, Any] | None
    """Content of result.json; None where only the model's folder was given."""

    rows: list[dict[str, Any]]
    """Evaluated rows of eval.jsonl, each with the loss of final/ on it; empty without them."""

    @property
    def adapter(self) -> Path | None:
        """Folder of the run's adapter: final/, or else its best checkpoint."""
        if (self.final / ADAPTER_FILE).is_file():
            return self.final
        best = _best_checkpoint(self.final.parent)
        return best if best and (best / ADAPTER_FILE).is_file() else None

    @property
    def final_is_adapter(self) -> bool:
        """Whether final/ needs its base to load."""
        return (self.final / ADAPTER_FILE).is_file()

    @property
    def in_4bit(self) -> bool:
        """Whether final/ is an adapter that was trained, and measured, on a base in four bits."""
        return self.final_is_adapter and self.note["adapter"] == "qlora"

    @property
    def dtype(self) -> str | None:
        """Torch's name of the type that final/ was measured in; None where nobody recorded it."""
        return self.result["dtype"] if self.result else None

    def base(self) -> Source:
        """Find the larger model again.

        Raises:
            ModelError: It is gone, or there was none.
        """
        name, revision = self.note["source_model"], self.note["revision"]
        if name is None:
            raise ModelError(f"{self.final} was trained from scratch: it has no larger model")
        return resolve(name, revision)

    def checked_base(self) -> Source:
        """Find the larger model again, with the weights that it had.

        Raises:
            ModelError: It is gone, or its weights are no longer those that the run started from.
        """
        source = self.base()
        expected = self.note.get("source_fingerprint")
        if source.is_local and expected and weights_fingerprint(source) != expected:
            raise ModelError(
                f"{source.name} has other weights than when the adapter in {self.final} was "
                "trained on it: an adapter for another base gives wrong numbers; bring the old "
                "weights back"
            )
        return source


def finished_run(given: str) -> FinishedRun:
    """Find a run by its folder, or by the folder of the model that it left.

    Raises:
        ConfigError: There is no run, it left no model, or the folder does not say what it is.
    """
    folder = Path(given).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"{given}: no such folder; give a run folder or its final/")
    result = read_result(folder)
    if result is not None:
        if not result.get("final") or not (folder / result["final"]).is_dir():
            raise ConfigError(
                f"{given}: the run left no final/ (status {result['status']}); start it again "
                "with the same command and hydra.run.dir to finish it"
            )
        final = (folder / result["final"]).resolve()
    else:
        final = folder
    if not (final / NOTE_FILE).is_file():
        raise ConfigError(f"{given}: neither a run folder nor a model of ours (no {NOTE_FILE})")
    return FinishedRun(final, read_json(final / NOTE_FILE), result, _rows(folder))


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / ROWS_FILE
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if row.get("loss") is not None]


def _best_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that the trainer of a folder found best."""
    states = list(folder.glob("checkpoint-*/trainer_state.json"))
    if not states:
        return None
    last = max(states, key=lambda path: int(path.parent.name.rpartition("-")[2]))
    best = read_json(last).get("best_model_checkpoint") or last.parent
    return folder / Path(best).name
