"""What the page gets: columns, curves, settings, scales; its policy, and its picture."""

import base64
import json
import re
import sys
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lamina.errors import OutputError
from lamina.measure.tasks.items import ROWS
from lamina.report.page.charts import charts
from lamina.report.page.columns import columns, measures
from lamina.report.page.content import MOST_POINTS, content, curve, differing, progress
from lamina.report.page.document import write_page
from lamina.report.page.drawing import lowest_end, scaled
from lamina.report.page.picture import picture
from lamina.report.page.vega import png
from lamina.report.report_files import markdown
from lamina.report.runs import Report, RunRow
from lamina.report.sweep_table import SweepTable
from lamina.report.tables import provenance_lines, seed_table, task_lines
from lamina.runtime.console import console


def row(**given: Any) -> RunRow:
    return RunRow(
        **{"name": "run", "folder": "/runs/0", "sweep": None, "status": "completed"} | given
    )


def report(rows: list[RunRow]) -> Report:
    return Report(title="", made_at="", rows=rows, scans=[], broken=[])


ACCURACY = {"value": 0.9, "stderr": 0.1, "n": 9, "chance": 0.25}
FIGURES = {"arc": {"acc": {"original": {**ACCURACY, "value": 1.0}, "final": ACCURACY}}}
LOSSES = {
    "text": {name: {"final": {**ACCURACY, "chance": None}} for name in ("loss", "perplexity")}
}


def test_a_task_is_a_measure_with_an_interval() -> None:
    loss, accuracy = measures([row(tasks=FIGURES)])
    assert (loss.label, accuracy.label, accuracy.kind) == ("Healed loss", "arc acc", "share")
    assert accuracy.is_higher_better
    assert accuracy.of(row(tasks=FIGURES)) == {
        "value": 0.9,
        "low": pytest.approx(0.9 - 0.196),
        "high": 1.0,  # a share is no larger
    }
    assert accuracy.reference(row(tasks=FIGURES)) == 1.0
    assert accuracy.chance(row(tasks=FIGURES)) == 0.25
    assert accuracy.of(row()) is accuracy.reference(row()) is None


def test_the_direction_of_a_metric_is_that_of_its_library() -> None:
    said = {"bits_per_byte": False, "acc_bytes": True, "exact_match get-answer": None}
    final = {name: {"final": {**ACCURACY, "higher_is_better": each}} for name, each in said.items()}
    found = measures([row(), row(tasks={"wikitext": final})])[1:]
    assert [each.is_higher_better for each in found] == [False, True, True]


def test_what_another_loss_says_is_left_out() -> None:
    assert [each.label for each in measures([row(tasks=LOSSES)])] == ["Healed loss", "text loss"]
    alone = {"text": {"perplexity": LOSSES["text"]["perplexity"]}}
    own = row(tasks={ROWS: LOSSES["text"]}, healed_loss=0.9)  # its loss is the healed one
    assert [each.label for each in measures([own])] == ["Healed loss"]
    assert [each.label for each in measures([replace(own, healed_loss=None)])] == [
        "Healed loss",
        "eval_rows loss",
    ]
    (_, perplexity) = measures([row(tasks=alone)])
    assert (perplexity.label, perplexity.is_higher_better) == ("text perplexity", False)


def test_columns_without_figures_are_left_out() -> None:
    rows = [row(layers=3, overrides=["seed=1", "+a=x=y"]), row(overrides=["seed=2", "+a=x=y"])]
    assert [each.label for each in columns(rows)] == ["Run", "Layers", "Status", "seed"]


def test_a_comparison_is_shown_beside_its_figures() -> None:
    compared = {"difference": -0.1, "low": -0.2, "high": 0.05, "p": 0.3, "retention": 90.0}
    compared |= {"retention_low": 80.0, "retention_high": 105.0, "is_within_noise": True}
    found = row(
        tasks=FIGURES, comparisons={"arc": {"acc": compared}}, standings={"arc": {"acc": "best"}}
    )
    figures = ["arc acc", "9", "0.25", "1 ± 0.2", "", "0.9 ± 0.2"]
    compared_text = ["within noise", "best", "-0.1 (-0.2 to +0.05)", "0.3", "90 % (80 to 105)"]
    assert [*task_lines(found)] == [[*figures, *compared_text]]
    assert [*task_lines(row(tasks=FIGURES))] == [[*figures, "", "", "", "", ""]]


def test_a_curve_begins_with_the_reduced_model_and_is_thinned_out() -> None:
    history = [
        {"step": step, "tokens": 10 * step, "eval_loss": None if step % 2 else 1 / step}
        for step in range(1, 2001)
    ]
    drawn = curve(row(history=history, reduced_loss=7.0))
    assert (drawn["step"][0], drawn["tokens"][0], drawn["loss"][0]) == (0, 0, 7.0)
    assert (drawn["step"][-1], drawn["tokens"][-1]) == (2000, 20000)
    assert MOST_POINTS / 2 < len(drawn["loss"]) <= MOST_POINTS + 1
    assert None not in drawn["loss"]
    assert curve(row(reduced_loss=7.0)) == {"step": [], "tokens": [], "loss": []}


