"""How a run measures all its models: `ModelRef` names one in any form, `figures` measures it."""

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina import errors
from lamina.depth import loading
from lamina.depth.quantization import quantization
from lamina.errors import ModelError, TrainingError
from lamina.measure import evaluate
from lamina.measure.evaluate import Evaluation, RowLosses
from lamina.measure.results import ROWS_FILE, Record
from lamina.measure.resumable import (
    Place,
    evaluate_into,
    fingerprint,
    refuse_unfit,
    tokenizer_digest,
)
from lamina.measure.separate import SeparateProcessError, ask
from lamina.measure.tasks.files import (
    EVALUATION_FILE,
    EVALUATION_FOLDER,
    FINAL,
    ITEMS_FILE,
    ORIGINAL,
    REDUCED,
    read_evaluation,
)
from lamina.runtime import distributed
from lamina.runtime.cache import Entry, cached, folder_of
from lamina.runtime.console import stage
from lamina.runtime.device import compute_device, device_name, memory_errors, release_memory
from lamina.runtime.files import write_rows, write_text
from lamina.weights.reading import identity
from lamina.weights.source import ADAPTER_FILE, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FILES = (EVALUATION_FILE, ITEMS_FILE)


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model in any form, as plain transformers loads it."""

    name: str
    """Hub id or folder."""
    revision: str | None
    """Commit on the hub; for an adapter, that of its base."""
    kept_layers: Sequence[int] | None
    """0-based indices of the layers to load, ascending; None loads a model or adapter as saved."""
    dtype: str
    """torch's name for the type of the weights, or of an adapter's base."""
    in_4bit: bool
    """Whether the linear layers (of an adapter's base) are quantized to four bits."""

    @property
    def advice(self) -> str:
        """What to do if the written model is not the trained one."""
        if (Path(self.name) / ADAPTER_FILE).is_file():
            return (
                "transformers loads the adapter as another model than was trained: set "
                "export.form=merged, and continue with the same hydra.run.dir"
            )
        return "transformers loads another model than was trained: please report this"

    def load(self) -> "PreTrainedModel":
        """Load the model as a user would.

        An adapter trained on a four-bit base gets a four-bit base: it learned to correct that one,
        and memory may not suffice for more bits. Raises ModelError if a tensor is missing,
        unexpected or of another shape.
        """
        dtype = loading.torch_dtype(self.dtype, automatic=self.dtype)
        if self.kept_layers is not None:
            return loading.load_model(
                resolve(self.name, self.revision),
                self.kept_layers,
                dtype=dtype,
                device=compute_device(),
                in_4bit=self.in_4bit,
            )
        from transformers import AutoModelForCausalLM

        # transformers 5.17 ignores the base's revision in adapter_config.json: without this, an
        # adapter gets another base once the one on the hub has changed.
        settings: dict[str, Any] = {"dtype": dtype, "revision": self.revision or "main"}
        if self.in_4bit:
            settings["quantization_config"] = quantization(dtype)
        with stage("reading weights"):
            model, info = AutoModelForCausalLM.from_pretrained(
                self.name, output_loading_info=True, trust_remote_code=False, **settings
            )
        loading.refuse_misfits(self.name, info, self.advice)
        return model

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Load the tokenizer from the same place."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(
            self.name, revision=self.revision or "main", trust_remote_code=False
        )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The data and settings with which every model of a run is measured."""

    rows: Sequence[dict[str, Any]]
    """Tokenized evaluation rows; without any, no loss is computed."""
    prompts: Sequence[tuple[str, Sequence[int], str]]
    """Each as readable text, as token ids up to the answer, and the expected answer."""
    max_tokens: int
    """Most tokens in one forward pass."""
    max_new_tokens: int
    """Most tokens in one answer."""
    isolated: bool
    """Whether to load models in a separate process because a backend patched the model classes of
    this one: other users of the model would not get the same numbers."""
    wanted: Evaluation
    """The tasks, and the sizes at which speed is measured."""
    original: ModelRef | None
    """The untouched model; None for one from scratch."""


@dataclass(frozen=True)
class Figures:
    """A model's measured losses and answers."""

    losses: RowLosses
    answers: Sequence[str]
    """One per prompt; empty texts in all processes but the first."""


@dataclass(frozen=True)
class Expected:
    """The loss on the rows that a model must have, or nothing else of it is measured."""

    loss: float
    tolerance: float
    """Largest difference, as a share of 1 + the loss."""

    def refuse_other(self, ref: ModelRef, loss: float) -> None:
        """Raise ModelError if a written model has another loss."""
        allowed = self.tolerance * (1 + self.loss)
        if not abs(loss - self.loss) <= allowed:
            raise ModelError(
                f"{ref.name}: loaded again, its eval_loss is {loss:.6g}, but the best checkpoint "
                f"had {self.loss:.6g}, and rounding explains a difference of {allowed:.2g} at "
                f"most: {ref.advice}"
            )


