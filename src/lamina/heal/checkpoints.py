"""Checkpoints: the last whole one to go on from, and final/, which anyone can load."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lamina.depth.plan import Plan, adapter_form_is_exact
from lamina.errors import ConfigError, OutputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Form = Literal["adapter", "merged", "both", "model"]
"""model: every weight was trained. The others say what becomes of an adapter."""

CARD_FILE, NOTE_FILE, FINAL = "README.md", "lamina.json", "final"
_STEP = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True, kw_only=True)
class Export:
    """What final/ holds."""

    form: str
    """auto, adapter or merged; both puts the merged model beside the adapter, in final-merged/."""

    dtype: str
    """Of the weights of a whole model: auto for the training's, bfloat16 or float32."""

    def form_of(self, plan: Plan, model: "PreTrainedModel", adapter: str) -> Form:
        """Choose what final/ holds.

        Args:
            plan: What was removed.
            model: The reduced model, with or without its adapter.
            adapter: lora or full.

        Raises:
            ConfigError: The adapter form was asked for and would not be exact.
        """
        if adapter == "full":
            return "model"
        exact = plan.source is not None and adapter_form_is_exact(
            plan, model.config, _stack_name(model)
        )
        if self.form in ("adapter", "both") and not exact:
            raise ConfigError(
                f"export.form={self.form}: an adapter cannot rebuild {plan.name} of this "
                "architecture exactly; choose export.form=merged or auto"
            )
        forms: dict[str, Form] = {"adapter": "adapter", "merged": "merged", "both": "both"}
        return forms.get(self.form, "adapter" if exact else "merged")


@dataclass(frozen=True)
class Final:
    """The written final/."""

    folder: Path
    """Its absolute path."""

    dtype: str
    """In which to load it: of a model's weights, or of an adapter's base."""


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint-{step}/ with the highest step that was written to its end.

    The trainer writes trainer_state.json last: one that cannot be read, or tells of another step,
    belongs to a save that was cut off.
    """
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*")
             if (match := _STEP.search(path.name))]  # fmt: skip
    for step, path in sorted(found, reverse=True):
        if saved_step(path) == step:
            return path
    return None


def claim(
    folder: Path, run_dir: Path, resume: str, before: dict[str, Any] | None, now: dict[str, Any]
) -> Path | None:
    """Take a checkpoint folder for a run; return the checkpoint to go on from, if there is one.

    A folder inside the run folder is the run's own. One that lies elsewhere says whose it is in
    run.json.

    Args:
        folder: Where checkpoint-{step}/ and final/ go.
        run_dir: The run folder.
        resume: auto or never.
        before: result.json of an earlier start in the run folder, if there was one.
        now: Those of its fields that must not have changed.

    Raises:
        OutputError: The folder is another run's, cannot be written, or holds a checkpoint that
            cannot be gone on from.
    """
    _own(folder, run_dir)
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None:
        return None
    if resume == "never":
        raise OutputError(
            f"resume=never, but {checkpoint} is there: give resume=auto or another hydra.run.dir"
        )
    for key, value in now.items():
        if (earlier := (before or {}).get(key)) not in (value, None):
            raise OutputError(
                f"resume=auto, but {checkpoint} is of {key}={earlier}, not {value}: "
                "give another hydra.run.dir"
            )
    return checkpoint


def _own(folder: Path, run_dir: Path) -> None:
    owner_file = folder / "run.json"
    inside = folder.is_relative_to(run_dir)
    if not inside and any(folder.glob("[cf]*")):
        try:
            owner = json.loads(owner_file.read_text())["run"]
        except (OSError, ValueError, KeyError):
            owner = "something else"
        if owner != str(run_dir):
            raise OutputError(
                f"output_dir={folder.parent}: {folder} holds the result of {owner}, which is "
                "never overwritten: give another output_dir"
            )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not inside:
            owner_file.write_text(json.dumps({"run": str(run_dir)}) + "\n")


def save_final(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    *,
    form: Form,
    dtype: "torch.dtype",
    note: dict[str, Any],
    card: str,
) -> Final:
    """Write final/, and final-merged/ where both forms are asked for.

    Args:
        model: The best weights; a PEFT model where there is an adapter.
        tokenizer: Saved with its chat template.
        folder: Where final/ goes.
        form: What final/ holds.
        dtype: Of the weights of a whole model.
        note: Content of lamina.json.
        card: Content of the model card.

    Raises:
        OutputError: The files cannot be written, for instance because no space is left.
    """
    final = folder / FINAL
    saved_dtype = dtype
    if form in ("adapter", "both"):
        saved_dtype = model.get_base_model().dtype
        with _replacing(final) as partial:
            model.save_pretrained(partial)
            _save_beside(partial, tokenizer, note, card)
    if form in ("merged", "both"):
        model = model.merge_and_unload()
    if form != "adapter":
        with _replacing(folder / f"{FINAL}-merged" if form == "both" else final) as partial:
            model.to(dtype).save_pretrained(partial)
            _save_beside(partial, tokenizer, note, card)
    return Final(final, str(saved_dtype).removeprefix("torch."))


def reload(final: Final) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load final/ the way a user would: with plain transformers, in the recorded dtype."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = getattr(torch, final.dtype)
    model = AutoModelForCausalLM.from_pretrained(final.folder, dtype=dtype)
    return model, AutoTokenizer.from_pretrained(final.folder)


def saved_step(checkpoint: Path) -> int | None:
    """Return the optimizer step that a checkpoint was saved at; None if it is not whole."""
    try:
        step: int = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    except (OSError, ValueError, KeyError):
        return None
    return step


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a failed write into an error that says where and why.

    Raises:
        OutputError: The body could not write.
    """
    try:
        yield
    except OutputError:
        raise
    except (OSError, RuntimeError) as error:
        # safetensors and torch.save wrap what the operating system says.
        full = re.search(r"No space left|Read-only|Permission denied|Disk quota", str(error))
        if full is None:
            raise
        raise OutputError(
            f"{folder} cannot be written: {full[0]}; earlier checkpoints are intact, make room "
            "and start the same command again in the same folder"
        ) from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder; once it is whole it takes the place of `folder`."""
    partial = folder.with_name(f".{folder.name}.partial")
    with disk_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)


def _save_beside(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", note: dict[str, Any], card: str
) -> None:
    tokenizer.save_pretrained(folder)
    (folder / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n")
    (folder / CARD_FILE).write_text(card)


def _stack_name(model: "PreTrainedModel") -> str:
    """Return the last part of the name of the module list that holds the decoder layers."""
    depth = model.config.num_hidden_layers
    names = [
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if type(module).__name__ == "ModuleList" and len(module) == depth
    ]
    return names[0] if names else ""
