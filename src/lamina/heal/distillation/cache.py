"""The teacher's likeliest tokens, written once: a training that reads them needs no teacher.

Each file of a cache holds some rows of the training data:

    keys       (rows, 16)           which row it is, by its token ids and what is trained
    counts     (rows,)              its trained tokens
    ids        (tokens, top_k)      the tokens likeliest to follow, at each trained token
    log_probs  (tokens, top_k + 1)  their log-probabilities, and that of all other tokens together
    sums       (rows,)              CRC-32 of each row's ids and log_probs, checked when it is read

A row is found by its content, so packing, batches, processes and resuming make no difference.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lamina.data.tokenization import IGNORED
from lamina.depth.loading import load_model
from lamina.depth.plan import Plan
from lamina.errors import ConfigError, ModelError
from lamina.heal.distillation.divergence import (
    CHUNK,
    MINUS_INFINITY,
    Head,
    Teacher,
    log_softmax,
    trained,
)
from lamina.heal.distillation.settings import INDEX
from lamina.heal.distillation.teacher import states_at, teacher_head
from lamina.measure.evaluate import padded, padded_batches
from lamina.runtime.cache import cached, read_entry
from lamina.runtime.console import Stage, stage
from lamina.runtime.device import compute_device, release_memory
from lamina.runtime.files import disk_errors, replacing
from lamina.runtime.sizes import free_disk_bytes
from lamina.units import format_bytes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PROTOCOL = 3
"""Version of the files: increment it when the same teacher would get others."""

TOKENS_PER_FILE = 2**16
"""Trained tokens from which on a file is full; a killed pass loses one file."""

BATCH_TOKENS = 8192
"""Most tokens in one forward pass."""

FILE, NOTE = "teacher-{}.safetensors", "lamina"
FILES = FILE.format(5 * "[0-9]")

Tensors = dict[str, torch.Tensor]
WholeFiles = dict[int, tuple[int, float, float]]
"""By a file's number: its trained tokens, their captured mass and the teacher's seconds."""


@dataclass(frozen=True, kw_only=True)
class TeacherCache:
    """A folder of a teacher's predictions for some rows."""

    folder: Path
    key: str
    """The key that sets the folder: trainer.cache, or LAMINA_CACHE if a hash names it."""
    bound: dict[str, Any]
    """What the predictions depend on, by what it is called in a message."""
    top_k: int
    temperature: float
    min_mass: float
    half: torch.dtype | None
    """Type of autocast, if any."""

    def missing(self, train: "Dataset") -> dict[int, list[int]]:
        """Return the 0-based rows of each file that is still to be written.

        Raises ConfigError if the folder holds another cache or a damaged file, or the disk lacks
        room.
        """
        known, rows, counts = self.whole_files(), dict[int, list[int]](), dict[int, int]()
        for number, row, count in _numbered(train):
            if number not in known:
                rows.setdefault(number, []).append(row)
                counts[number] = counts.get(number, 0) + count
        needed = sum(counts.values()) * (4 * self.top_k + 2 * (self.top_k + 1))
        if needed > (free := free_disk_bytes(self.folder)):
            raise ConfigError(
                f"trainer.cache: {self.folder} needs {format_bytes(needed)} for the teacher's "
                f"{self.top_k} likeliest tokens, {format_bytes(free)} are free: make room, or "
                "lower trainer.top_k"
            )
        return rows

    def complete(
        self, train: "Dataset", plan: Plan, tokenizer: "PreTrainedTokenizerBase", dtype: torch.dtype
    ) -> None:
        """Let the original model write what is missing; other processes that need it wait.

        Raises ConfigError as `missing` does, and if the likeliest tokens hold too little mass.
        """
        with disk_errors(self.folder, self.key):
            if self._is_complete(read_entry(self.folder / INDEX)):
                return  # the folder may be read-only
        with disk_errors(self.folder, self.key), cached(self.folder, INDEX, self.key) as entry:
            if self._is_complete(entry.content):
                return
            known, began = self.whole_files(), perf_counter()
            missing = self.missing(train)
            if missing:
                assert plan.source is not None
                logger.info("%s teaches: %s", plan.source.name, self.folder)
                every, device = range(plan.num_layers), compute_device()
                model = load_model(plan.source, every, dtype=dtype, device=device).eval()
                model.config.get_text_config().output_router_logits = False
                head = teacher_head(model, tokenizer, train)
                with stage("asking the teacher", sum(map(len, missing.values())), "rows") as shown:
                    for number, indices in missing.items():
                        rows = list(train.select(indices))
                        found = self._predicted(model, head, rows, shown)
                        until = perf_counter()
                        known[number] = self._write(number, found, until - began)
                        began = until
                        self._refuse_low(known)
                del model, head
                release_memory()
            entry.content = {"files": len(known)}

    def _is_complete(self, index: dict[str, Any] | None) -> bool:
        known = self.whole_files()
        self._refuse_low(known)
        return index is not None and len(known) == index["files"]

    def whole_files(self) -> WholeFiles:
        """Return what the whole files say of themselves; raises ConfigError for another cache's."""
        known = {}
        for path in sorted(self.folder.glob(FILES)):
            try:
                with safe_open(path, "pt") as file:
                    note = json.loads(file.metadata()[NOTE])
                theirs, mass = dict(note["bound"]), float(note["mass"])
                found = (int(note["tokens"]), mass, float(note["seconds"]))
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                if self.key != "trainer.cache":
                    continue  # it is written again
                raise ConfigError(
                    f"trainer.cache={self.folder}: {path.name} is cut off or damaged: remove it, "
                    "and the teacher writes it again"
                ) from error
            for name, ours in self.bound.items():
                if theirs.get(name) != ours:
                    raise ConfigError(
                        f"trainer.cache={self.folder} was written with {name} {theirs.get(name)}, "
                        f"this run has {ours}: use another folder, or trainer.cache=auto"
                    )
            known[int(path.stem.rpartition("-")[2])] = found
        return known

    def _refuse_low(self, known: WholeFiles) -> None:
        """Refuse likeliest tokens that hold too little of the teacher's mass."""
        mass = _mean_mass(known)
        if mass < self.min_mass:
            raise ConfigError(
                f"trainer.top_k={self.top_k}: these tokens hold {mass:.1%} of the teacher's "
                f"probability, less than trainer.min_mass={self.min_mass}: raise trainer.top_k, or "
                "set trainer.cache=none"
            )

    def _write(self, number: int, tensors: Tensors, seconds: float) -> tuple[int, float, float]:
        tokens = len(tensors["ids"])
        mass = tokens - float(tensors["log_probs"][:, -1].double().exp().sum())
        note = {"bound": self.bound, "tokens": tokens, "mass": mass, "seconds": seconds}
        with replacing(self.folder / FILE.format(f"{number:05}")) as path:
            save_file(tensors, path, {NOTE: json.dumps(note)})
        return tokens, mass, seconds

    def _predicted(
        self, model: "PreTrainedModel", head: Head, rows: Sequence[dict[str, Any]], shown: Stage
    ) -> Tensors:
        """Return a file's content."""
        found: list[Any] = [None] * len(rows)
        counts = [len(trained(torch.tensor([row["labels"]]))) for row in rows]
        head = head.cast(self.half or model.dtype)
        for batch in padded_batches([len(row["input_ids"]) for row in rows], BATCH_TOKENS):
            ids, labels, mask = padded([rows[index] for index in batch], model.device)
            inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
            with torch.no_grad():
                with self._autocast(model.device.type):
                    (states,) = states_at(model, inputs, trained(labels))
                pieces = [
                    likeliest(head.logits(piece), self.top_k, self.temperature)
                    for piece in states.to(head.weight.dtype).split(CHUNK)
                ]
            joined = [torch.cat(each).cpu() for each in zip(*pieces, strict=True)]
            split = (each.split([counts[index] for index in batch]) for each in joined)
            for index, *parts in zip(batch, *split, strict=True):
                found[index] = parts
            shown.advance(len(batch))
        ids, log_probs = (torch.cat(each) for each in zip(*found, strict=True))
        keys = [np.frombuffer(_key(*_arrays(row)), np.uint8) for row in rows]
        ids, log_probs = ids.int(), log_probs.half()
        split_rows = zip(ids.split(counts), log_probs.split(counts), strict=True)
        return {
            "keys": torch.from_numpy(np.stack(keys)),
            "counts": torch.tensor(counts, dtype=torch.int32),
            "ids": ids,
            "log_probs": log_probs,
            "sums": torch.tensor([_sum(*each) for each in split_rows]),
        }

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, dtype=self.half) if self.half else nullcontext()