def figures(
    ref: ModelRef, protocol: Protocol, place: Place | None = None, expected: Expected | None = None
) -> Figures:
    """Load a model as plain transformers does, and measure it; tasks' results go to `place`.

    Raises ModelError if its tensors do not fit or its loss is not the expected one, and
    TrainingError if the separate process of an isolated protocol failed.
    """
    if not protocol.rows and not protocol.prompts and place is None:
        return Figures(RowLosses((), ()), [])
    if protocol.isolated:
        return _isolated_figures(ref, protocol, place, expected)
    model = ref.load()
    check = partial(expected.refuse_other, ref) if expected else None
    found = loaded_figures(model, ref.load_tokenizer(), protocol, place, check)
    del model
    release_memory()
    return found


def loaded_figures(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    protocol: Protocol,
    place: Place | None = None,
    check: Callable[[float], None] | None = None,
) -> Figures:
    """Measure a model in memory; processes share the work, but the first answers the prompts.

    `check` gets its loss before tasks take their time.
    """
    model, losses = model.to(compute_device()), RowLosses((), ())
    if protocol.rows:
        losses = evaluate.row_losses(model, protocol.rows, max_tokens=protocol.max_tokens)
        if check:
            check(losses.mean())
    if place is not None:
        original = protocol.original.load if protocol.original else None
        rows, wanted = protocol.rows, protocol.wanted
        evaluate_into(place, model, tokenizer, wanted, rows=rows, losses=losses, original=original)
    prompts, answers = [ids for _, ids, _ in protocol.prompts], [""] * len(protocol.prompts)
    if prompts and distributed.is_first():
        answers = evaluate.answers(model, tokenizer, prompts, protocol.max_new_tokens)
    distributed.wait_for_first()
    return Figures(losses, answers)


def _isolated_figures(
    ref: ModelRef, protocol: Protocol, place: Place | None, expected: Expected | None
) -> Figures:
    here = asdict(replace(protocol, isolated=False))
    request: dict[str, Any] = {"ref": asdict(ref), "protocol": here}
    request |= {"place": place and asdict(place), "expected": expected and asdict(expected)}
    try:
        with stage("evaluating in a separate process"):
            found = ask([sys.executable, "-m", "lamina.measure.isolated"], request)
    except SeparateProcessError as error:
        raise TrainingError(f"{ref.name} could not be measured: {error}; see train.log") from error
    if "error" in found:
        raise getattr(errors, found["kind"], MemoryError)(found["error"])
    losses = RowLosses(tuple(found["losses"]["nll"]), tuple(found["losses"]["tokens"]))
    return Figures(losses, found["answers"])


def baseline(record: Record, protocol: Protocol, untouched: ModelRef) -> None:
    """Measure the loss of the untouched model, which is cached for the other jobs of a sweep.

    Raises TrainingError if the model does not fit into memory, or the separate process failed.
    """
    parts = [
        *identity(resolve(untouched.name, untouched.revision)),
        record.content["eval_fingerprint"],
        f"{untouched.dtype} {protocol.max_tokens} {device_name()}",
        *([f"4 bits, bitsandbytes {version('bitsandbytes')}"] if untouched.in_4bit else []),
        *(f"{name} {version(name)}" for name in ("torch", "transformers")),
        f"protocol {evaluate.PROTOCOL}",
    ]
    folder, first = folder_of("baselines", parts), distributed.is_first()
    with cached(folder, "baseline.json") if first else nullcontext(Entry(folder, None)) as entry:
        distributed.wait_for_first()
        loss = distributed.gathered(entry.content and entry.content["loss"])[0]
        if loss is None:
            logger.info("evaluating %s, untouched", untouched.name)
            with memory_errors("the untouched model", lambda: "set evaluation.baseline=false"):
                loss = figures(untouched, replace(protocol, prompts=())).losses.mean()
            entry.content = {"loss": loss}
    record.measured(baseline_eval_loss=loss)
    record.write()


