"""A model's evaluation in a folder: finished items stay there, so that a later start resumes."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lamina.depth.quantization import scale_bytes
from lamina.depth.surgery import layer_count
from lamina.errors import ModelError
from lamina.measure import serving_speed
from lamina.measure.evaluate import Evaluation, RowLosses
from lamina.measure.provenance import package_versions
from lamina.measure.tasks import scoring
from lamina.measure.tasks.figures import loss_metrics
from lamina.measure.tasks.files import (
    EVALUATION_FILE,
    ITEMS_FILE,
    EvaluatedModel,
    EvaluationResult,
    ItemResult,
    TaskResult,
    append_items,
    read_evaluation,
    read_items,
    write_evaluation,
)
from lamina.measure.tasks.items import ROWS, LibraryTask, Task, read_tasks
from lamina.runtime import distributed
from lamina.runtime.device import compute_device, device_name, memory_errors
from lamina.runtime.files import finite, write_rows
from lamina.runtime.sizes import weight_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROTOCOL = 3
"""Version of all tasks' figures: increment it when the same model would get others."""

UNFINISHED = ".unfinished-"
"""Begins the name of the folder of items that no evaluation.json sums up yet."""

COMPARED_VALUES = 64
"""Values of each weight that tell a model from others."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model's evaluation goes, and what it says of the model."""

    folder: str
    role: str
    name: str
    revision: str | None
    kept_layers: list[int] | None


def evaluate_into(
    place: Place,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    wanted: Evaluation,
    *,
    rows: Sequence[Mapping[str, Any]],
    losses: RowLosses,
    original: "Callable[[], PreTrainedModel] | None" = None,
) -> None:
    """Run a model in memory through the tasks, and measure its speed; all processes must call it.

    What an earlier start of the same evaluation found is not computed again. `losses` are those of
    tokenized `rows`, one more task. `original` loads the model to compare predictions with.
    """
    wanted = replace(wanted, agreement=wanted.agreement and original is not None)
    began, folder, is_first = time.monotonic(), Path(place.folder), distributed.is_first()
    serving_speed.refuse_too_long(model, wanted.speed)
    tokens = json.dumps([[row["input_ids"], row["labels"]] for row in rows])
    data = sha256(tokens.encode()).hexdigest()
    parts = [fingerprint(wanted), data, *_identity(model, tokenizer)]
    key = sha256("\n".join(parts).encode()).hexdigest()
    unfinished = folder / f"{UNFINISHED}{key[:16]}"
    if distributed.gathered(is_first and _is_finished(folder, key))[0]:
        return
    if is_first:
        _begin(folder, unfinished)
    with memory_errors("the evaluation", lambda: "lower evaluation.task_settings.batch_tokens"):
        results = _task_results(model, tokenizer, wanted, unfinished, original)
        speed = serving_speed.serving_speed(model, wanted.speed)
    if is_first:
        order = {name: number for number, name in enumerate(results)}
        found = {(order[item.task], item.id): item for item in read_items(unfinished)}
        items = [found[where] for where in sorted(found)]
        if rows:
            results, items = _with_rows(results, items, losses, data)
        write_rows(folder / ITEMS_FILE, [finite(asdict(item)) for item in items])
        result = EvaluationResult(
            role=place.role,
            model=_described(place, model),
            tasks=results,
            speed=speed,
            versions={name: found for name, found in package_versions().items() if found},
            device=device_name(),
            seconds=time.monotonic() - began,
            key=key,
        )
        write_evaluation(folder, result)
        shutil.rmtree(unfinished)
    distributed.wait_for_first()


def _task_results(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    wanted: Evaluation,
    unfinished: Path,
    original: "Callable[[], PreTrainedModel] | None",
) -> dict[str, TaskResult]:
    """Return the results in all tasks; items that the folder `unfinished` lacks are added to it."""
    tasks = read_tasks(wanted.tasks, wanted.task_settings)
    compares = wanted.agreement and any(isinstance(t, Task) and t.kind == "text" for t in tasks)
    return scoring.evaluate_tasks(
        model,
        tokenizer,
        tasks,
        wanted.task_settings,
        done=distributed.gathered(read_items(unfinished) if distributed.is_first() else [])[0],
        write=lambda items: append_items(unfinished, items),
        original=original().to(compute_device()) if original and compares else None,
    )


