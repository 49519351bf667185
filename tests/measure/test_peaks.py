"""What accelerators compute at most: stated for the known ones, never guessed for others."""

import pytest

from lamina.measure.peaks import compute_peak, peak_flops


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA B200", 2250),
    ],
)
def test_a_known_device_has_its_dense_bfloat16_peak(device: str, tera: float) -> None:
    assert peak_flops(device, "bfloat16") == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA A10G",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "AMD Instinct MI300X",
    ],
)
def test_a_device_of_a_similar_name_has_none(device: str) -> None:
    assert peak_flops(device, "bfloat16") is None


def test_a_type_has_its_own_peak_or_none() -> None:
    assert peak_flops("NVIDIA H200", "tf32") == pytest.approx(494.7e12)
    assert peak_flops("NVIDIA H200", "float32") == pytest.approx(66.9e12)
    assert peak_flops("Tesla V100-SXM2-16GB", "float16") == 125e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bfloat16") is None


@pytest.mark.parametrize(
    ("bf16", "fp16", "weights", "precision", "tera"),
    [
        (True, False, "float32", "highest", 989.4),
        (False, True, "float32", "highest", 989.4),
        (False, False, "bfloat16", "highest", 989.4),
        (False, False, "float32", "high", 494.7),
        (False, False, "float32", "highest", 66.9),
    ],
)
def test_the_peak_is_that_of_the_type_that_is_multiplied(
    bf16: bool,
    fp16: bool,
    weights: str,
    precision: str,
    tera: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: precision)
    assert compute_peak(bf16=bf16, fp16=fp16, weights=weights) == pytest.approx(tera * 1e12)


def test_without_an_accelerator_there_is_none() -> None:
    assert compute_peak(bf16=False, fp16=False, weights="float32") is None
