"""final/: what a run is for, in a form that plain transformers loads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lamina.depth.plan import Plan
from lamina.depth.reduction import adapter_form_is_exact
from lamina.errors import ConfigError
from lamina.export.folder import write_beside
from lamina.export.magnitudes import make_readable
from lamina.export.merge import WEIGHTS_FILE
from lamina.limits import one_of
from lamina.measure.isolated import Final
from lamina.runtime import distributed
from lamina.runtime.files import disk_errors, replacing
from lamina.runtime.sizes import trained, weight_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Form = Literal["adapter", "merged", "both", "model"]
"""model: every weight was trained. The others say what becomes of an adapter."""

FINAL = "final"


@dataclass(frozen=True, kw_only=True)
class Export:
    """What final/ holds."""

    form: Annotated[str, one_of("auto", "adapter", "merged", "both")]
    """auto, adapter or merged; both puts the merged model beside the adapter, in final-merged/."""

    dtype: Annotated[str, one_of("auto", "bfloat16", "float32")]
    """Of the weights of a whole model: auto for the training's, bfloat16 or float32."""

    def form_of(self, plan: Plan, model: "PreTrainedModel", adapter: str) -> Form:
        """Choose what final/ holds.

        Args:
            plan: What was removed.
            model: The reduced model, before it gets an adapter.
            adapter: The option's name: full, or one that has an adapter.

        Raises:
            ConfigError: The adapter form was asked for and would not be exact.
        """
        if adapter == "full":
            return "model"
        exact = plan.source is not None and (not plan.is_reduced or adapter_form_is_exact(model))
        if self.form in ("adapter", "both") and not exact:
            raise ConfigError(
                f"export.form={self.form}: an adapter cannot rebuild {plan.name} of this "
                "architecture exactly; choose export.form=merged or auto"
            )
        forms: dict[str, Form] = {"adapter": "adapter", "merged": "merged", "both": "both"}
        return forms.get(self.form, "adapter" if exact else "merged")


def save_final(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    *,
    form: Form,
    dtype: "torch.dtype",
    note: dict[str, Any],
    unquantized: "Callable[[], PreTrainedModel] | None" = None,
) -> Final:
    """Write final/, and final-merged/ where both forms are asked for; the first process does.

    Args:
        model: The best weights; a PEFT model where there is an adapter.
        tokenizer: Saved with its chat template.
        folder: Where final/ goes.
        form: What final/ holds.
        dtype: Of the weights of a whole model.
        note: Content of lamina.json.
        unquantized: Loads the reduced model in its own type, for an adapter to be merged into that
            was trained beside four bits; None where it was not.

    Raises:
        OutputError: The files cannot be written, for instance because no space is left.
    """
    final = folder / FINAL
    is_adapter = form in ("adapter", "both")
    saved_dtype = model.get_base_model().dtype if is_adapter else dtype
    if distributed.is_first():
        _write(model, tokenizer, final, form=form, dtype=dtype, note=note, unquantized=unquantized)
    distributed.wait_for_all()
    in_4bit = is_adapter and unquantized is not None
    return Final(final, str(saved_dtype).removeprefix("torch."), in_4bit)


def _write(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    final: Path,
    *,
    form: Form,
    dtype: "torch.dtype",
    note: dict[str, Any],
    unquantized: "Callable[[], PreTrainedModel] | None",
) -> None:
    # The trainer turns it off, and whoever generates with final/ wants it.
    model.config.use_cache = True
    if form in ("adapter", "both"):
        with _saved(final, weight_bytes(trained(model))) as partial:
            model.save_pretrained(partial)
            make_readable(partial / WEIGHTS_FILE)
            tokenizer.save_pretrained(partial)
            write_beside(partial, note, is_adapter=True)
    if form in ("merged", "both"):
        model = _merged(model, unquantized)
    if form != "adapter":
        whole = final.with_name(f"{FINAL}-merged") if form == "both" else final
        with _saved(whole, model.num_parameters() * dtype.itemsize) as partial:
            model.to(dtype).save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            write_beside(partial, note)


def _merged(
    model: "PreTrainedModel", unquantized: "Callable[[], PreTrainedModel] | None"
) -> "PreTrainedModel":
    """Merge an adapter into its base; the sum in four bits would be rounded anew."""
    if unquantized is None:
        return model.merge_and_unload()
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    config = copy(model.peft_config["default"])
    config.layer_replication = None  # this base has the kept layers already
    whole = PeftModel(unquantized(), config)
    set_peft_model_state_dict(whole, get_peft_model_state_dict(model))
    return whole.merge_and_unload()


@contextmanager
def _saved(folder: Path, needed: int) -> Iterator[Path]:
    with disk_errors(folder, "output_dir", lambda: needed), replacing(folder) as partial:
        yield partial
