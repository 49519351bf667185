"""`lamina cut`: a reduced model without healing, copied from the larger one's files."""

from dataclasses import dataclass
from pathlib import Path

from lamina.depth.plan import Plan, make_plan
from lamina.depth.reduction import reduction, true_ties
from lamina.depth.selection import NoScores, ScoresNeededError, Selector
from lamina.depth.tensor_names import kept_tensors
from lamina.depth.variants import DepthDefaults, Variant
from lamina.errors import ConfigError
from lamina.export.card import manifest, portable
from lamina.export.folder import (
    copy_tokenizer,
    new_folder,
    outgoing,
    write_config,
    write_manifest,
    write_weights,
)
from lamina.runtime.console import announce, quiet_libraries, stage
from lamina.weights.reading import tensor_slices
from lamina.weights.writing import MAX_SHARD_BYTES

NO_TEXT = (
    "lamina cut has no text to score layers on: take the kept layers from lamina scan, or from a "
    "run's result.json, and pass them as model=layers 'model.keep=[...]'"
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

    @stage("preparing the cut")
    def execute(self) -> Plan:
        """Write the reduced model and return its plan; may raise a LaminaError."""
        try:
            plan = make_plan(self.model, self.model_name, lambda _: NoScores(), self.depth.protect)
        except ScoresNeededError:
            raise ConfigError(NO_TEXT) from None
        if plan.source is None:
            raise ConfigError("model=scratch has no weights to cut; train it with lamina train")
        write_cut(plan, Path(self.output))
        return plan


def write_cut(
    plan: Plan, output: Path, max_shard_bytes: int = MAX_SHARD_BYTES, *, key: str = "output"
) -> None:
    """Write the reduced model of a plan, with its manifest and card; `key` sets the output.

    Raises ModelError if the model cannot be reduced exactly, or one of its files is incomplete, and
    OutputError if the output is not new or empty, or cannot be written.
    """
    source, kept_layers = plan.source, plan.kept_layers
    assert source is not None
    with new_folder(key, output, source.folder) as folder:
        announce(f"cutting {source.name} into {output}")
        quiet_libraries()
        mapping = kept_tensors(source.weight_map, kept_layers, source.config)
        reduced = reduction(source, kept_layers)
        copy_tokenizer(source, folder)
        with tensor_slices(source, mapping) as slices:
            reduced = true_ties(reduced, slices)
            write_config(folder, reduced.content, source, None)
            name = f"model_name={source.name}"
            write_weights(name, folder, outgoing(slices, None), max_shard_bytes)
        # After the weights: reading the fingerprint's few pages first would trigger readahead.
        write_manifest(folder, portable(manifest(plan)))
