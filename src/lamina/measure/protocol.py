"""How a run measures all its models: `ModelRef` names one in any form, `figures` measures it."""

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina import errors
from lamina.depth import loading
from lamina.depth.quantization import quantization
from lamina.errors import ModelError, TrainingError
from lamina.measure import evaluate
from lamina.measure.evaluate import RowLosses
from lamina.measure.results import ROWS_FILE, Record
from lamina.measure.separate import SeparateProcessError, ask
from lamina.runtime import distributed
from lamina.runtime.cache import Entry, cached, folder_of
from lamina.runtime.console import stage
from lamina.runtime.device import compute_device, device_name, memory_errors, release_memory
from lamina.runtime.files import write_rows
from lamina.weights.reading import identity
from lamina.weights.source import ADAPTER_FILE, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Figures:
    """A model's measured losses and answers."""

    losses: RowLosses
    answers: Sequence[str]
    """One per prompt; empty texts in all processes but the first."""


def figures(ref: ModelRef, protocol: Protocol) -> Figures:
    """Load a model as plain transformers does, and measure it.

    Raises ModelError if its tensors do not fit, and TrainingError if the separate process of an
    isolated protocol failed.
    """
    if not protocol.rows and not protocol.prompts:
        return Figures(RowLosses((), ()), [])
    if protocol.isolated:
        return _isolated_figures(ref, protocol)
    model = ref.load()
    found = loaded_figures(model, ref.load_tokenizer(), protocol)
    del model
    release_memory()
    return found


def loaded_figures(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", protocol: Protocol
) -> Figures:
    """Measure a model in memory; processes share the losses, the first answers the prompts."""
    model, losses = model.to(compute_device()), RowLosses((), ())
    if protocol.rows:
        losses = evaluate.row_losses(model, protocol.rows, max_tokens=protocol.max_tokens)
    prompts = [ids for _, ids, _ in protocol.prompts]
    if not prompts or not distributed.is_first():
        return Figures(losses, [""] * len(prompts))
    return Figures(losses, evaluate.answers(model, tokenizer, prompts, protocol.max_new_tokens))


def _isolated_figures(ref: ModelRef, protocol: Protocol) -> Figures:
    request = {"ref": asdict(ref), "protocol": asdict(replace(protocol, isolated=False))}
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
        loss = distributed.from_first(entry.content["loss"] if entry.content else None)
        if loss is None:
            logger.info("evaluating %s, untouched", untouched.name)
            with memory_errors("the untouched model", lambda: "set evaluation.baseline=false"):
                loss = figures(untouched, replace(protocol, prompts=())).losses.mean()
            entry.content = {"loss": loss}
    record.measured(baseline_eval_loss=loss)
    record.write()


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
    parameters = model.num_parameters()
    protocol = protocol if metrics else replace(protocol, rows=())
    found = figures(ref, protocol) if ref else loaded_figures(model, tokenizer, protocol)
    if metrics:
        record.measured(**dict.fromkeys(metrics, found.losses.mean()))
    answered = zip(protocol.prompts, found.answers, strict=True)
    samples = [
        {"prompt": text, "expected": expected, "before": said, "after": None}
        for (text, _, expected), said in answered
    ]
    record.update(num_parameters=parameters, samples=samples)


def final(
    record: Record, protocol: Protocol, ref: ModelRef, tolerance: float | None = None
) -> None:
    """Measure final/, loaded as a user would, and add its loss on each row to eval.jsonl.

    `tolerance` is the largest difference from the best checkpoint's eval_loss, as a share of 1 +
    the loss; None allows any. Raises ModelError if its tensors do not fit, and TrainingError if its
    loss is not the best checkpoint's, or the separate process of an isolated protocol failed.
    """
    logger.info("evaluating %s", ref.name)
    try:
        found = figures(ref, protocol)
    except ModelError:
        record.update(final=None)
        raise
    loss = found.losses.mean()
    if tolerance is not None:
        if protocol.isolated:  # the backend's kernels round in their own way
            tolerance = max(tolerance, evaluate.TOLERANCES["rounded"])
        refuse_other_loss(record, ref, loss, tolerance)
    sample_loss = found.losses.mean(evaluate.SAMPLE_ROWS)
    perplexity = evaluate.perplexity(loss)
    record.measured(eval_loss=loss, perplexity=perplexity, eval_sample_loss=sample_loss)
    if distributed.is_first():
        pairs = zip(protocol.rows, found.losses.row_means(), strict=True)
        rows = [{**row, "loss": mean} for row, mean in islice(pairs, evaluate.SAMPLE_ROWS)]
        write_rows(record.path.with_name(ROWS_FILE), rows)
    for sample, text in zip(record.content["samples"], found.answers, strict=True):
        sample["after"] = text


def refuse_other_loss(record: Record, ref: ModelRef, loss: float, tolerance: float) -> None:
    """Refuse a loss of final/ that is not the trainer's within `tolerance`, a share of 1 + it."""
    best = record.content["metrics"]["eval_loss"]
    allowed = tolerance * (1 + best)
    if not abs(loss - best) <= allowed:
        record.update(final=None)
        raise TrainingError(
            f"{ref.name}: loaded again, its eval_loss is {loss:.6g}, but the best checkpoint had "
            f"{best:.6g}, and rounding explains a difference of {allowed:.2g} at most: "
            f"{ref.advice}"
        )
