"""Attention implementations and liger-kernel, held against the machine and the model.

Losses before and after healing are measured with the attention that transformers picks by itself,
whatever the training uses, so that they stay comparable.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.errors import ConfigError
from lamina.runtime.device import visible_devices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLASH = {"flash-attn-3": "flash_attention_3", "flash-attn": "flash_attention_2"}
"""Packages of flash attention, the faster one first, and transformers' names of them."""

FLAGS = {
    "flash": "_supports_flash_attn",
    "flex": "_supports_flex_attn",
    "sdpa": "_supports_sdpa",
}
"""Where a model's class says what it takes; every one takes eager."""

MASKED = ("sdpa", "eager")
"""Those that need a mask of one byte for every pair of a batch's tokens."""


def attention_problem(asked: str, dtype: str) -> str | None:
    """Say why this machine cannot do what is asked for, or return nothing; torch is not imported.

    Args:
        asked: Value of attention.
        dtype: torch's name of the weights' type.
    """
    if asked in ("flash", "flex") and not visible_devices():
        return f"attention={asked} needs a GPU: leave it out"
    if asked == "flash" and installed_flash() is None:
        return (
            "attention=flash needs flash-attn: pip install flash-attn --no-build-isolation, or "
            "leave it out"
        )
    if asked == "flash" and dtype == "float32":
        return "attention=flash takes no weights in float32: give dtype=bfloat16, or leave it out"
    return None


def may_need_mask(asked: str) -> bool:
    """Whether a batch's mask may be made; torch is not imported."""
    return asked in MASKED or (asked == "auto" and not visible_devices())


def installed_flash() -> str | None:
    """Return transformers' name of the flash attention that is installed."""
    for package, name in FLASH.items():
        with suppress(PackageNotFoundError):
            version(package)
            return name
    return None


def attention_kernel(asked: str, model: "type[PreTrainedModel]", dtype: str) -> str | None:
    """Choose who computes a model's attention.

    Args:
        asked: auto, flash, flex, sdpa or eager.
        model: Its class.
        dtype: torch's name of its weights' type.

    Returns:
        transformers' name; None for what transformers has chosen by itself.

    Raises:
        ConfigError: The model's family does not take what is asked for.
    """
    if asked != "auto":
        name = _name(asked, model)
        if name is None:
            taken = [kind for kind in FLAGS if _name(kind, model)]
            raise ConfigError(
                f"attention={asked}: {model.__name__} does not take it; leave it out, or give "
                f"{' or '.join([*taken, 'eager'])}"
            )
        return name
    import torch

    if not torch.cuda.is_available():  # CUDA_VISIBLE_DEVICES may name devices that are not there
        return None
    able = (kind for kind in ("flash", "flex") if attention_problem(kind, dtype) is None)
    return next((name for kind in able if (name := _name(kind, model))), None)


def use_attention(asked: str, model: "PreTrainedModel", dtype: str) -> None:
    """Let a model compute its attention as it is asked for.

    Raises:
        ConfigError: It does not take that, or transformers cannot change it.
    """
    name = attention_kernel(asked, type(model), dtype)
    if name is None:
        return
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"attention={asked}: {str(error).splitlines()[0]}") from error
    if (got := model.config._attn_implementation) != name and asked != "auto":
        raise ConfigError(
            f"attention={asked}: {type(model).__name__} computes it as {got} whatever is asked "
            "for; leave it out"
        )


def _name(kind: str, model: "type[PreTrainedModel]") -> str | None:
    """Return transformers' name of a kind, if the model's class takes it."""
    if kind in FLAGS and not getattr(model, FLAGS[kind]):
        return None
    if kind == "flash":
        name, only = installed_flash(), getattr(model, "_compatible_flash_implementations", None)
        return name if only is None or name in only else None
    return "flex_attention" if kind == "flex" else kind


FAMILY_TABLE = "MODEL_TYPE_TO_APPLY_LIGER_FN"
"""The name of liger-kernel's table of model families."""


def liger_problems(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Name what kernels=liger cannot do: for this training, and on this machine.

    Args:
        arguments: Fields of SFTConfig.
    """
    if arguments.get("loss_type") == "chunked_nll":
        yield (
            "trainer.args.loss_type=chunked_nll does not go with kernels=liger, whose loss takes "
            "its place: leave it out"
        )
    if smoothing := arguments.get("label_smoothing_factor"):
        yield (
            f"trainer.args.label_smoothing_factor={smoothing} does not go with kernels=liger: its "
            "loss does not smooth labels"
        )
    if not visible_devices():
        yield "kernels=liger needs a GPU with Triton: leave it out"
    elif importlib.util.find_spec("liger_kernel") is None:
        yield "kernels=liger needs liger-kernel: pip install liger-kernel, or leave it out"


def refuse_family(asked: str, model_type: str) -> None:
    """Refuse a model that liger-kernel would leave as it is, with a warning.

    Raises:
        ConfigError: It has no kernels for the family.
    """
    if asked == "liger" and model_type not in (known := families()):
        raise ConfigError(
            f"kernels=liger: liger-kernel has none for {model_type}; leave it out (it has: "
            f"{', '.join(sorted(known))})"
        )


def families() -> set[str]:
    """Read which model families liger-kernel knows from its source: importing it takes Triton."""
    spec = importlib.util.find_spec("liger_kernel")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "transformers" / "monkey_patch.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == FAMILY_TABLE
        if named and isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
    return set()


def refuse_adapted_head(model: "PreTrainedModel") -> None:
    """Refuse an adapter on the output head: liger-kernel's loss reads the head's own weights only.

    Raises:
        ConfigError: There is one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ConfigError(
            "kernels=liger computes the loss without an adapter of the output head: take lm_head "
            "out of adapter.target_modules, or leave kernels out"
        )


@contextmanager
def contained(model: "PreTrainedModel") -> Iterator[None]:
    """Put back what liger-kernel changes for the whole process: final/ is measured without it.

    Beside the model itself it replaces functions and classes in the module of its architecture.

    Args:
        model: Out of its wrappers.
    """
    module = vars(sys.modules[type(model).__module__])
    before = dict(module)
    try:
        yield
    finally:
        module.update(before)
