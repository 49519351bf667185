"""Of several failed processes the first one is reported, whatever the others ran into."""

from pathlib import Path

import pytest

from lamina.errors import LaminaError, ModelError, TrainingError
from lamina.launch.layout import Layout
from lamina.launch.processes import first_failure, node_folder, record_failure


def failed(error: BaseException) -> BaseException:
    """Return an error with a traceback."""
    try:
        raise error
    except BaseException as raised:
        return raised


def reported(folder: Path, processes: int) -> LaminaError:
    return first_failure(folder, folder / "run", processes)


def test_the_first_failure_of_any_node_is_reported(tmp_path: Path) -> None:
    for node, rank, message in ((1, 3, "cause"), (0, 0, "connection closed")):
        (tmp_path / str(node)).mkdir()
        path = tmp_path / str(node) / "error.json"
        record_failure(path, rank, failed(ValueError(f"{message}\nmore")))
    error = reported(tmp_path, 4)
    assert type(error) is TrainingError
    log = tmp_path / "run" / "train.log"
    assert str(error) == f"rank 3: ValueError: cause; the traceback is in {log}"


def test_an_error_for_the_user_keeps_its_kind_and_message(tmp_path: Path) -> None:
    record_failure(tmp_path / "error.json", 1, failed(ModelError("two\nlines")))
    error = reported(tmp_path, 2)
    assert (type(error), str(error)) == (ModelError, "two\nlines")


@pytest.mark.parametrize(("processes", "who"), [(1, "the process was "), (2, "rank 0: ")])
def test_a_killed_process_precedes_the_errors_that_it_causes(
    tmp_path: Path, processes: int, who: str
) -> None:
    record_failure(tmp_path / "error.json", 1, failed(RuntimeError("connection closed")))
    record_failure(tmp_path / "0.error.json", 0, "killed by SIGSEGV")
    assert str(reported(tmp_path, processes)) == f"{who}killed by SIGSEGV"


def test_a_process_may_leave_no_error_file(tmp_path: Path) -> None:
    assert str(reported(tmp_path, 2)) == "a process ended without an error message"


def test_another_step_of_an_allocation_finds_no_files_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun, run twice with the same command in one salloc."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    made = []
    for step in ("0", "1"):
        monkeypatch.setenv("SLURM_STEP_ID", step)
        made += [node_folder(tmp_path, Layout(processes=2, nodes=2, node=node)) for node in (0, 1)]
    assert len(set(made)) == 4
    assert made[0].parent == made[1].parent != made[2].parent
