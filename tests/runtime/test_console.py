"""What the console prints of someone else's texts."""

from lamina.report.run_summary import figures_table
from lamina.runtime.console import console


def test_a_name_is_neither_markup_nor_an_emoji() -> None:
    drawn = console(width=80)
    with drawn.capture() as shown:
        drawn.print(figures_table([("answers[v2] acc", "1", "qa[/b] :smile:")]))
        drawn.print("runs[1]/evaluation.json")
    assert shown.get().splitlines() == [
        "answers[v2] acc  1  qa[/b] :smile:",
        "runs[1]/evaluation.json",
    ]
