"""A model's loss and answers, computed in the same way for every variant.

A loss is the summed negative log-likelihood of all trained tokens divided by their number, in nats
per token. The mean of batch means, which trainers report, depends on how rows are batched.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

from lamina.limits import NOT_NEGATIVE, WHOLE_TOKENS
from lamina.measure.serving_speed import SpeedSettings
from lamina.measure.tasks.settings import TaskSettings
from lamina.runtime import distributed
from lamina.runtime.console import stage

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

PROTOCOL = 1
"""Version of `row_losses`, a key of cached losses: increment it when the same model would get
another loss on the same rows."""

SAMPLE_ROWS = 200
"""Most rows in eval.jsonl."""

TOLERANCES = {"same": 1e-4, "rounded": 0.03}
"""Largest difference of one model's losses, as a share of 1 + the loss: computed twice in float32,
and with rounding to fewer bits or other kernels in between."""

ENGINE_TOLERANCES = {
    "float32": 0.001,
    **dict.fromkeys(("float16", "bfloat16", "q8_0"), 0.02),
    **dict.fromkeys(("q4_k_m", "iq4_xs"), 0.1),
}
"""The same for a written model in an engine, by the type of its weights there."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to measure besides the trainer's own evaluations."""

    baseline: bool
    reduced: bool
    reload: bool
    num_samples: Annotated[int, NOT_NEGATIVE]
    max_new_tokens: Annotated[int, WHOLE_TOKENS]
    tasks: list[str]
    """Files of items, and names of the lm-eval library's tasks."""
    task_settings: TaskSettings
    agreement: bool
    """Whether to compare predictions with the original's, where a task scores text."""
    speed: SpeedSettings

    @property
    def goes_further(self) -> bool:
        """Whether it has tasks, or measures speed."""
        return bool(self.tasks or self.speed.batch_sizes)


@dataclass(frozen=True)
class RowLosses:
    """Each row's summed negative log-likelihood, in nats, and its number of trained tokens."""

    nll: tuple[float, ...]
    tokens: tuple[int, ...]

    def mean(self, rows: int | None = None) -> float:
        """Return the loss in nats per token over all rows, or over the first `rows`."""
        return math.fsum(self.nll[:rows]) / sum(self.tokens[:rows])

    def row_means(self) -> list[float | None]:
        """Return each row's loss in nats per token; None for a row without trained tokens."""
        pairs = zip(self.nll, self.tokens, strict=True)
        return [nll / tokens if tokens else None for nll, tokens in pairs]


def perplexity(loss: float | None) -> float | None:
    """Return exp(loss); None without a loss, infinity if it exceeds a float."""
    if loss is None:
        return None
    return math.exp(loss) if loss < 700 else math.inf


def row_losses(
    model: "PreTrainedModel", rows: Sequence[dict[str, Any]], *, max_tokens: int
) -> RowLosses:
    """Evaluate a model on tokenized rows; processes share the work, and each gets all losses.

    A label of -100 does not count. `max_tokens` are the most in one forward pass, padding included;
    a longer row is alone in one.
    """
    import torch
    from torch.nn.functional import cross_entropy

    nll, tokens = [0.0] * len(rows), [0] * len(rows)
    # Weights on disk are loaded layer by layer, and inputs stay on the CPU.
    device = torch.device("cpu") if model.device.type == "meta" else model.device
    model.eval()
    batches = list(padded_batches([len(row["input_ids"]) for row in rows], max_tokens))
    with stage("evaluating", len(rows), "rows") as shown:
        for indices in batches[distributed.rank() :: distributed.world_size()]:
            ids, labels, mask = padded([rows[index] for index in indices], device)
            with torch.inference_mode():
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for position, index in enumerate(indices):
                targets = labels[position, 1:]
                losses = cross_entropy(logits[position, :-1].float(), targets, reduction="sum")
                nll[index], tokens[index] = losses.item(), int((targets != -100).sum())
            shown.advance(len(indices) * distributed.world_size())
    totals = distributed.summed([*nll, *tokens])
    return RowLosses(tuple(totals[: len(rows)]), tuple(map(int, totals[len(rows) :])))


def answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[str]:
    """Return the model's greedy answer to each prompt, a sequence of token ids."""
    model.eval()
    texts = []
    with stage("generating samples", len(prompts), "prompts") as shown:
        for prompt in prompts:
            (ids,) = generate(model, tokenizer, [prompt], max_new_tokens=max_new_tokens)
            texts.append(tokenizer.decode(ids, skip_special_tokens=True))
            shown.advance()
    return texts


def answer_batches(
    model: "PreTrainedModel", lengths: Sequence[int], max_tokens: int
) -> list[list[int]]:
    """Group prompts, by their numbers, into batches; recurrent models get no padding.

    `lengths` are in tokens and include the answers, as `max_tokens` does.
    """
    found = list(padded_batches(lengths, max_tokens))
    if not getattr(model, "_is_stateful", False):
        return found
    return [[*group] for each in found for _, group in groupby(each, key=lengths.__getitem__)]


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: str = "",
    temperature: float = 0.0,
) -> list[list[int]]:
    """Return the tokens of each prompt's answer, up to and with the one that ends it.

    `stop` is a text that ends an answer, too. A temperature above 0 samples from all tokens. Of the
    model's own generation settings only the ends count: vLLM and a batch of others give the same.
    """
    import torch
    from transformers import GenerationConfig

    length, own = max(map(len, prompts)), model.generation_config
    ends = end_tokens(own, tokenizer)
    padding = tokenizer.pad_token_id
    if padding is None:
        padding = ends[0] if ends else 0
    padded = [[padding] * (length - len(ids)) + [*ids] for ids in prompts]
    mask = [[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts]
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    # Those of generation_config.json would go before any that generate() is not given.
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens, pad_token_id=padding, eos_token_id=ends or None, **sampled
    )
    try:
        with torch.inference_mode():
            output: torch.Tensor = model.generate(
                input_ids=torch.tensor(padded, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                stopping_criteria=_stopping(tokenizer, stop, length),
            )
    finally:
        model.generation_config = own
    answers = [_until(ids, ends) for ids in output[:, length:].tolist()]
    return [_until_text(ids, stop, tokenizer) for ids in answers] if stop else answers


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Return an answer without the padding behind its end."""
    place = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: place + 1]


def _until_text(ids: list[int], stop: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Cut an answer after the text that ends it; in a batch, generation may have continued."""
    sizes = range(1, len(ids) + 1)
    return ids[: 1 + bisect_left(sizes, True, key=lambda n: stop in tokenizer.decode(ids[:n]))]


def _stopping(tokenizer: "PreTrainedTokenizerBase", stop: str, length: int) -> Any:
    """Return what ends a row of a batch once its answer contains `stop`."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    if not stop:
        return None
    # Two more tokens than the text has: an answer may spell it in other ones.
    recent = len(tokenizer(stop, add_special_tokens=False)["input_ids"]) + 2

    class Stop(StoppingCriteria):
        def __call__(self, ids: "torch.Tensor", scores: Any, **_: Any) -> Any:
            import torch

            texts = tokenizer.batch_decode(ids[:, length:][:, -recent:])
            return torch.tensor([stop in text for text in texts], device=ids.device)

    return StoppingCriteriaList([Stop()])


def end_tokens(generation: "GenerationConfig", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens that end an answer."""
    ends = generation.eos_token_id
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return sorted({*known, *own})


def padded_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Group row indices, longest first, into padded batches of at most max_tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(
    rows: Sequence[dict[str, Any]], device: "torch.device"
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Return input_ids, labels and attention_mask, each (batch, tokens), right-padded."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    masks = [torch.ones_like(row) for row in ids]
    fills = ((ids, 0), (labels, -100), (masks, 0))
    padded = (pad_sequence(x, batch_first=True, padding_value=fill) for x, fill in fills)
    first, second, third = (tensor.to(device) for tensor in padded)
    return first, second, third
