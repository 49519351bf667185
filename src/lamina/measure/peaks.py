"""What accelerators can compute at most, for the share of it that a training reaches.

Dense TFLOP/s from NVIDIA's data sheets and, for GeForce cards, its architecture papers (products of
bfloat16 added up in float32), not those with sparsity, at the clock stated there.
A name must match as a whole: other cards of similar names (a laptop's, a share made with MIG, the
RTX 4090 D) have other figures.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Dense TFLOP/s of one accelerator; None where it does not compute in that type itself."""

    name: str
    """Pattern of `torch.cuda.get_device_name`, without the maker."""

    bfloat16: float | None
    float16: float
    tf32: float | None
    """float32 multiplied with TensorFloat-32, where torch is told to."""
    float32: float


def _peak(name: str, half: float, tf32: float, float32: float) -> Peak:
    return Peak(name=name, bfloat16=half, float16=half, tf32=tf32, float32=float32)


PEAKS = (
    _peak(r"B200", 2250, 1125, 75),
    _peak(r"H200|H100 80GB HBM3|H100 SXM5.*|GH200 .*", 989.4, 494.7, 66.9),
    _peak(r"H100 NVL|H200 NVL", 835.5, 417.5, 60),
    _peak(r"H100 PCIe", 756, 378, 51),
    _peak(r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe", 312, 156, 19.5),
    _peak(r"L40S", 362, 183, 91.6),
    _peak(r"A10", 125, 62.5, 31.2),
    _peak(r"L4", 121, 60, 30.3),
    _peak(r"GeForce RTX 4090", 165.2, 82.6, 82.6),
    _peak(r"GeForce RTX 3090", 71, 35.6, 35.6),
    Peak(name=r"V100-SXM2-\d+GB", bfloat16=None, float16=125, tf32=None, float32=15.7),
    Peak(name=r"V100-PCIE-\d+GB", bfloat16=None, float16=112, tf32=None, float32=14),
)


def peak_flops(device: str, dtype: str) -> float | None:
    """Return what a device can compute in a second at most, in floating-point operations.

    Args:
        device: As `torch.cuda.get_device_name` says it.
        dtype: A field of `Peak`.

    Returns:
        None for a device that is not in the table, or does not compute in that type.
    """
    name = re.sub(r"^(NVIDIA|Tesla) ", "", device)
    found = next((peak for peak in PEAKS if re.fullmatch(peak.name, name)), None)
    tera = getattr(found, dtype) if found else None
    return None if tera is None else tera * 1e12


def compute_peak(*, bf16: bool, fp16: bool, weights: str) -> float | None:
    """Return the peak of this process's accelerator in the type that a training multiplies in.

    Args:
        bf16: Whether it runs under bfloat16 autocast.
        fp16: Whether it runs under float16 autocast.
        weights: Type of the weights, torch's name without the module.

    Returns:
        None without an accelerator, or for one whose peak is not known: it is never guessed.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    dtype = "bfloat16" if bf16 else "float16" if fp16 else weights
    if dtype == "float32" and torch.get_float32_matmul_precision() != "highest":
        dtype = "tf32"
    return peak_flops(torch.cuda.get_device_name(), dtype)
