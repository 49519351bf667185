"""`lamina verify`: a written model's loss in the program that will serve it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, ModelError, either
from lamina.export.card import NO_REPLICATION, verified_line
from lamina.export.finished_run import FinishedRun, finished_run, recorded_loss
from lamina.export.folder import (
    MANIFEST_FILE,
    VERIFICATION_FILE,
    Verification,
    read_verification,
    write_manifest,
)
from lamina.measure.evaluate import ENGINE_TOLERANCES
from lamina.measure.results import RESULT_FILE, ROWS_FILE, trained_tokens
from lamina.measure.separate import in_engine
from lamina.runtime.console import announce
from lamina.runtime.files import write_json
from lamina.weights.source import made_of


def measured_in(
    engine: str,
    python: str | None,
    model: Path,
    dtype: str | None,
    rows: Sequence[Mapping[str, Any]],
    revision: str | None = None,
) -> Verification:
    """Have an engine compute the loss on rows of eval.jsonl; raises what `in_engine` does.

    `dtype` is the type of a GGUF file; the engine says it of any other model. `revision` is the
    hub's commit of an adapter's base.
    """
    wanted = [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
    request = {"model": str(model), "rows": wanted, "revision": revision}
    found = in_engine(engine, python, request)
    loss = math.fsum(found["nll"]) / sum(map(trained_tokens, rows))
    recorded, kind = recorded_loss(rows), dtype or found["dtype"]
    if kind not in ENGINE_TOLERANCES:
        known = either([*ENGINE_TOLERANCES])
        raise ModelError(f"{model}: weights of type {kind}, expected {known}")
    allowed = ENGINE_TOLERANCES[kind] * (1 + recorded)
    within = abs(loss - recorded) <= allowed
    return Verification(found["version"], kind, len(rows), loss, recorded, allowed, within)


def verify(given: str, engine: str, python: str | None, run: str | None) -> str:
    """Compare a model's loss in an engine with the recorded one; return a line that says so.

    `given` is a run, its final/ or an export; `run` the run that recorded an export's rows. The
    result is in verification.json and on the card. Raises ConfigError if there are no recorded
    rows, or the engine is missing or reads another form, and ModelError if an adapter's base is
    missing or has other weights, the engine refuses the model, or its loss is outside the
    tolerance.
    """
    model = finished_run(given)
    rows = model.rows or _rows_of(given, model, run)
    folder, files = model.final, sorted(model.final.glob("*.gguf"))
    export = model.manifest.get("export") or {}
    _refuse_other_forms(given, engine, model, is_gguf=bool(files))
    path, dtype = (files[0], export.get("dtype")) if files else (folder, None)
    revision = model.checked_base().revision if model.final_is_adapter else None
    earlier = read_verification(folder)
    announce(f"verifying {given} in {engine}")
    found = measured_in(engine, python, path, dtype, rows, revision)
    write_json(folder / VERIFICATION_FILE, {**earlier, engine: asdict(found)})
    with made_of(folder / MANIFEST_FILE):
        write_manifest(folder, model.manifest)
    line = verified_line((engine, asdict(found)))
    if not found.within:
        raise ModelError(f"{given}: {line} Serve another form, or report this with both versions")
    return line


def _refuse_other_forms(given: str, engine: str, model: FinishedRun, *, is_gguf: bool) -> None:
    export = f"write a form that it serves with lamina export {given} --output DIR --form"
    if is_gguf != (engine == "llama.cpp"):
        reads = "reads GGUF files" if engine == "llama.cpp" else "gets whole models, not GGUF files"
        form = "gguf" if engine == "llama.cpp" else "merged"
        raise ConfigError(f"--engine {engine} {reads}: {export} {form}")
    if engine == "vllm" and model.final_is_adapter:
        raise ConfigError(f"{NO_REPLICATION}: {export} merged")
    if model.in_4bit:
        raise ConfigError(
            f"--engine {engine}: a qlora adapter needs its 4-bit base: {export} merged"
        )


def _rows_of(given: str, model: FinishedRun, run: str | None) -> list[dict[str, Any]]:
    """Return the recorded rows of the run that a model came from."""
    above = (each for each in model.final.parents if (each / RESULT_FILE).is_file())
    place = run or next(map(str, above), None)
    if place is None:
        raise ConfigError(f"{given} has no {ROWS_FILE}: pass --run RUN, the run it came from")
    recorded = finished_run(place)
    made, of = (each.manifest["data_fingerprint"] for each in (model, recorded))
    if made != of or not recorded.rows:
        reason = f"has no losses in {ROWS_FILE}" if made == of else "is not the run it came from"
        raise ConfigError(f"{given}: {place} {reason}: pass --run RUN")
    return recorded.rows
