"""The closing table's figures of tasks."""

from pathlib import Path
from typing import Any

from lamina.measure.tasks.files import Metric
from lamina.report.evaluation_table import comparison_rows
from tests.measure.test_comparison import write


def test_figures_that_are_not_compared_stay_beside_those_that_are(tmp_path: Path) -> None:
    strict = {"exact_match strict-match": Metric(value=0.2, stderr=0.1, n=10)}
    changes: dict[str, Any] = {"kind": "generation", "metrics": strict}
    for role in ("original", "final"):
        write(tmp_path / "evaluation" / role, [True] * 10, role=role, **changes)
    assert [*comparison_rows(tmp_path)] == [
        ("arc exact_match strict-match", "0.2 ± 0.196", "10 items"),
        ("wiki loss", "2.1", "retains 90.5 % (90.5 to 90.5), within noise, original 2"),
        ("wiki perplexity", "7.4 ± 1.372", "3 documents"),
    ]


def test_what_was_measured_in_another_way_keeps_its_figures(tmp_path: Path) -> None:
    for role, way in (("original", {"few_shot": 0}), ("final", {"few_shot": 5})):
        write(tmp_path / "evaluation" / role, [True, False], role=role, protocol=way)
    rows = [*comparison_rows(tmp_path)]
    assert rows[0] == ("arc", "", "not comparable with the original's: few_shot is 0 and 5")
    assert rows[1] == ("arc acc", "50.0 % ± 19.6 %", "2 items, chance 25.0 %")
