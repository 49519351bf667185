"""liger-kernel: Triton kernels that take the place of a model's norms, MLP, RoPE and loss."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.errors import ConfigError
from lamina.runtime.device import visible_devices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = "MODEL_TYPE_TO_APPLY_LIGER_FN"
"""The name of liger-kernel's table of model families."""


def problem(asked: str) -> str | None:
    """Say why this machine cannot do what is asked for, or return nothing; torch is not imported.

    Args:
        asked: Value of kernels.
    """
    if asked != "liger":
        return None
    if not visible_devices():
        return "kernels=liger needs a GPU with Triton: leave it out"
    if importlib.util.find_spec("liger_kernel") is None:
        return "kernels=liger needs liger-kernel: pip install liger-kernel, or leave it out"
    return None


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
        named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == FAMILIES
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
