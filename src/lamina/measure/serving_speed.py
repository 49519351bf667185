"""How fast a model answers, and the memory that takes, at given lengths and batch sizes.

One forward pass reads a batch of prompts of random tokens and yields the first new token; each
further token takes a pass of its own with the KV cache. Ends of text are ignored. Times are medians
of the repeats, rates those of all sequences together.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any

from lamina.depth.loading import refuse_beyond_positions
from lamina.limits import AT_LEAST_ONE, Limit
from lamina.measure.tasks.files import EvaluationResult, Speed
from lamina.runtime import distributed
from lamina.runtime.console import stage
from lamina.runtime.device import peak_memory_bytes, reset_peak_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PROTOCOL = 1
"""Version of the measurement, a key of cached speeds."""

POSITIVE = Limit(lambda values: all(value >= 1 for value in values), "use numbers of 1 or more")


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """`evaluation.speed`: every batch size is measured with every length of prompts."""

    batch_sizes: Annotated[list[int], POSITIVE]
    """Without any, no speed is measured."""
    prompt_tokens: Annotated[list[int], POSITIVE, Limit(bool, "use one length or more")]
    new_tokens: Annotated[int, Limit(lambda value: value >= 2, "use 2 or more")]
    repeats: Annotated[int, AT_LEAST_ONE]


def refuse_too_long(model: "PreTrainedModel", settings: SpeedSettings) -> None:
    """Refuse lengths that the model has no positions for."""
    if settings.batch_sizes:
        longest = max(settings.prompt_tokens, default=0) + settings.new_tokens
        refuse_beyond_positions(model, longest, "evaluation.speed: prompt_tokens + new_tokens")


def serving_speed(model: "PreTrainedModel", settings: SpeedSettings) -> list[Speed] | None:
    """Measure a model in memory, in the first process alone; None where nothing is measured."""
    shapes = [(b, t) for b in settings.batch_sizes for t in settings.prompt_tokens]
    if not shapes or not distributed.is_first():
        return None
    model.eval()
    with stage("measuring speed", len(shapes), "sizes") as shown:
        found = []
        for batch, length in shapes:
            found.append(_measured(model, batch, length, settings))
            shown.advance()
    return found


def share_of_ideal(reduced: EvaluationResult, original: EvaluationResult) -> float | None:
    """Return the speed-up of decoding as a share of the ideal one, that of the layers alone.

    It is that of the first sizes that both measured; None if there are none, or the devices differ.
    """
    first, second = (
        {(each.batch, each.prompt_tokens, each.new_tokens): each for each in model.speed or ()}
        for model in (reduced, original)
    )
    size = next(filter(second.__contains__, first), None)
    if size is None or reduced.device != original.device:
        return None
    speed_up = first[size].decode_tokens_per_second / second[size].decode_tokens_per_second
    return speed_up * reduced.model.layers / original.model.layers


def _measured(model: "PreTrainedModel", batch: int, length: int, settings: SpeedSettings) -> Speed:
    from statistics import median

    import torch

    size = model.get_input_embeddings().num_embeddings
    ids = torch.randint(size, (batch, length), generator=torch.Generator().manual_seed(0))
    ids, new = ids.to(model.device), settings.new_tokens
    _answer(model, ids, 2)  # the first passes compile kernels and fill caches
    reset_peak_memory()
    prefills, decodes, cache_bytes = [], [], 0
    for _ in range(settings.repeats):
        began, read, ended, cache_bytes = _answer(model, ids, new)
        prefills.append(read - began)
        decodes.append(ended - read)
    prefill, decode = median(prefills), median(decodes)
    return Speed(
        batch=batch,
        prompt_tokens=length,
        new_tokens=new,
        prefill_tokens_per_second=batch * length / prefill,
        decode_tokens_per_second=batch * (new - 1) / decode,
        first_token_seconds=prefill,
        kv_cache_bytes=cache_bytes,
        peak_memory_bytes=peak_memory_bytes(),
        repeats=settings.repeats,
        spread=(max(decodes) - min(decodes)) / decode,
    )


def _answer(
    model: "PreTrainedModel", ids: "torch.Tensor", new_tokens: int
) -> tuple[float, float, float, int]:
    """Return when reading began, when it ended, when the last token came, and the cache's bytes."""
    import torch

    wait = torch.cuda.synchronize if ids.is_cuda else lambda: None
    known = signature(model.forward).parameters
    # Otherwise the head computes the logits of every token of the prompts.
    last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    name = "past_key_values" if "past_key_values" in known else "cache_params"  # Mamba's
    with torch.inference_mode():
        wait()
        began, cache = time.perf_counter(), None
        for position in range(new_tokens):
            output = model(input_ids=ids, use_cache=True, **{name: cache}, **last)
            ids, cache = output.logits[:, -1:].argmax(-1), output[name]
            if position == 0:
                wait()
                read = time.perf_counter()
        wait()
    return began, read, time.perf_counter(), sum(t.nbytes for t in _tensors(cache))


def _tensors(value: Any) -> Iterator["torch.Tensor"]:
    """Yield the tensors of a cache: of attention, or the states of other kinds of layers."""
    import torch

    if isinstance(value, torch.Tensor):
        yield from [value] if value.is_floating_point() else []  # else a position
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif hasattr(value, "__dict__"):
        for each in vars(value).values():
            yield from _tensors(each)
