"""Runs side by side: a sweep's table in the console."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lamina.measure.tasks.figures import as_text
from lamina.measure.tasks.items import ROWS
from lamina.report.runs import RunRow

COLUMNS = ("job", "layers", "original", "reduced", "healed", "difference")
"""The first columns; original is the loss of the untouched model. Tasks and the status follow."""

LEFT_OUT = ("original", "reduced")
"""Columns that a terminal has no room for beside those of tasks."""

LEAST_TASKS = 1
"""Tasks in the table, however narrow the terminal."""

UNLIMITED = 10_000
"""Characters; wider than any table."""

BEST, NEAR = "*", "~"
"""Marks of the run with the lowest healed loss, and of those within noise of it."""

LEGEND = f"{BEST} lowest healed loss; {NEAR} within noise of it (paired 95 % interval)"
TASK_LEGEND = "; tasks: % of the original's figure"


@dataclass(frozen=True)
class SweepTable:
    """A table of runs, one row each, in their order, and why runs failed.

    It has as many tasks as there is room for, but at least `LEAST_TASKS`: then names fold.
    """

    rows: Sequence[RunRow]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it for a console's width."""
        names = task_columns(self.rows)
        tasks, unlimited = names, options.update(max_width=UNLIMITED)
        while len(tasks) > LEAST_TASKS:
            if console.measure(self._table(tasks), options=unlimited).maximum <= options.max_width:
                break
            tasks = tasks[:-1]
        yield Text()
        yield self._table(tasks)
        if any(row.is_best for row in self.rows):
            further = len(names) - len(tasks)
            more = f"; {further} more in the report" if further else ""
            yield Text(LEGEND + (TASK_LEGEND + more) * bool(tasks), style="dim")
            if other := caveat(self.rows):
                yield Text(other, style="dim")
        if reasons := [f"{row.name}: {row.error}" for row in self.rows if row.error]:
            yield Text("\n".join(["", *reasons]), style="dim")

    def _table(self, tasks: Sequence[str]) -> Table:
        names = [name for name in COLUMNS if not (tasks and name in LEFT_OUT)]
        names += [*tasks, "status"]
        table = Table(box=None, pad_edge=False)
        table.add_column()
        table.add_column(names[0], style="bold", overflow="fold")
        for name in names[1:]:
            table.add_column(Text(name), justify="right")
        for row in self.rows:
            shown = {**cells(row, tasks), names[0]: row.name}
            table.add_row(_mark(row), *(Text(shown[name]) for name in names))
        return table


def caveat(rows: Iterable[RunRow]) -> str:
    """Say so if the ranked runs' losses do not compare; else return nothing."""
    has_others = len({row.eval_fingerprint for row in rows if row.rank}) > 1
    return "Losses were measured on different rows: they do not compare." * has_others


def task_columns(rows: Sequence[RunRow]) -> list[str]:
    """Return the tasks that get a column; the run's own rows have that of the healed loss."""
    tasks = [*(row.comparisons for row in rows), *(row.tasks for row in rows)]
    return [*dict.fromkeys(name for each in tasks for name in each if name != ROWS)]


def cells(row: RunRow, tasks: Sequence[str]) -> dict[str, str]:
    """Return a run's cells, by column."""
    healed = [row.healed_loss, row.difference] if row.is_complete else [None, None]
    losses = [row.baseline_loss, row.reduced_loss, *healed]
    shown = ["" if loss is None else f"{loss:.4g}" for loss in losses]
    layers = f"{row.layers} of {row.num_layers}" if row.num_layers else f"{row.layers or ''}"
    name = f"{_mark(row)} {row.name}".lstrip()
    first = dict(zip(COLUMNS, [name, layers, *shown], strict=True))
    return {**first, **{name: _figure(row, name) for name in tasks}, "status": row.status}


def _mark(row: RunRow) -> str:
    return BEST if row.is_best else NEAR if row.within_noise_of_best else ""


def _figure(row: RunRow, task: str) -> str:
    """Return the retention in a task's first metric, or without an original its figure."""
    for compared in row.comparisons.get(task, {}).values():
        return "" if compared["retention"] is None else f"{compared['retention']:.0f} %"
    for metric in row.tasks.get(task, {}):
        value = row.figure(task, metric).get("value")
        return "" if value is None else f"{metric} {as_text(metric, value)}"
    return ""
