"""final/: the result of a run, in a form that plain transformers loads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lamina.depth.plan import Plan
from lamina.depth.reduction import adapter_obstacle, reduction
from lamina.errors import ConfigError
from lamina.export.folder import MANIFEST_FILE, keep_config_form, write_manifest, write_tokenizer
from lamina.export.merge import WEIGHTS_FILE, merged, rename_magnitudes
from lamina.limits import one_of
from lamina.measure.protocol import ModelRef, Protocol, figures
from lamina.measure.results import Record
from lamina.measure.tasks.files import EVALUATION_FOLDER, read_evaluation
from lamina.runtime import distributed
from lamina.runtime.console import stage
from lamina.runtime.files import disk_errors, finite, replacing
from lamina.runtime.sizes import trained_weights, weight_bytes
from lamina.weights.source import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Form = Literal["adapter", "merged", "both", "model"]
"""model: all of full training's weights. The others are the forms of a trained adapter."""

FINAL = "final"


@dataclass(frozen=True, kw_only=True)
class Export:
    """What final/ holds."""

    form: Annotated[str, one_of("auto", "adapter", "merged", "both")]
    dtype: Annotated[str, one_of("auto", "bfloat16", "float32")]

    def form_of(self, plan: Plan, *, has_adapter: bool, is_loadable: bool) -> Form:
        """Choose what final/ holds, before a weight is read.

        `is_loadable` says whether transformers loads all that is trained from the saved adapter.
        Raises ConfigError if export.form demands an adapter that would not be exact.
        """
        if not has_adapter:
            return "model"
        obstacle = adapter_obstacle(plan.source, plan.kept_layers, plan.name)
        if obstacle and self.form in ("adapter", "both"):
            raise ConfigError(
                f"export.form={self.form}: {obstacle}; choose export.form=merged or auto"
            )
        forms: dict[str, Form] = {"adapter": "adapter", "merged": "merged", "both": "both"}
        return forms.get(self.form, "adapter" if is_loadable and not obstacle else "merged")


def save_final(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    *,
    plan: Plan,
    form: Form,
    dtype: "torch.dtype",
    manifest: dict[str, Any],
    unquantized: "Callable[[], PreTrainedModel] | None" = None,
) -> ModelRef:
    """Write final/, and final-merged/ for form=both, in the first process; return where to load it.

    `model` has the best weights and is a PEFT model if there is an adapter; `folder` is the parent
    of final/, `dtype` the type of a whole model's weights. `unquantized` loads the reduced model in
    its own type, to merge an adapter trained on a four-bit base into it; None for any other. Raises
    OutputError if the files cannot be written, for instance because the disk is full.
    """
    final, has_adapter = folder / FINAL, form in ("adapter", "both")
    loaded_dtype = model.get_base_model().dtype if has_adapter else dtype
    if distributed.is_first():
        model.config.use_cache = True  # the trainer turned it off; generation needs it
        if hasattr(model.config, "output_router_logits"):
            model.config.output_router_logits = False  # TRL turned it on; a cache fails with it
        if has_adapter:
            size = weight_bytes(trained_weights(model))
            about = manifest | unmeasured("adapter", loaded_dtype)
            with _writing(final, size, tokenizer, plan, about) as partial:
                model.save_pretrained(partial)
                rename_magnitudes(partial / WEIGHTS_FILE)
        if form in ("merged", "both"):
            model = _merged(model, unquantized)
        if form != "adapter":
            whole = final.with_name(f"{FINAL}-merged") if form == "both" else final
            size = model.num_parameters() * dtype.itemsize
            about = manifest | unmeasured("merged", dtype)
            with _writing(whole, size, tokenizer, plan, about) as partial:
                _save_whole(model.to(dtype), plan, partial)
    distributed.wait_for_all()
    return ModelRef(
        name=str(final),
        revision=manifest["revision"],
        kept_layers=None,
        dtype=str(loaded_dtype).removeprefix("torch."),
        in_4bit=has_adapter and unquantized is not None,
    )


def unmeasured(form: str, dtype: "torch.dtype") -> dict[str, Any]:
    """Return what lamina.json says of a form whose own loss is not known yet."""
    about = {"form": form, "dtype": str(dtype).removeprefix("torch.")}
    return {"export": {**about, "loss": None, "rows": 0, "all_rows": 0}}


def measured_cards(record: Record, protocol: Protocol, final: ModelRef, form: Form) -> None:
    """Give final/ and final-merged/ cards with the loss of the form they accompany, on all rows."""
    losses = {Path(final.name): record.content["metrics"]["eval_loss"]}
    if form == "both":
        whole = Path(f"{final.name}-merged")
        dtype = read_json(whole / MANIFEST_FILE)["export"]["dtype"]
        ref = replace(final, name=str(whole), revision=None, dtype=dtype, in_4bit=False)
        losses[whole] = figures(ref, replace(protocol, prompts=())).losses.mean()
    if distributed.is_first():
        evaluations = record.path.parent / EVALUATION_FOLDER
        tasks = {
            role: asdict(read_evaluation(evaluations / role))["tasks"]
            for role in record.content["evaluation"]
        }
        for folder, loss in losses.items():
            content, rows = read_json(folder / MANIFEST_FILE), len(protocol.rows)
            content["tasks"] = finite(tasks)
            content["export"] |= {"loss": loss, "rows": rows, "all_rows": rows}
            content["evaluation"]["eval_loss"] = loss
            write_manifest(folder, content)


def _merged(
    model: "PreTrainedModel", unquantized: "Callable[[], PreTrainedModel] | None"
) -> "PreTrainedModel":
    """Merge an adapter into its base; not into four bits, which would round the sum again."""
    if unquantized is None:
        return merged(model)
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    config = copy(model.peft_config["default"])
    config.layer_replication = None  # this base already has only the kept layers
    whole = PeftModel(unquantized(), config)
    set_peft_model_state_dict(whole, get_peft_model_state_dict(model))
    return merged(whole)


def _save_whole(model: "PreTrainedModel", plan: Plan, folder: Path) -> None:
    """Save a whole model with a config.json in its source's form."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        # Trained apart as modules_to_save, or never equal in the source.
        model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    if plan.source is not None:
        reduced = reduction(plan.source, plan.kept_layers)
        keep_config_form(folder, reduced, model.config, str(model.dtype).removeprefix("torch."))


@contextmanager
def _writing(
    folder: Path,
    size: int,
    tokenizer: "PreTrainedTokenizerBase",
    plan: Plan,
    manifest: dict[str, Any],
) -> Iterator[Path]:
    """Write a folder of about `size` bytes: what the body writes, the tokenizer and the card."""
    errors = disk_errors(folder, "output_dir", lambda: size)
    with stage(f"saving {folder.name}/"), errors, replacing(folder) as partial:
        yield partial
        write_tokenizer(partial, tokenizer, plan.source)
        write_manifest(partial, manifest)