def original(record: Record, protocol: Protocol) -> None:
    """Run the untouched model through the tasks, once for all jobs of a sweep.

    Raises what `baseline` does. Another job that needs the same figures waits for them.
    """
    ref, wanted = protocol.original, replace(protocol.wanted, agreement=False)
    place = _place(record, protocol, ORIGINAL)
    if ref is None or place is None:
        return
    source = resolve(ref.name, ref.revision)
    parts = [
        *identity(source),
        f"{loading.generation_config(source)}",
        tokenizer_digest(loading.load_tokenizer(source)),
        record.content["eval_fingerprint"],
        f"{ref.dtype} {ref.in_4bit} {protocol.max_tokens}",
        fingerprint(wanted),
    ]
    cache, first = folder_of("evaluations", parts), distributed.is_first()
    with cached(cache, "evaluation.cached") if first else nullcontext(Entry(cache, None)) as entry:
        distributed.wait_for_first()
        if not distributed.gathered(entry.content is not None)[0]:
            logger.info("evaluating the tasks of %s, untouched", ref.name)
            alone = replace(protocol, prompts=(), wanted=wanted, original=None)
            with memory_errors("the untouched model", lambda: "set evaluation.baseline=false"):
                figures(ref, alone, replace(place, folder=str(cache)))
            if first:
                entry.content = {name: (cache / name).read_text() for name in FILES}
                for name in FILES:
                    (cache / name).unlink()
        if first:
            assert entry.content is not None
            for name in FILES:
                write_text(Path(place.folder) / name, entry.content[name])
    _record_tasks(record, place)


def reduced(
    record: Record,
    protocol: Protocol,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    ref: ModelRef | None,
    metrics: Sequence[str],
) -> None:
    """Measure the reduced model before healing, and record its loss as each of `metrics`.

    If the model in memory, still without an adapter, differs from what others load, `ref` is loaded
    and measured instead. Without metrics no loss is computed.
    """
    parameters, place = model.num_parameters(), _place(record, protocol, REDUCED)
    if place is None:  # the tasks come after the training
        refuse_unfit(model, tokenizer, protocol.wanted)
    protocol = protocol if metrics else replace(protocol, rows=())
    if ref:
        found = figures(ref, protocol, place)
    else:
        found = loaded_figures(model, tokenizer, protocol, place)
    if metrics:
        record.measured(**dict.fromkeys(metrics, found.losses.mean()))
    answered = zip(protocol.prompts, found.answers, strict=True)
    samples = [
        {"prompt": text, "expected": expected, "before": said, "after": None}
        for (text, _, expected), said in answered
    ]
    record.update(num_parameters=parameters, samples=samples)
    _record_tasks(record, place)


def final(
    record: Record, protocol: Protocol, ref: ModelRef, tolerance: float | None = None
) -> None:
    """Measure final/, loaded as a user would, and add its loss on each row to eval.jsonl.

    `tolerance` is the largest difference from the best checkpoint's eval_loss, as a share of 1 +
    the loss; None allows any. Raises ModelError if its tensors do not fit or its loss is not the
    best checkpoint's, and TrainingError if the separate process of an isolated protocol failed.
    """
    logger.info("evaluating %s", ref.name)
    place, expected = _place(record, protocol, FINAL), None
    if tolerance is not None:
        if protocol.isolated:  # the backend's kernels round in their own way
            tolerance = max(tolerance, evaluate.TOLERANCES["rounded"])
        expected = Expected(record.content["metrics"]["eval_loss"], tolerance)
    try:
        found = figures(ref, protocol, place, expected)
    except ModelError:
        record.update(final=None)
        raise
    loss = found.losses.mean()
    sample_loss = found.losses.mean(evaluate.SAMPLE_ROWS)
    perplexity = evaluate.perplexity(loss)
    record.measured(eval_loss=loss, perplexity=perplexity, eval_sample_loss=sample_loss)
    if distributed.is_first():
        pairs = zip(protocol.rows, found.losses.row_means(), strict=True)
        rows = [{**row, "loss": mean} for row, mean in islice(pairs, evaluate.SAMPLE_ROWS)]
        write_rows(record.path.with_name(ROWS_FILE), rows)
    for sample, text in zip(record.content["samples"], found.answers, strict=True):
        sample["after"] = text
    _record_tasks(record, place)


def _place(record: Record, protocol: Protocol, role: str) -> Place | None:
    """Return where a model's evaluation goes; None if the model is not to be evaluated."""
    wanted, content = protocol.wanted, record.content
    if not wanted.goes_further:
        return None
    kept, base = content["kept_layers"], protocol.original
    is_wanted = {
        ORIGINAL: wanted.baseline and base is not None,
        REDUCED: wanted.reduced and len(kept) < content["num_layers"],
        FINAL: wanted.reload,
    }
    if not is_wanted[role]:
        return None
    return Place(
        folder=str(record.path.parent / EVALUATION_FOLDER / role),
        role=role,
        name=content["final"] if role == FINAL or base is None else base.name,
        revision=base.revision if base and role != FINAL else None,
        kept_layers=[*range(content["num_layers"])] if role == ORIGINAL else kept,
    )


def _record_tasks(record: Record, place: Place | None) -> None:
    """Record each task's figures."""
    if place is not None and distributed.is_first():
        found = read_evaluation(Path(place.folder)).figures
        record.content["evaluation"][place.role] = found
        record.write()
