"""`lamina cut`: a reduced model without healing, copied from the larger one's files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.depth.plan import Plan, make_plan
from lamina.depth.reduction import reduction
from lamina.depth.selection import NoScores, ScoresNeededError, Selector
from lamina.depth.tensor_names import kept_tensors
from lamina.depth.variants import DepthDefaults, Variant
from lamina.errors import ConfigError
from lamina.export.card import manifest
from lamina.export.folder import (
    copy_tokenizer,
    new_folder,
    outgoing,
    refuse_output,
    write_config,
    write_manifest,
    write_weights,
)
from lamina.runtime.console import quiet_libraries
from lamina.weights.reading import tensor_slices
from lamina.weights.source import Source
from lamina.weights.writing import MAX_SHARD_BYTES

NO_TEXT = (
    "lamina cut has no text to score layers on: take the kept layers from lamina scan, or from a "
    "run's result.json, and give them as model=layers 'model.keep=[...]'"
)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Settings of `lamina cut`, which copies the kept tensors of a model under their new names.

    The weights keep their bytes and types; only a few megabytes are in memory at a time.
    """

    model_name: str
    """Hub id, or folder with config.json and safetensors."""

    model: Variant
    """Which layers stay."""

    selector: Selector
    """Which layers model=pruned keeps, by position: there is no text to score them on."""

    depth: DepthDefaults
    """Defaults of the variant's own keys."""

    output: str
    """New or empty folder for the reduced model."""

    def execute(self) -> Plan:
        """Write the reduced model and return its plan.

        Raises:
            LaminaError: The layers do not fit the model, it cannot be reduced exactly, or the
                output cannot be written.
        """
        try:
            plan = make_plan(self.model, self.model_name, lambda _: NoScores())
        except ScoresNeededError:
            raise ConfigError(NO_TEXT) from None
        if plan.source is None:
            raise ConfigError("model=scratch has no weights to cut; train it with lamina train")
        refuse_output("output", Path(self.output), plan.source.folder)
        write_cut(plan, Path(self.output))
        return plan


def write_cut(plan: Plan, output: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write the reduced model of a plan, with its manifest and card; see `write_reduced`."""
    assert plan.source is not None
    # After the weights: reading the fingerprint's few pages first would trigger readahead.
    write_reduced(
        plan.source, plan.kept_layers, output, max_shard_bytes, make_manifest=lambda: manifest(plan)
    )


def write_reduced(
    source: Source,
    kept_layers: Sequence[int],
    output: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    make_manifest: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Write a model with only its kept layers.

    Args:
        source: The larger model's files.
        kept_layers: 0-based indices, ascending.
        output: New or empty folder.
        max_shard_bytes: Most bytes in one file of weights.
        make_manifest: Returns the content of lamina.json; None writes neither it nor a card.

    Raises:
        ModelError: The model cannot be reduced exactly, or one of its files is incomplete.
        OutputError: The output cannot be written.
    """
    quiet_libraries()
    mapping = kept_tensors(source.weight_map, kept_layers, source.config)
    content = reduction(source, kept_layers).content
    with new_folder(output) as folder:
        write_config(folder, content, source, None)
        copy_tokenizer(source, folder)
        with tensor_slices(source, mapping) as slices:
            write_weights(folder, outgoing(slices, None), max_shard_bytes)
        if make_manifest is not None:
            write_manifest(folder, make_manifest())
