"""Who computes attention in training: what is asked for, held against machine and model.

Losses before and after healing are measured with what transformers chooses by itself, whatever the
training uses: they stay comparable.
"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

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


def problem(asked: str, dtype: str) -> str | None:
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


def implementation(asked: str, model: "type[PreTrainedModel]", dtype: str) -> str | None:
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
    able = (kind for kind in ("flash", "flex") if problem(kind, dtype) is None)
    return next((name for kind in able if (name := _name(kind, model))), None)


def use(asked: str, model: "PreTrainedModel", dtype: str) -> None:
    """Let a model compute its attention as it is asked for.

    Raises:
        ConfigError: It does not take that, or transformers cannot change it.
    """
    name = implementation(asked, type(model), dtype)
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
