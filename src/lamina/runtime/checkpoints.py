"""Checkpoints of a training on disk: which are whole, the last one and the best one."""

import random
import re
import zipfile
from collections.abc import Mapping
from math import inf
from operator import index
from pathlib import Path
from typing import Any

from lamina.errors import ModelError
from lamina.runtime.files import discard
from lamina.weights.header import read_header
from lamina.weights.source import read_json, refuse_mistyped

STEP = re.compile(r"checkpoint-(\d+)$")
"""Name of a checkpoint, with its optimizer step."""

STATE = "trainer_state.json"
ADAPTER_PARTS = ("adapter_config.json", "adapter_model.safetensors")
MODEL_PARTS = ("config.json", "model.safetensors|model.safetensors.index.json")
OPTIMIZER = "optimizer.pt|optimizer.bin"
"""Where there are alternatives, sharded weights and sharded training write the second."""

NOT_BESIDE_AN_ADAPTER = ("model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin")
"""Weights that transformers would load in its place."""

FIELDS: dict[str, dict[str, Any]] = {
    STATE: {
        **dict.fromkeys(("global_step", "max_steps", "num_input_tokens_seen"), int),
        "epoch": int | float,
        "log_history": list,
        "stateful_callbacks": dict,
        "best_metric": int | float | None,
        "best_global_step": int | None,
        "best_model_checkpoint": str | None,
    },
    "adapter_config.json": {"peft_type": str, "r": int},
    "config.json": {"model_type": str},
}
"""Fields of a part that are read, and their types."""

LOGGED: dict[str, Any] = {
    "step": int,
    **dict.fromkeys(("loss", "eval_loss", "learning_rate"), int | float | None),
}
"""Those of trainer_state.json's log_history that result.json's history keeps."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint-{step}/ with the highest step whose trainer_state.json is whole."""
    return next((path for path in checkpoints(folder) if saved_step(path) is not None), None)


def checkpoints(folder: Path) -> list[Path]:
    """Return a folder's checkpoints, whole or not, the highest step first."""
    found = [path for path in folder.glob("checkpoint-*") if STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def saved_step(checkpoint: Path) -> int | None:
    """Return a checkpoint's optimizer step; None if its trainer_state.json is not whole."""
    try:
        return int(_content(checkpoint / STATE)["global_step"])
    except ModelError:
        return None


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beyond `limit`, each at once; the last and `best` stay."""
    found = checkpoints(folder)
    extra = [path for path in reversed(found[1:]) if str(path) != best]
    for path in extra[: max(len(found) - limit, 0)] if limit else ():
        discard(path)


def best_checkpoint(checkpoint: Path) -> Path:
    """Return the best checkpoint so far according to a checkpoint: itself, or one beside it."""
    # The folder may have moved since the trainer wrote the path.
    best = _content(checkpoint / STATE)["best_model_checkpoint"]
    return checkpoint.with_name(Path(best).name) if best else checkpoint


def damage(checkpoint: Path, recorded: Mapping[str, Any], *, resumable: bool = True) -> str | None:
    """Return which part of a checkpoint is missing or damaged; None if the checkpoint is whole.

    `recorded` is the result.json of the run that wrote it, with the settings at the top level: it
    says which parts there must be. What only resuming needs counts only if `resumable`.
    """
    has_adapter = recorded["adapter"] not in ("full", "partial")
    parts = [STATE, *(ADAPTER_PARTS if has_adapter else MODEL_PARTS)]
    if resumable:
        processes = recorded.get("distributed") or 1
        ranks = ("",) if processes == 1 else (f"_{rank}" for rank in range(processes))
        parts += [OPTIMIZER, "scheduler.pt", *(f"rng_state{rank}.pth" for rank in ranks)]
    for part in parts:
        named = [checkpoint / name for name in part.split("|")]
        path = next((path for path in named if path.is_file()), None)
        if path is None:
            return f"{named[0]} is missing"
        try:
            _read(path)
        except ModelError as error:
            return str(error)
        except OSError as error:
            return f"{path} cannot be read: {error.strerror or error}"
        except ValueError as error:
            return f"{path} is damaged: {error}"
    for path in checkpoint.iterdir() if has_adapter else ():
        if path.is_dir() or path.name in NOT_BESIDE_AN_ADAPTER:
            return f"{path} does not belong beside an adapter"
    return None


def _read(path: Path) -> None:
    """Read a part as resuming does; raises ValueError, or ModelError, if that would fail."""
    if path.suffix == ".safetensors":
        read_header(path)
    elif path.suffix == ".json":
        shards = _content(path).get("weight_map")
        for shard in {*shards.values()} if isinstance(shards, dict) else ():
            read_header(path.with_name(str(shard)))
    else:
        _read_torch(path)


def _content(path: Path) -> dict[str, Any]:
    """Read a part in JSON; raises ModelError if it is not what a training wrote."""
    content = read_json(path, FIELDS.get(path.name), largest=inf)  # an entry per logged step
    if path.name == STATE:
        for entry in content["log_history"]:
            refuse_mistyped(f"{path}: log_history", entry, LOGGED)
        if path.parent.name != f"checkpoint-{content['global_step']}":
            raise ModelError(f"{path}: global_step is {content['global_step']}")
    return content


def _read_torch(path: Path) -> None:
    """Check what torch.save wrote: its checksums, which torch ignores, and what it holds."""
    import numpy
    import torch

    # What transformers allows in a random state; nothing else is unpickled.
    arrays = [numpy.zeros(0).__reduce__()[0], numpy.ndarray, numpy.dtype]
    allowed = torch.serialization.safe_globals([*arrays, type(numpy.dtype(numpy.uint32))])
    try:
        with zipfile.ZipFile(path) as file, allowed:
            if file.testzip() is not None:
                raise ValueError("a wrong checksum")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if path.stem == "scheduler":
            index(content["last_epoch"])
        elif path.suffix == ".pth":
            random.Random().setstate(content["python"])
            numpy.random.RandomState().set_state(content["numpy"])
            torch.Generator().set_state(content["cpu"])
        else:
            named = {name for group in content["param_groups"] for name in group["params"]}
            if not content["state"].keys() <= named:
                raise ValueError("the state of unknown weights")
    except OSError:
        raise
    # Which error a strange file causes depends on what is strange about it.
    except Exception as error:
        raise ValueError("not what a training saved") from error
