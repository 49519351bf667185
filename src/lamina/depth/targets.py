"""Targets: as many layers stay as leave at most a number of parameters or bytes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamina.depth.protection import Protection
from lamina.depth.reduction import reduction, true_ties
from lamina.depth.selection import LayerScores, Selector
from lamina.depth.surgery import layer_count
from lamina.depth.tensor_names import is_mtp_tensor, kept_tensors, layer_of
from lamina.errors import ConfigError
from lamina.units import format_bytes, format_count, parse_bytes, parse_parameters
from lamina.weights.header import BITS
from lamina.weights.reading import DTYPES, tensor_slices
from lamina.weights.source import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNITS = {"target_parameters": "parameters", "target_bytes": "bytes"}
"""What each key of model=pruned counts."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model's parts, in parameters or bytes."""

    layers: tuple[int, ...]
    others: int
    """Embeddings, final norm and head."""

    def of(self, kept_layers: Iterable[int]) -> int:
        """Return the size of the model that consists of some layers."""
        return self.others + sum(self.layers[index] for index in kept_layers)


@dataclass(frozen=True)
class Target:
    """The size that a reduced model must not exceed."""

    key: str
    """One of `UNITS`."""
    given: Any
    """Its value in the config."""

    @property
    def limit(self) -> int:
        """The size in parameters or bytes; raises ConfigError if it is no such number."""
        parse = parse_bytes if self.key == "target_bytes" else parse_parameters
        return parse(f"model.{self.key}", self.given)

    @property
    def setting(self) -> str:
        """The setting, for messages; Hydra reads 6e9 as 6000000000.0."""
        is_float = isinstance(self.given, float) and self.given == float(f"{self.given:.3g}")
        return f"model.{self.key}={format_count(self.given) if is_float else self.given}"

    def kept(
        self, selector: Selector, scores: LayerScores, protected: Protection, sizes: Sizes
    ) -> tuple[int, ...]:
        """Return the layers that stay (0-based, ascending): the most that meet the target.

        Where layers differ in size, it is the selector's choice that has to meet it. Raises
        ConfigError if the whole model meets it, or no choice does.
        """
        num_layers, unit = len(sizes.layers), UNITS[self.key]
        if (whole := sizes.of(range(num_layers))) <= self.limit:
            raise ConfigError(
                f"{self.setting}: the whole model has {whole:,} {unit} and meets it: use less, or "
                "choose model=original"
            )
        fixed = len(protected.layers)
        free = sorted(sizes.layers[index] for index in {*range(num_layers)} - protected.layers)
        fewest, larger = max(1, fixed), list[int]()
        for count in range(num_layers - 1, fewest - 1, -1):
            if sizes.of(protected.layers) + sum(free[: count - fixed]) > self.limit:
                continue  # whichever layers they are
            kept = protected.kept(selector, num_layers, count, scores, self.setting)
            if (size := sizes.of(kept)) <= self.limit:
                return kept
            larger.append(size)
        smallest = sizes.of(protected.layers) + sum(free[: fewest - fixed])
        fewest_of = f"that {protected.given} allows" if fixed else "possible"
        raise ConfigError(
            f"{self.setting}: keeping {fewest} of {num_layers} layers, the fewest {fewest_of}, "
            f"leaves {min(larger, default=smallest):,} {unit}: use that or more"
        )

    def chosen(self, kept_layers: tuple[int, ...], sizes: Sizes) -> str:
        """Say how many layers the target keeps."""
        size = sizes.of(kept_layers)
        is_bytes = self.key == "target_bytes"
        shown = format_bytes(size) if is_bytes else f"{format_count(size)} parameters"
        count = f"{len(kept_layers)} of {len(sizes.layers)} layers"
        return f"{self.setting}: keeping {count}, {shown}"


def sizes_of(source: Source, unit: str, dtype: str | None) -> Sizes:
    """Return the sizes of a model's parts in a unit of `UNITS`, without reading its weights.

    `dtype` is torch's name for the type in which transformers saves the model; None keeps each
    tensor's stored type. May raise a ModelError.
    """
    others, layers = 0, [0] * layer_count(source.config)
    with source.reading("config.json"):
        for name, parameters, nbytes in _saved(source, dtype) if dtype else _stored(source):
            size, layer = nbytes if unit == "bytes" else parameters, layer_of(name)
            if layer is None:
                others += size
            else:
                layers[layer] += size
    return Sizes(tuple(layers), others)


def _stored(source: Source) -> Iterator[tuple[str, int, int]]:
    """Yield name, parameters and bytes of each tensor that a copy without a layer may have."""
    stored, num_layers = source.all_stored(), layer_count(source.config)
    kept_tensors(stored, range(num_layers), source.config)
    for name, tensor in stored.items():
        if not is_mtp_tensor(name, num_layers):
            yield name, tensor.size, tensor.nbytes


def _saved(source: Source, dtype: str) -> Iterator[tuple[str, int, int]]:
    """Yield the same of each tensor that transformers would save, tied ones once."""
    from torch.nn import Parameter

    seen: set[int] = set()
    for name, tensor in _blueprint(source).state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            itemsize = tensor.itemsize
            if tensor.is_floating_point():
                itemsize = BITS[DTYPES[dtype]] // 8
            count = tensor.numel()
            yield name, count if isinstance(tensor, Parameter) else 0, count * itemsize


def _blueprint(source: Source) -> "PreTrainedModel":
    """Return the whole model without weights; its head is untied if it differs in the files."""
    whole = reduction(source, range(layer_count(source.config)))
    model = whole.blueprint
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    prefix = model.base_model_prefix
    names = source.stored_names if tied else ()
    both = {name: name for name in names if name in tied or f"{prefix}.{name}" in tied}
    if len(both) < 2:
        return model
    with tensor_slices(source, both) as slices:
        return true_ties(whole, slices).blueprint
