"""Any model that a person names, as `lamina evaluate` loads it: a run's final/, or a model."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from lamina.depth.plan import usable_source
from lamina.depth.surgery import layer_count
from lamina.errors import ConfigError, ModelError
from lamina.export.finished_run import finished_run
from lamina.export.folder import MANIFEST_FILE
from lamina.measure.protocol import ModelRef
from lamina.measure.results import MULTIRUN_FILE, RESULT_FILE
from lamina.weights.reading import DTYPES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Loadable:
    """A model to load, and the one it was made from."""

    ref: ModelRef
    kept_layers: list[int] | None
    """0-based indices of the original's layers that it has; None if it has no original."""
    original: ModelRef | None
    """None, too, if the original is no longer where it was."""


def loadable(name: str, dtype: str) -> Loadable:
    """Find a hub id, or the folder of a model or a run; no weight is read.

    `dtype` is torch's name of a type; auto takes that of the files, or that a run measured in.
    Raises ConfigError or ModelError if there is no such model, or it cannot be loaded.
    """
    folder = Path(name).expanduser()
    if any((folder / file).is_file() for file in (RESULT_FILE, MANIFEST_FILE)):
        return _written_by_lamina(name, dtype)
    if (folder / MULTIRUN_FILE).is_file():
        raise ConfigError(f"model_name={name}: a sweep: name one of its jobs, as {folder / '0'}")
    source = usable_source(name)
    stored = source.config.get("dtype") or source.config.get("torch_dtype")
    if dtype == "auto" and not stored:  # as in transformers, which then asks the files
        kinds = {each.dtype for each in source.all_stored().values() if each.is_floating_point}
        stored = next((name for name in DTYPES if DTYPES[name] in kinds), "float32")
    ref = ModelRef(
        name=source.name,
        revision=source.revision,
        kept_layers=range(layer_count(source.config)),
        dtype=str(stored) if dtype == "auto" else dtype,
        in_4bit=False,
    )
    return Loadable(ref=ref, kept_layers=None, original=None)


def _written_by_lamina(name: str, dtype: str) -> Loadable:
    run = finished_run(name)
    if [*run.final.glob("*.gguf")]:
        raise ConfigError(f"model_name={name}: a GGUF is for llama.cpp: name the run it came from")
    base, manifest = None, run.manifest
    try:
        if manifest["source_model"]:
            base = run.checked_base()
    except ModelError as error:
        if run.final_is_adapter:
            raise
        logger.info("no agreement with the original is measured: %s", error)
    used = (run.dtype or "float32") if dtype == "auto" else dtype
    ref = ModelRef(
        name=str(run.final),
        revision=manifest["revision"],
        kept_layers=None,
        dtype=used,
        in_4bit=run.in_4bit,
    )
    original = None
    if base is not None:
        every = range(manifest["num_layers"])
        original = replace(ref, name=base.name, revision=base.revision, kept_layers=every)
    return Loadable(ref=ref, kept_layers=manifest["kept_layers"], original=original)
