"""Any header, config.json or file of ours is read, or refused by an error of ours."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lamina.commands.show import shown
from lamina.depth.plan import make_plan
from lamina.depth.reduction import reduction
from lamina.depth.selection import First
from lamina.depth.surgery import layer_count
from lamina.depth.variants import Pruned
from lamina.errors import LaminaError
from lamina.export.finished_run import finished_run
from lamina.measure.results import load_result, read_rows
from lamina.report.page.content import content as page_content
from lamina.report.reading import read_report
from lamina.report.report_files import markdown, table
from lamina.report.sweep_table import SweepTable
from lamina.runtime.console import CONTROL, console
from lamina.weights.source import resolve
from tests.conftest import REFERENCE, no_scores
from tests.hostile.models import changed, safetensors, split_safetensors, tampered, write
from tests.hostile.test_files import RESULT

EXAMPLES = settings(
    max_examples=int(os.environ.get("LAMINA_EXAMPLES", "100")),
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[*HealthCheck],
)
"""CI tries 100; LAMINA_EXAMPLES=2000 is for a run by hand."""

HEADER, BODY = split_safetensors(REFERENCE / "model.safetensors")
NAMES = [name for name in HEADER if name != "__metadata__"]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 20),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\x1b[31m", "\ud800", "auto", "BF16", "../..", "qwen3"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


TASK: dict[str, Any] = {
    "kind": "choices",
    "items": 3,
    "items_hash": "a",
    "protocol": {"few_shot": 0},
    "metrics": {},
    "seconds": 1.0,
}
EVALUATION: dict[str, Any] = {
    "format": 1,
    "role": "final",
    "model": {
        "name": "m",
        "revision": None,
        "kept_layers": [0],
        "layers": 1,
        "parameters": 9,
        "bytes": 36,
        "dtype": "float32",
    },
    "tasks": {},
    "speed": None,
    "versions": {},
    "device": "CPU",
    "seconds": 1.0,
}
ITEM: dict[str, Any] = {"correct": True, "nll": 2.0, "tokens": 3, "answer": "a"}


def changes(content: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The content with other values in up to three of its fields, or without them."""
    fields = st.dictionaries(
        st.sampled_from([*content]), st.one_of(VALUES, st.just(...)), min_size=1, max_size=3
    )
    return fields.map(lambda given: {k: v for k, v in {**content, **given}.items() if v is not ...})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tampered(tmp_path_factory.mktemp("any") / "model", "README.md", None)


def ours(read: Callable[[], object]) -> None:
    with suppress(LaminaError):
        read()


def used(folder: Path) -> Callable[[], object]:
    """Plan with a model folder, build its config, and show it."""

    def read() -> None:
        plan = make_plan(Pruned(keep_layers=6, selector=First()), str(folder), no_scores)
        assert plan.source is not None
        reduction(plan.source, plan.kept_layers)

    return read


def show(folder: Path) -> None:
    with Path(os.devnull).open("w") as file:
        console(file=file).print(*shown(str(folder)))


DESCRIPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["BF16", "F32", "F4", "X"]) | SCALARS,
        "shape": st.lists(st.integers(-1, 200) | SCALARS, max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(-1, len(BODY) + 2) | SCALARS, max_size=3) | VALUES,
        "more": VALUES,
    },
)
HEADERS = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), DESCRIPTIONS | VALUES, max_size=3).map(
        lambda given: {**HEADER, **given}
    ),
    st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), VALUES, max_size=3),
    VALUES,
    st.binary(max_size=200),
)


@EXAMPLES
@given(header=HEADERS, cut=st.integers(0, 300) | st.just(None))
def test_any_header(header: object, cut: int | None, folder: Path) -> None:
    content = safetensors(header, BODY)
    write(folder / "model.safetensors", content if cut is None else content[:cut])
    ours(used(folder))
    ours(lambda: show(folder))


@pytest.fixture
def _whole(folder: Path) -> None:
    write(folder / "model.safetensors", (REFERENCE / "model.safetensors").read_bytes())


@pytest.mark.usefixtures("_whole")
@EXAMPLES
@given(content=changes(changed("config.json")) | VALUES)
def test_any_config(content: Any, folder: Path) -> None:
    write(folder / "config.json", safetensors(content, b"")[8:])
    ours(used(folder))
    ours(lambda: show(folder))
    ours(lambda: layer_count(resolve(str(folder)).config))


@EXAMPLES
@given(content=changes(changed("lamina.json")) | VALUES)
def test_any_manifest(content: Any, folder: Path) -> None:
    write(folder / "config.json", (REFERENCE / "config.json").read_bytes())
    write(folder / "lamina.json", safetensors(content, b"")[8:])
    ours(lambda: finished_run(str(folder)))
    ours(lambda: show(folder))


@EXAMPLES
@given(content=changes(RESULT) | VALUES)
def test_any_result(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "0").mkdir()
    (folder / "0" / "final").symlink_to(REFERENCE)
    write(folder / "0" / "result.json", safetensors(content, b"")[8:])
    ours(lambda: load_result(folder / "0"))
    ours(lambda: finished_run(str(folder / "0")))
    ours(lambda: show(folder / "0"))
    reported(folder)


def reported(folder: Path) -> None:
    """Nothing that a run's files may hold stops a report."""
    report = read_report([folder])
    with Path(os.devnull).open("w") as file:
        console(file=file).print(SweepTable(report.ranked))
    json.dumps([asdict(row) for row in report.rows], allow_nan=False)
    json.dumps(page_content(report), allow_nan=False)
    assert CONTROL.search(markdown(report) + table(report)) is None


@EXAMPLES
@given(
    evaluation=changes(EVALUATION) | VALUES,
    metric=changes({"value": 0.5, "stderr": 0.1, "n": 3, "chance": 0.25}) | VALUES,
    items=st.lists(changes(ITEM) | VALUES, max_size=3),
    rows=st.lists(changes({"input_ids": [1, 2], "labels": [1, 2], "loss": 1.0}), max_size=3),
)
def test_any_evaluation(
    evaluation: Any,
    metric: Any,
    items: list[Any],
    rows: list[Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    task = {**TASK, "items": len(items), "metrics": dict.fromkeys(("acc", "loss"), metric)}
    if isinstance(evaluation, dict) and evaluation.get("tasks") == {}:
        evaluation = {**evaluation, "tasks": {"\x1b[31m": task}}
    write(folder / "result.json", safetensors({**RESULT, "eval_fingerprint": "x"}, b"")[8:])
    write(folder / "eval.jsonl", b"\n".join(safetensors(row, b"")[8:] for row in rows))
    for role in ("original", "final"):
        place = folder / "evaluation" / role
        place.mkdir(parents=True)
        write(place / "evaluation.json", safetensors(evaluation, b"")[8:])
        named = ({"task": "\x1b[31m", "id": row} for row in range(len(items)))
        pairs = zip(named, items, strict=True)
        given = (own | each if isinstance(each, dict) else each for own, each in pairs)
        lines = [safetensors(each, b"")[8:] for each in given]
        write(place / "items.jsonl", b"".join(line + b"\n" for line in lines))
    reported(folder)


@EXAMPLES
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "input_ids": st.lists(SCALARS, max_size=3) | VALUES,
                "labels": VALUES,
                "loss": SCALARS,
            },
        )
        | VALUES,
        max_size=3,
    )
)
def test_any_rows(rows: list[Any], folder: Path) -> None:
    lines = b"\n".join(safetensors(row, b"")[8:] for row in rows)
    ours(lambda: read_rows(write(folder / "eval.jsonl", lines)))
