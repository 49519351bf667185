"""Attention, optimizers, compilers and liger-kernel: what the machine and the model support.

Losses before and after healing are measured with transformers' default attention, whatever
training uses, so that they stay comparable.
"""

import ast
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.errors import ConfigError, naming
from lamina.runtime.attributes import attributes
from lamina.runtime.device import installed, visible_devices

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from trl import SFTConfig

FLASH = {"flash-attn-3": "flash_attention_3", "flash-attn": "flash_attention_2"}
"""Packages of flash attention, the fastest first, with transformers' names for them."""

SUPPORTS = {
    "flash": "_supports_flash_attn",
    "flex": "_supports_flex_attn",
    "sdpa": "_supports_sdpa",
}
"""Attributes of a model's class that say what it supports; every class supports eager."""

MASKED = ("sdpa", "eager")
"""Implementations that need a mask of one byte per pair of a batch's tokens."""

SCALED_LOGITS = ("logits_scaling", "lm_head_multiplier")
"""Fields of configs by which Granite, HyperCLOVA X and Falcon-H1 scale logits after the head."""

BITSANDBYTES = (
    "adamw_bnb_8bit adamw_8bit ademamix ademamix_8bit lion_8bit lion_32bit rmsprop_bnb "
    "rmsprop_bnb_8bit rmsprop_bnb_32bit paged_adamw_32bit paged_adamw_8bit paged_ademamix_32bit "
    "paged_ademamix_8bit paged_lion_32bit paged_lion_8bit"
).split()

OPTIMIZERS = {
    **dict.fromkeys(BITSANDBYTES, "bitsandbytes"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), "torchao"),
    **dict.fromkeys(("lomo", "adalomo"), "lomo-optim"),
    "grokadamw": "grokadamw",
    "stable_adamw": "torch-optimi",
}
"""The package of each transformers optimizer that needs another one."""

OPTIMIZER_FAMILIES = {
    "galore": "galore-torch",
    "apollo": "apollo-torch",
    "schedule_free": "schedulefree",
}
"""The same, by the prefix of the optimizers' names."""

LIGER_TABLE = "MODEL_TYPE_TO_APPLY_LIGER_FN"
"""Name of liger-kernel's table of model families."""


def attention_problem(kind: str, dtype: str) -> str | None:
    """Return why this machine cannot use an attention `kind` with `dtype` weights, or None."""
    if kind in ("flash", "flex") and not visible_devices():
        return f"attention={kind} needs a GPU: leave it out"
    if kind == "flash" and installed_flash() is None:
        return (
            "attention=flash needs flash-attn: pip install flash-attn --no-build-isolation, or "
            "leave it out"
        )
    if kind == "flash" and dtype == "float32":
        return (
            "attention=flash does not support float32 weights: set dtype=bfloat16, or leave it out"
        )
    return None


def may_need_mask(kind: str) -> bool:
    """Whether a kind of attention may need a mask."""
    return kind in MASKED or (kind == "auto" and not visible_devices())


def installed_flash() -> str | None:
    """Return transformers' name of the installed flash attention."""
    return next((name for package, name in FLASH.items() if installed(package)), None)


def attention_kernel(kind: str, model: "type[PreTrainedModel]", dtype: str) -> str | None:
    """Return transformers' name of an attention, None for its default; ConfigError if unknown."""
    if kind != "auto":
        if name := _implementation(kind, model):
            return name
        supported = [each for each in SUPPORTS if _implementation(each, model)]
        raise ConfigError(
            f"attention={kind}: {model.__name__} does not support it; leave it out, or use "
            f"{' or '.join([*supported, 'eager'])}"
        )
    import torch

    if not torch.cuda.is_available():  # CUDA_VISIBLE_DEVICES may name absent devices
        return None
    usable = (each for each in ("flash", "flex") if attention_problem(each, dtype) is None)
    return next((name for each in usable if (name := _implementation(each, model))), None)


def use_attention(kind: str, model: "PreTrainedModel", dtype: str) -> None:
    """Set a model's attention; raises ConfigError if the model does not support it."""
    name = attention_kernel(kind, type(model), dtype)
    if name is None:
        return
    if name == "flex_attention":
        _repair_flex()
    with naming(f"attention={kind}", ValueError, ImportError):
        model.set_attn_implementation(name)
    if (used := model.config._attn_implementation) != name and kind != "auto":
        raise ConfigError(
            f"attention={kind}: {type(model).__name__} always uses {used}; leave it out"
        )


def _repair_flex() -> None:
    """Make models call flex attention in a way that works for short rows and mixed types.

    For less than 128 tokens torch 2.11 chooses its kernel for decoding, and fails if tokens times
    query heads per key head exceed 128. And it refuses queries and values of different types, which
    a norm with float32 weights leaves behind under autocast.
    """
    import torch
    from transformers import AttentionInterface
    from transformers.integrations import flex_attention

    def _attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        **options: Any,
    ) -> Any:
        device, states = query.device.type, (query, key, value)
        if torch.is_autocast_enabled(device):
            states = tuple(state.to(torch.get_autocast_dtype(device)) for state in states)
        options["kernel_options"] = {"BACKEND": "TRITON"}
        return flex_attention.flex_attention_forward(module, *states, attention_mask, **options)

    AttentionInterface.register("flex_attention", _attend)


