"""How fast a model answers, and the memory that takes, at given lengths and batch sizes.

A batch of prompts of random tokens is read in one forward pass, which yields the first new token;
each further token takes one more pass over the KV cache. Ends of text are ignored.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any

from lamina.limits import Limit
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
    prompt_tokens: Annotated[list[int], POSITIVE]
    new_tokens: Annotated[int, Limit(lambda value: value >= 2, "use 2 or more")]
    repeats: Annotated[int, Limit(lambda value: value >= 1, "use 1 or more")]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of one batch size and length; rates are of all sequences together, medians."""

    batch: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    """Of the tokens after the first."""
    first_token_seconds: float
    kv_cache_bytes: int
    """Of the whole batch, after the last token."""
    peak_memory_bytes: int
    """Of the accelerator or, on a CPU, of this process; weights included."""
    repeats: int
    spread: float
    """The fastest repeat's rate of decoding less the slowest's, as a share of the median."""


def serving_speed(model: "PreTrainedModel", settings: SpeedSettings) -> list[dict[str, Any]] | None:
    """Measure a model in memory, in the first process alone; None where nothing is measured."""
    shapes = [(b, t) for b in settings.batch_sizes for t in settings.prompt_tokens]
    if not shapes or not distributed.is_first():
        return None
    model.eval()
    with stage("measuring speed", len(shapes), "sizes") as shown:
        found = []
        for batch, length in shapes:
            found.append(asdict(_measured(model, batch, length, settings)))
            shown.advance()
    return found


def share_of_ideal(reduced: Mapping[str, Any], original: Mapping[str, Any]) -> float | None:
    """Return the speed-up of decoding as a share of the ideal one, that of the layers alone.

    Both are contents of evaluation.json; the first sizes that both measured count. None if there
    are none, or the devices differ.
    """
    sizes = ("batch", "prompt_tokens", "new_tokens")
    rates = [
        {tuple(s[key] for key in sizes): s["decode_tokens_per_second"] for s in each["speed"] or ()}
        for each in (reduced, original)
    ]
    common = next((size for size in rates[0] if size in rates[1]), None)
    if common is None or reduced["device"] != original["device"]:
        return None
    ideal = original["model"]["layers"] / reduced["model"]["layers"]
    return float(rates[0][common] / rates[1][common] / ideal)


def _measured(
    model: "PreTrainedModel", batch: int, length: int, settings: SpeedSettings
) -> Speed:
    import torch

    size = model.get_input_embeddings().num_embeddings
    ids = torch.randint(size, (batch, length), generator=torch.Generator().manual_seed(0))
    ids, new = ids.to(model.device), settings.new_tokens
    _answer(model, ids, 2)  # the first passes compile kernels and fill caches
    reset_peak_memory()
    first, rates, cache = [], [], 0
    for _ in range(settings.repeats):
        began, ended, done, cache = _answer(model, ids, new)
        first.append(ended - began)
        rates.append(batch * (new - 1) / (done - ended))
    decode = statistics.median(rates)
    return Speed(
        batch=batch,
        prompt_tokens=length,
        new_tokens=new,
        prefill_tokens_per_second=batch * length / statistics.median(first),
        decode_tokens_per_second=decode,
        first_token_seconds=statistics.median(first),
        kv_cache_bytes=cache,
        peak_memory_bytes=peak_memory_bytes(),
        repeats=settings.repeats,
        spread=(max(rates) - min(rates)) / decode,
    )


def _answer(
    model: "PreTrainedModel", ids: "torch.Tensor", new_tokens: int
) -> tuple[float, float, float, int]:
    """Return when reading began and ended and the last token was there, and the cache's bytes."""
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
                ended = time.perf_counter()
        wait()
    return began, ended, time.perf_counter(), sum(t.nbytes for t in _tensors(cache))


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