@pytest.mark.parametrize(("tokens", "unit"), [(512, "tokens read"), (None, "optimizer steps")])
def test_healing_is_drawn_against_tokens_or_steps(tokens: int | None, unit: str) -> None:
    entry = {"step": 1, "tokens": tokens, "eval_loss": 2.5}
    given = [row(history=[entry]), row(history=[entry | {"tokens": 512}])]
    (drawn,) = charts(report(given))
    assert drawn["title"] == f"Evaluation loss against {unit}"
    assert drawn["spec"]["layer"][0]["encoding"]["x"]["title"] == unit


def test_losses_on_other_rows_do_not_compare() -> None:
    """The page, report.md and the console say so."""
    given = [row(rank=place, eval_fingerprint=f"rows {place}") for place in (1, 2)]
    given[0] = replace(given[0], is_best=True)
    drawn = console(width=100)
    with drawn.capture() as shown:
        drawn.print(SweepTable(given))
    said = "Losses were measured on different rows: they do not compare."
    for text in (progress(report(given)), markdown(report(given)), shown.get()):
        assert said in text
    assert progress(report(given[:1])) == "1 runs: 1 completed. Made  UTC."


def test_a_cost_that_all_runs_share_has_no_chart() -> None:
    figures = {"healed_loss": 2.5, "parameters": 10}
    given = [row(**figures, layers=3), row(**figures, layers=4), row(status="failed", layers=5)]
    assert [each["id"] for each in charts(report(given))] == ["chart-loss-layers"]
    assert charts(report(given[1:])) == []


def test_the_spread_between_seeds() -> None:
    best = {"runs": 2, "mean": 2.5, "half_width": 0.123, "standing": "best"}
    near = {**best, "mean": 0.5, "standing": "within noise of the best"}
    apart = {**best, "mean": 2e9, "half_width": 1e6, "standing": None}
    hidden = dict.fromkeys(("eval_rows/loss", "arc/ended"), best)
    spread = {"healed_loss": best, "peak_memory_bytes": apart, "arc/acc": near, **hidden}
    rows = [row(own=["rate=1", f"seed={seed}"], seed_spread=spread) for seed in (1, 2)]
    assert seed_table([*rows, row()]) == [
        ["setting", "seeds", "healed loss", "arc acc", "training (s)", "peak memory"],
        ["rate=1", "2", "2.5 ± 0.123 *", "50.0 % ± 12.3 % ~", "", "2 GB ± 1 MB"],
    ]
    assert len(seed_table([row()])) == 1


def test_settings_that_differ() -> None:
    configs = [{"rate": 1, "same": 2}, {"rate": 1, "same": 2}, {"rate": 3, "same": 2, "own": None}]
    assert differing(configs) == [["rate", "1 (2), 3 (1)"]]
    many = [{"seed": number} for number in range(20)]
    assert differing(many)[0][1].endswith("11 (1), and 8 more")
    assert [*provenance_lines([{"torch": "2"}, {}, {"torch": "2", "gpu": "a"}, {"gpu": "b"}])] == [
        ["torch", "2"],
        ["gpu", "a (1), b (1)"],
    ]


@pytest.mark.parametrize(
    ("values", "kind", "ticks"),
    [
        ([1.0, 1.5, 2.0], None, None),
        ([0.01, 0.5, 9.0], "log", [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]),
        ([1e-9, 1.0], "log", [1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]),
        ([-0.01, 0.02, 0.03, 40.0], "symlog", None),
        ([0.0, 0.0], None, None),
        ([], None, None),
    ],
)
def test_values_that_are_far_apart_get_a_logarithm(
    values: list[float], kind: str | None, ticks: list[float] | None
) -> None:
    drawn = scaled(values)
    assert drawn["scale"].get("type") == kind
    shown = drawn["axis"].get("values")
    assert shown == (pytest.approx(ticks[:: len(ticks) // len(shown)]) if ticks else None)
    assert lowest_end(drawn, values) == (min(values) / 2 if kind == "log" else float("-inf"))


def test_the_policy_names_every_script_and_style(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    parts = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", text, flags=re.DOTALL)
    assert len(parts) == 3
    for part in parts:
        digest = base64.b64encode(sha256(part.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert re.findall(r"<(?:link|img|iframe|script src)", text.partition("<script")[0]) == []
    (content,) = re.findall(r'id="content">(.*?)</script>', text, flags=re.DOTALL)
    assert "<" not in content
    assert json.loads(content)["isFinished"]


def test_the_picture(written: Path) -> None:
    with Image.open(written / "report.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 1200
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24) or ()) > 100


def test_a_run_without_a_healed_loss_leaves_the_picture_whole() -> None:
    runs = [
        row(dropped_layers=[layer], reduced_loss=3.0, healed_loss=loss)
        for layer, loss in enumerate([2.0, 2.5, None])
    ]
    shown = content(report(runs))
    assert [each["id"] for each in shown["charts"]] == ["chart-dropped"]
    with Image.open(BytesIO(picture(shown["charts"], shown["rows"]))) as drawn:
        assert drawn.width > 600


def test_a_converter_that_fails_is_one_line() -> None:
    with pytest.raises(OutputError) as refused:
        png({"mark": "no such mark"}, 1)
    assert str(refused.value).startswith(
        "charts cannot be drawn: Vega-Lite to PNG conversion failed"
    )
    assert "\n" not in str(refused.value)


def test_the_engine_stays_out_of_this_process(written: Path) -> None:
    assert "vl_convert" not in sys.modules


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"report\.html cannot be written"):
        write_page(report([]), tmp_path / "file")
