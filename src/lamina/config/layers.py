"""Whether the layers that are asked for are there, where the model is a local folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from lamina.config.ranges import at
from lamina.config.targets import problems as target_problems
from lamina.depth.selection import NoScores, ScoresNeededError
from lamina.depth.surgery import layer_count
from lamina.depth.variants import Scratch
from lamina.errors import LaminaError
from lamina.weights.source import resolve


def problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Name a local model that is not there, and layers that it does not have.

    Args:
        content: The resolved config.
    """
    name, model = at(content, "model_name"), at(content, "model")
    if name is None or "???" in str(model) or any(target_problems(model)):
        return
    if not Path(name).expanduser().is_dir() and not name.startswith((".", "/", "~")):
        return
    try:
        variant = instantiate(model, _convert_="all")
        if not isinstance(variant, Scratch):
            variant.kept_layers(layer_count(resolve(name).config), NoScores())
    except LaminaError as error:
        yield str(error)
    except (ScoresNeededError, HydraException):
        return
