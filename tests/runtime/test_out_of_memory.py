"""Failed allocations become errors with advice."""

import pytest
import torch

from lamina.errors import TrainingError
from lamina.runtime.device import is_memory_error, memory_errors


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't "
                     "allocate memory: you tried to allocate 40 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)  # fmt: skip
def test_a_memory_error_is_recognized(error: Exception) -> None:
    assert is_memory_error(error)
    with (
        pytest.raises(TrainingError, match=r"^out of memory: the training does not fit; do less$"),
        memory_errors("the training", lambda: "do less"),
    ):
        raise error


def test_the_memory_error_of_a_cpu_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_memory_error(caught.value)


def test_an_error_with_advice_is_left_unchanged() -> None:
    with (
        pytest.raises(TrainingError, match=r"^out of memory: the training does not fit; do less$"),
        memory_errors("the model", lambda: "do more"),
        memory_errors("the training", lambda: "do less"),
    ):
        raise MemoryError


def test_other_errors_are_left_unchanged() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        memory_errors("it", lambda: "do less"),
    ):
        raise RuntimeError("shapes cannot be multiplied")