def _with_rows(
    results: dict[str, TaskResult], items: list[ItemResult], losses: RowLosses, data: str
) -> tuple[dict[str, TaskResult], list[ItemResult]]:
    """Return the results and items with those of the rows in front."""
    pairs = enumerate(zip(losses.nll, losses.tokens, strict=True))
    own = [ItemResult(task=ROWS, id=n, nll=nll, tokens=tokens) for n, (nll, tokens) in pairs]
    result = TaskResult(
        kind="text",
        items=len(own),
        items_hash=data,
        protocol={"scorer": "lamina", "rows": "evaluation rows"},
        metrics=loss_metrics(losses.nll, losses.tokens),
        seconds=0.0,
    )
    return {ROWS: result, **results}, [*own, *items]


def refuse_unfit(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", wanted: Evaluation
) -> None:
    """Raise what `evaluate_into` would if a setting or an item does not fit a model."""
    serving_speed.refuse_too_long(model, wanted.speed)
    tasks = read_tasks(wanted.tasks, wanted.task_settings)
    scoring.refuse_unfit(model, tokenizer, tasks, wanted.task_settings)


def fingerprint(wanted: Evaluation) -> str:
    """Identify what is measured, its items included, and where: the same model gets the same."""
    settings = asdict(wanted.task_settings)
    del settings["batch_tokens"]
    tasks = read_tasks(wanted.tasks, wanted.task_settings)
    library = [version("lm_eval") for task in tasks if isinstance(task, LibraryTask)]
    parts = [
        f"protocols {PROTOCOL} {serving_speed.PROTOCOL}",
        f"{settings} {asdict(wanted.speed)} {wanted.agreement} {device_name()}",
        *(f"{name} {version(name)}" for name in ("torch", "transformers")),
        *library,
        *(repr(replace(t, path=Path(t.name)) if isinstance(t, Task) else t) for t in tasks),
    ]
    return sha256("\n".join(parts).encode()).hexdigest()


def _identity(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Identify a loaded model by a few values of each weight, its settings and tokenizer."""
    digest = sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        if weight.device.type != "meta":
            few = weight.detach().reshape(-1)[:COMPARED_VALUES]
            digest.update(few.double().cpu().numpy().tobytes())
    settings = f"{model.config} {model.generation_config}"
    return [digest.hexdigest(), settings, tokenizer_digest(tokenizer)]


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Identify a tokenizer by the files that it writes: vocabulary, rules and chat template.

    It must be fresh: padding and truncation of a call are among them.
    """
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _is_finished(folder: Path, key: str) -> bool:
    if not (folder / EVALUATION_FILE).is_file():
        return False
    try:
        return read_evaluation(folder).key == key and (folder / ITEMS_FILE).is_file()
    except ModelError:
        return False


def _begin(folder: Path, unfinished: Path) -> None:
    """Remove what other models or settings left, which would contradict the new results."""
    unfinished.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{UNFINISHED}*"):
        if path != unfinished:
            shutil.rmtree(path)
    for name in (EVALUATION_FILE, ITEMS_FILE):
        (folder / name).unlink(missing_ok=True)


def _described(place: Place, model: "PreTrainedModel") -> EvaluatedModel:
    kept = place.kept_layers
    return EvaluatedModel(
        name=place.name,
        revision=place.revision,
        kept_layers=kept,
        layers=len(kept) if kept else layer_count(model.config.get_text_config().to_dict()),
        parameters=model.num_parameters(),
        bytes=weight_bytes(model.parameters()) + scale_bytes(model),
        dtype=str(model.dtype).removeprefix("torch."),
    )
