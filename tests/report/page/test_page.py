"""The page in a real browser: charts, keyboard, roles and contrast, and what it asks for."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamina.report.page.document import write_page
from tests.conftest import CACHE
from tests.report.page.conftest import DESKTOP, PHONE, Open, drawn, made, until

AXE = Path(__file__).parent / "axe" / "axe.min.js"

MARKS = "svg .mark-symbol path, svg .mark-rect path, svg .mark-line path"


def test_every_chart_has_marks_and_nothing_goes_wrong(written: Path, opened: Open) -> None:
    found = opened(written / "report.html")
    figures = found.page.locator("figure")
    counts = {figure.get_attribute("id"): figure.locator(MARKS).count() for figure in figures.all()}
    assert set(counts) == {
        *(f"chart-loss-{cost}" for cost in ("layers", "parameters", "bytes", "decode")),
        "chart-dropped",
        "chart-healing",
        "chart-layers-0",
        "chart-blocks-0",
        "chart-influence-0",
    }
    assert min(counts.values()) >= 10, counts
    assert counts["chart-blocks-0"] >= 24 * 25 / 2
    assert (found.complaints, found.requests) == ([], [])


def test_every_measure_has_charts(written: Path, opened: Open) -> None:
    found = opened(written / "report.html")
    measures = found.page.locator("#measure option").all_inner_texts()
    assert measures == ["Healed loss", "arc_easy acc", "piqa acc"]
    for measure in measures:
        found.page.select_option("#measure", measure)
        until(
            found.page,
            "name => [...document.querySelectorAll('#quality figure')].length === 4 &&"
            " [...document.querySelectorAll('#quality svg')].every("
            "svg => svg.getAttribute('aria-label')?.startsWith(name))",
            measure,
        )
        marks = found.page.locator("#quality figure").first.locator("svg .mark-symbol path")
        assert marks.count() == 10
    assert found.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_contrast_roles_and_width(
    written: Path, opened: Open, size: dict[str, int], scheme: str
) -> None:
    found = opened(written / "report.html", size, scheme)
    found.page.locator("#every-setting summary").click()
    found.page.evaluate(AXE.read_text(encoding="utf-8") + "; 0")
    violations: list[dict[str, Any]] = found.page.evaluate(
        "async () => (await axe.run()).violations.map(({id, impact, nodes}) =>"
        " ({id, impact, html: nodes.map((node) => node.html.slice(0, 200))}))"
    )
    assert violations == []
    assert found.page.evaluate("document.documentElement.scrollWidth") == size["width"]


def test_a_hostile_name_stays_text(written: Path, opened: Open) -> None:
    found = opened(written / "report.html")
    (name,) = [name for name in found.names() if "script" in name]
    assert "</script><script>document.title = 'owned'</script>" in name
    assert "<img src=x onerror=alert(1)>" in name
    assert not {"\x1b", "\u202e"} & set(found.page.content())
    assert found.page.title() == "sweep, scan"
    assert found.page.locator("img").count() == 0
    assert (found.complaints, found.requests) == ([], [])


def press_until(page: Any, key: str, id_: str, most: int = 60) -> None:
    """Press a key until an element has the focus."""
    for _ in range(most):
        if page.evaluate("document.activeElement.id") == id_:
            return
        page.keyboard.press(key)
    raise AssertionError(f"{key} does not reach {id_}")


def by_number(name: str) -> list[Any]:
    """Order drop-5 before drop-10, as the table does."""
    parts = re.split(r"(\d+)", name.lstrip("◆●"))
    return [int(part) if part.isdigit() else part for part in parts]


def test_sorting_by_keyboard(written: Path, opened: Open) -> None:
    found = opened(written / "report.html")
    keyboard, ranked = found.page.keyboard, found.names()
    press_until(found.page, "Tab", "sort-rank")
    press_until(found.page, "ArrowRight", "sort-loss")
    header = found.page.locator("th:has(#sort-loss)")
    keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert found.names() == ranked
    keyboard.press("Enter")  # the focus stays where it was
    assert header.get_attribute("aria-sort") == "descending"
    assert found.names() == [*reversed(ranked[:10]), *ranked[10:]]  # those without a loss are last
    press_until(found.page, "ArrowLeft", "sort-name")
    keyboard.press("Enter")
    assert header.get_attribute("aria-sort") is None
    assert found.names() == sorted(ranked, key=by_number)


def test_filtering_and_grouping_by_keyboard(written: Path, opened: Open) -> None:
    found = opened(written / "report.html")
    page, keyboard = found.page, found.page.keyboard
    symbols = page.locator("#chart-loss-layers svg .mark-symbol path")
    press_until(page, "Tab", "filter")
    keyboard.type("adapter=lora pruned")
    assert {"keep" in name and "lora" in name for name in found.names()} == {True}
    count = len(found.names())
    assert page.locator("#count").inner_text() == f"{count} of 11 runs"
    until(
        page,
        f"document.querySelectorAll('#chart-loss-layers .mark-symbol path').length === {count}",
    )
    keyboard.press("Control+a")
    keyboard.press("Delete")
    press_until(page, "Tab", "show")
    keyboard.press("ArrowDown")
    assert len(found.names()) == 2
    keyboard.press("ArrowUp")
    press_until(page, "Tab", "group")
    keyboard.press("ArrowDown")
    groups = page.locator("#ranking .group").all_inner_texts()
    assert groups == ["model=dropped: 8", "model=pruned: 3"]
    assert len(found.names()) == 11
    until(page, "document.querySelectorAll('#chart-loss-layers .mark-symbol path').length === 10")
    assert symbols.count() == 10
    assert found.complaints == []


def test_the_table_scrolls_by_arrow_keys(written: Path, opened: Open) -> None:
    found = opened(written / "report.html", PHONE)
    region = found.page.locator("#runs .wide")
    region.focus()
    for _ in range(3):
        found.page.keyboard.press("ArrowRight")
    until(found.page, "document.querySelector('#runs .wide').scrollLeft > 0")


def test_the_best_and_what_is_close_to_it_are_marked(written: Path, opened: Open) -> None:
    found = opened(written / "report.html")
    marks = found.page.locator("#ranking .name .mark")
    labels = [mark.get_attribute("aria-label") for mark in marks.all()]
    assert labels == ["best", "within noise"]
    of_tasks = found.page.locator("#ranking td .mark")
    labels = [mark.get_attribute("aria-label") for mark in of_tasks.all()]
    assert labels.count("best") == 2  # one for each task
    assert set(labels) == {"best", "within noise of the best"}
    assert found.page.locator("#headline").inner_text().startswith("Best: ")


def test_an_unfinished_page_reloads_and_keeps_its_state(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_CACHE", CACHE.name)
    path = tmp_path / "report.html"
    write_page(made(tmp_path, is_finished=False), tmp_path)
    found = opened(path)
    page = found.page
    assert "1 missing; the page reloads itself" in page.locator("#progress").inner_text()
    page.clock.install()
    page.reload()
    drawn(page)
    page.fill("#filter", "lora")
    page.locator("#sort-name").click()
    names = found.names()
    page.locator("#filter").focus()
    page.evaluate("scrollTo(0, 333)")
    found.requests.clear()
    with page.expect_navigation():
        page.clock.fast_forward(11_000)
    drawn(page)
    assert [url.partition("#")[0] for url in found.requests] == [path.as_uri()]
    assert page.input_value("#filter") == "lora"
    assert found.names() == names
    until(page, "scrollY === 333 && document.activeElement.id === 'filter'")


def test_a_finished_page_does_not_reload(written: Path, opened: Open) -> None:
    found = opened(written / "report.html")
    found.page.clock.install()
    found.page.reload()
    drawn(found.page)
    found.requests.clear()
    found.page.clock.fast_forward(60_000)
    assert found.requests == []


def test_print_has_no_controls_and_fits_the_paper(written: Path, opened: Open) -> None:
    found = opened(written / "report.html", {"width": 1040, "height": 720}, "dark")
    found.page.emulate_media(media="print")
    assert not found.page.locator("nav").is_visible()
    assert not found.page.locator("#filter").is_visible()
    white = "getComputedStyle(document.documentElement).backgroundColor"
    assert found.page.evaluate(white) == "rgb(255, 255, 255)"
    assert found.page.evaluate("document.documentElement.scrollWidth") == 1040
    assert found.page.pdf(landscape=True)[:5] == b"%PDF-"


def test_samples_and_differences_of_chosen_runs(written: Path, opened: Open) -> None:
    found = opened(written / "report.html")
    parts = found.page.locator("#answers .part").all_inner_texts()
    assert parts[0] == "prompt\nWhat is the capital of France?"
    assert parts[1:] == ["expected\nParis.", "before\nThe the the of of", "after\nParis."]
    found.page.select_option("#second", index=10)
    header = found.page.locator("#pair thead th").all_inner_texts()
    assert header[1:] == [found.names()[0].lstrip("◆"), found.names()[10]]
    keys = found.page.locator("#pair tbody th").all_inner_texts()
    assert "adapter" in keys
    assert "trainer.args.packing" not in keys


def test_failed_runs_and_provenance(written: Path, opened: Open) -> None:
    found = opened(written / "report.html")
    assert found.page.locator("#reasons tbody tr").all_inner_texts() == [
        "drop-11-lora\tfailed\tloss is not a number at step 12: lower trainer.args.learning_rate"
    ]
    origins = found.page.locator("#origins tbody tr").all_inner_texts()
    assert "git.sha\t38eefb8da0198183c8b6fecbd8a17cad43a83d62" in origins


def test_sections_without_data_are_left_out(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAMINA_CACHE", CACHE.name)
    report = made(tmp_path)
    (row,) = [row for row in report.rows if row.status == "failed"]
    write_page(replace(report, rows=[row], scans=[]), tmp_path)
    assert not (tmp_path / "report.png").exists()
    found = opened(tmp_path / "report.html")
    sections = [each.get_attribute("id") for each in found.page.locator("section").all()]
    assert sections == ["runs", "problems", "provenance"]
    assert found.page.locator("nav a").count() == 3
    assert found.complaints == []