def _implementation(kind: str, model: "type[PreTrainedModel]") -> str | None:
    """Return transformers' name of a kind of attention, if the model's class supports it."""
    if kind in SUPPORTS and not getattr(model, SUPPORTS[kind]):
        return None
    if kind == "flash":
        name = installed_flash()
        compatible = getattr(model, "_compatible_flash_implementations", None)
        return name if compatible is None or name in compatible else None
    return "flex_attention" if kind == "flex" else kind


def missing_requirements(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Refuse fields of SFTConfig that need a package, device or compiler this machine lacks."""
    has_gpu, compiles = bool(visible_devices()), arguments.get("torch_compile") is True
    if arguments.get("activation_offloading") is True and not has_gpu:
        yield "activation_offloading=true needs a GPU: leave it out"
    # torch.compile emits Triton on a GPU and C++ on a CPU.
    if compiles and has_gpu and importlib.util.find_spec("triton") is None:
        yield "torch_compile=true needs Triton on a GPU: pip install triton, or leave it out"
    if compiles and not has_gpu and shutil.which(os.environ.get("CXX", "g++")) is None:
        yield "torch_compile=true needs a C++ compiler: install g++, or leave it out"
    name = str(arguments.get("optim"))
    families = (package for start, package in OPTIMIZER_FAMILIES.items() if name.startswith(start))
    package = OPTIMIZERS.get(name) or next(families, None)
    if package and not installed(package):
        yield f"optim={name} needs {package}: pip install {package}, or leave it out"
    elif name.startswith("paged_") and not has_gpu:
        yield f"optim={name} needs a GPU to page from: use one without paged_, or leave it out"


def liger_problems(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Refuse fields of SFTConfig and machines that kernels=liger does not support."""
    if arguments.get("loss_type") == "chunked_nll":
        yield (
            "trainer.args.loss_type=chunked_nll has no effect with kernels=liger, which "
            "replaces the loss: leave it out"
        )
    if smoothing := arguments.get("label_smoothing_factor"):
        yield (
            f"trainer.args.label_smoothing_factor={smoothing} has no effect with kernels=liger: "
            "its loss does not smooth labels"
        )
    if not visible_devices():
        yield "kernels=liger needs a GPU with Triton: leave it out"
    elif importlib.util.find_spec("liger_kernel") is None:
        yield "kernels=liger needs liger-kernel: pip install liger-kernel, or leave it out"


def refuse_unsupported_family(kernels: str, model_type: str) -> None:
    """Refuse a model that liger-kernel would leave unchanged with only a warning."""
    if kernels == "liger" and model_type not in (known := liger_families()):
        raise ConfigError(
            f"kernels=liger: liger-kernel has no kernels for {model_type}, only for "
            f"{', '.join(sorted(known))}: leave it out"
        )


def liger_families() -> set[str]:
    """Return liger-kernel's model families, read from its source: importing it needs Triton."""
    spec = importlib.util.find_spec("liger_kernel")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "transformers" / "monkey_patch.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == LIGER_TABLE:
            assert isinstance(node.value, ast.Dict)
            return {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
    return set()


def refuse_adapted_head(model: "PreTrainedModel", reader: str) -> None:
    """Refuse low-rank updates of the output head, of which a loss reads the weights alone.

    `model` has its adapter, `reader` is the setting that chose the loss. Weights that PEFT trains
    as a whole, it also returns as those of the head.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    head = model.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        name = next(name for name, module in model.named_modules() if module is head)
        raise ConfigError(
            f"{reader} computes the loss without the output head's adapter: remove "
            f"{name.rpartition('.')[2]} from adapter.target_modules"
        )


def undoing_patches(model: "PreTrainedModel") -> AbstractContextManager[None]:
    """Undo liger-kernel's process-wide patches after the body: final/ is measured without them.

    Besides the (unwrapped) model it patches functions and classes in its architecture's module.
    """
    module = sys.modules[type(model).__module__]
    return attributes(module, **vars(module))


def balance_experts(model: "PreTrainedModel", arguments: "SFTConfig") -> None:
    """Turn off TRL's loss that balances experts for a model without one, such as Llama 4.

    Raises ConfigError if the config asks for it all the same, or TRL's chunked loss lacks it.
    """
    config = model.config.get_text_config()
    if not hasattr(config, "output_router_logits"):
        return
    given = arguments.router_aux_loss_coef
    weight = getattr(config, "router_aux_loss_coef", 0) if given is None else given
    modules = (sys.modules[kind.__module__] for kind in type(model).__mro__)
    if not any(hasattr(module, "load_balancing_loss_func") for module in modules):
        if given:
            raise ConfigError(
                f"trainer.args.router_aux_loss_coef={given}: {config.model_type} has no loss that "
                "balances its experts: leave it out"
            )
        arguments.router_aux_loss_coef = 0.0
    elif weight and arguments.loss_type == "chunked_nll" and not hasattr(config, "num_experts"):
        raise ConfigError(
            f"trainer.args.loss_type=chunked_nll: TRL cannot balance the experts of "
            f"{config.model_type} with it: set trainer.args.loss_type=nll, or "
            "trainer.args.router_aux_loss_coef=0"
        )


def scales_logits(config: "PretrainedConfig") -> bool:
    """Return whether a model scales its logits in a way that TRL 1.14's chunked loss ignores."""
    text = config.get_text_config()
    return any(getattr(text, name, 1) != 1 for name in SCALED_LOGITS)
