"""The untouched model's loss: all jobs of a sweep have the same one, which is found once."""

import logging
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING

from lamina.runtime import distributed
from lamina.runtime.cache import Entry, cached, code_version, folder_of
from lamina.runtime.device import device_name, release
from lamina.weights.reading import identity

if TYPE_CHECKING:
    from lamina.measure.plain import Plain
    from lamina.weights.source import Source

logger = logging.getLogger(__name__)


def baseline_loss(source: "Source", plain: "Plain", evaluated: str) -> float:
    """Return the untouched model's loss, in nats a token: the first job that comes by evaluates it.

    Args:
        source: The model's.
        plain: Gives the model to the meter that evaluates it.
        evaluated: Fingerprint of the rows that it is evaluated on.

    Raises:
        TrainingError: There is not the memory for the model.
    """
    with _entry(source, plain, evaluated) as entry:
        loss = distributed.from_first(entry.content["loss"] if entry.content else None)
        if loss is None:
            logger.info("evaluating %s, untouched", source.name)
            model = plain.untouched(source)
            loss = plain.meter.loss(model)
            entry.content = {"loss": loss}
            del model
            release()
        return float(loss)


def _entry(source: "Source", plain: "Plain", evaluated: str) -> AbstractContextManager[Entry]:
    """Give the loss's place, named after all that it depends on; the first process keeps it."""
    parts = [
        *identity(source),
        evaluated,
        f"{plain.dtype} {plain.meter.max_tokens} {device_name()}",
        *(["4 bits", f"bitsandbytes {version('bitsandbytes')}"] if plain.in_4bit else []),
        *(f"{name} {version(name)}" for name in ("torch", "transformers")),
        code_version("measure", ("evaluate",)),
    ]
    folder = folder_of("baselines", parts)
    return (
        cached(folder, "baseline.json")
        if distributed.is_first()
        else nullcontext(Entry(folder, None))
    )
