"""The GPU table: its comparisons, its aims, and resuming from its JSON file."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def figures(rate: float, flops: float = 100.0) -> dict[str, Any]:
    """Return a cell's figures, with that many operations per token."""
    return {
        "tokens_per_second": rate,
        "flops_per_second": rate * flops,
        "mfu": 0.4,
        "peak_memory_bytes": 3 * 2**30,
    }


def table() -> dict[Any, dict[str, Any]]:
    from harness.gpu_cells import PLAIN, Cell

    return {
        Cell("transformers", "none", "lora", 36): figures(12_500),
        Cell(PLAIN, "none", "lora", 36): figures(10_000),
        Cell("unsloth", "none", "lora", 36): figures(9_000),
        Cell("transformers", "none", "lora", 24): figures(18_000, 70),
        Cell("transformers", "liger", "full", 36): {"reason": "no GPU", "failed": False},
        Cell(PLAIN, "liger", "full", 36): {"reason": "no GPU", "failed": False},
    }


def test_the_aims_say_what_is_met_and_what_was_not_measured() -> None:
    from harness.gpu_table import goals

    assert [str(goal) for goal in goals(table(), 36)] == [
        "met: lora, 36 layers, tokens/s: 12,500, at least 12,000",
        "not met: full, 36 layers, tokens/s: not measured, at least 6,000",
        "not met: tokens/s over plain TRL's, the least: 0.900, at least 1",
        "met: depth speed-up over the ideal, the least: 1.008, at least 0.9",
    ]


def test_the_table_has_a_row_for_each_figure_and_a_line_for_each_reason() -> None:
    from harness.gpu_table import markdown

    lines = markdown(table()).splitlines()
    assert lines[2] == (
        "| lora | 36 | none | transformers | 12,500 | 40.0% | 3.0 GiB | 1.250 |  |  |"
    )
    assert lines[5] == (
        "| lora | 24 | none | transformers | 18,000 | 40.0% | 3.0 GiB |  | 1.440 | 1.008 |"
    )
    assert lines[7:] == [
        "- transformers, kernels=liger, full, 36 layers; plain TRL, kernels=liger, full, 36 "
        "layers: no GPU"
    ]


def test_every_cell_of_the_matrix_has_a_peer() -> None:
    from harness.gpu_cells import PLAIN, matrix

    cells = list(
        matrix(
            ["transformers", PLAIN, "unsloth"], ["none", "liger"], ["lora", "full"], [36, 28, 24]
        )
    )
    assert len(cells) == len(set(cells)) == 36
    assert {cell.peer for cell in cells} == {cell for cell in cells if cell.backend == PLAIN}


def test_figures_of_another_commit_are_refused(tmp_path: Path) -> None:
    from gpu import Notebook
    from harness.gpu_cells import Cell

    about = {"size": "8b", "device": "1 x GPU", "versions": {}, "commit": "a"}
    path, cell = tmp_path / "gpu.json", Cell("transformers", "none", "lora", 36)
    Notebook(path, about, again=False).keep("cells", str(cell), figures(1.0))
    assert Notebook(path, about, again=False).found([cell]) == {cell: figures(1.0)}
    other = {**about, "commit": "b"}
    with pytest.raises(SystemExit, match="was measured with another commit: use another --json"):
        Notebook(path, other, again=False)
    assert Notebook(path, other, again=True).found([cell]) == {}
    assert json.loads(path.read_text())["commit"] == "a"


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (
            "loading\nerror: kernels=liger\nbackend=unsloth\n",
            "error: kernels=liger; backend=unsloth",
        ),
        ("Traceback\n  File x\nImportError: no such thing\n", "ImportError: no such thing"),
        ("", "it printed nothing"),
    ],
)
def test_a_reason_is_the_error_that_was_printed(printed: str, said: str) -> None:
    from harness.gpu_cells import reason

    assert reason(printed) == said