class CachedTeacher:
    """Reads a complete cache."""

    def __init__(self, cache: TeacherCache) -> None:
        """Open the files, which stay on disk."""
        self._folder = cache.folder
        self._places: dict[bytes, tuple[Path, Any, int, int, int]] = {}
        known = cache.whole_files()
        self.mass = _mean_mass(known)
        """Mean probability of the likeliest tokens."""
        self.seconds = sum(seconds for *_, seconds in known.values())
        """Seconds that the teacher took to write the cache, loading included."""
        for path in sorted(cache.folder.glob(FILES)):
            file: Any = safe_open(path, "pt")
            stops = np.cumsum([0, *file.get_tensor("counts").tolist()]).tolist()
            keys, sums = file.get_tensor("keys").numpy(), file.get_tensor("sums").tolist()
            for key, (start, stop), total in zip(keys, pairwise(stops), sums, strict=True):
                self._places[key.tobytes()] = (path, file, start, stop, total)

    def taught(
        self,
        *,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor | None = None,
    ) -> Teacher:
        """Return the teacher of a batch's trained tokens."""
        parts = [self._read(key) for key in _documents(input_ids, labels, position_ids)]
        if not parts:
            return _nothing
        ids, log_probs = (torch.cat(each) for each in zip(*parts, strict=True))

        def teacher(start: int, stop: int, log_q: torch.Tensor) -> torch.Tensor:
            device = log_q.device
            return spread(ids[start:stop].to(device), log_probs[start:stop].to(device), log_q)

        return teacher

    def _read(self, key: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        if key not in self._places:
            raise _damaged(self._folder)
        path, file, start, stop, total = self._places[key]
        ids, log_probs = (file.get_slice(name)[start:stop] for name in ("ids", "log_probs"))
        if _sum(ids, log_probs) != total:
            raise _damaged(path)
        return ids, log_probs.float()  # autocast in bfloat16 joins none in float16


def likeliest(
    logits: torch.Tensor, top_k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the likeliest tokens, (tokens, top_k), and their log-probabilities.

    The last of the log-probabilities, (tokens, top_k + 1), is that of all other tokens together.
    """
    log_p = log_softmax(logits, temperature)
    found, ids = log_p.topk(min(top_k, log_p.shape[1]), dim=1)
    others = log_p.scatter_(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return ids, torch.cat([found, others], dim=1).clamp_(min=MINUS_INFINITY)


def spread(ids: torch.Tensor, log_probs: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of all tokens, (tokens, size), from those of the likeliest.

    The others' mass is spread among them as the student does. So the divergence and its gradient
    are those of the likeliest tokens and one more that stands for the others, which a student that
    equals the teacher minimizes; renormalized, they would teach it that no other token is possible.
    """
    ids = ids.long()
    known = log_probs.log_softmax(1)  # the sum was rounded
    others = log_q.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)
    return (log_q + (known[:, -1:] - others)).scatter_(1, ids, known[:, :-1])


def _damaged(path: Path) -> ModelError:
    return ModelError(f"{path} is damaged: remove it, and the teacher writes it again")


def _sum(ids: torch.Tensor, log_probs: torch.Tensor) -> int:
    return crc32(log_probs.numpy().tobytes(), crc32(ids.numpy().tobytes()))


def _nothing(start: int, stop: int, log_q: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a batch without trained tokens has no chunk")


def _mean_mass(known: WholeFiles) -> float:
    tokens = sum(count for count, *_ in known.values())
    return sum(mass for _, mass, _ in known.values()) / tokens if tokens else 1.0


def _numbered(train: "Dataset") -> Iterator[tuple[int, int, int]]:
    """Yield the file, the 0-based row and the trained tokens of each different row."""
    seen, number, tokens = set[bytes](), 0, 0
    for index, row in enumerate(train.select_columns(["input_ids", "labels"])):
        ids, labels = _arrays(row)
        count = int((labels[1:] != IGNORED).sum())
        if not count or (key := _key(ids, labels)) in seen:
            continue
        if tokens >= TOKENS_PER_FILE:
            number, tokens = number + 1, 0
        seen.add(key)
        tokens += count
        yield number, index, count


def _documents(
    input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor | None
) -> Iterator[bytes]:
    """Yield the key of each document with a trained token; a pack has several in a row."""
    rows = [each.numpy(force=True) for each in (input_ids, labels)]
    places = None if position_ids is None else position_ids.numpy(force=True)
    for number, (ids, marks) in enumerate(zip(*rows, strict=True)):
        starts = [0] if places is None else np.flatnonzero(places[number] == 0).tolist()
        for start, stop in pairwise([*starts, len(ids)]):
            if (marks[start + 1 : stop] != IGNORED).any():
                yield _key(ids[start:stop], marks[start:stop])


def _arrays(row: dict[str, Any]) -> tuple[Any, Any]:
    return np.asarray(row["input_ids"]), np.asarray(row["labels"])


def _key(ids: Any, labels: Any) -> bytes:
    """Identify a row up to its last trained token, on which no prediction depends, nor on later."""
    is_trained = labels[1:] != IGNORED
    end = 1 + int(np.flatnonzero(is_trained)[-1])
    content = ids[: end + 1].astype("<i4").tobytes() + is_trained[:end].tobytes()
    return blake2b(content, digest_size=16).digest()
