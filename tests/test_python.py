"""`import lamina` in a notebook: three functions, and nothing heavy before they are called."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

import lamina
from lamina.depth.loading import load_model
from lamina.errors import LaminaError
from lamina.measure.results import SCAN_FILE
from lamina.weights.source import resolve
from tests.conftest import REFERENCE, ROOT, run
from tests.conftest import lamina as command
from tests.report.test_reading import write_result

PAGE = (ROOT / "docs" / "python.md").read_text()


def test_the_import_takes_nothing_with_it() -> None:
    code = "import sys; before = {*sys.modules}; import lamina; print({*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'lamina'}\n"


def test_the_functions_are_found_and_nothing_else_is() -> None:
    assert {"load_reduced", "read_runs", "read_scan", "__version__"} <= {*dir(lamina)}
    for name in lamina.FOR_NOTEBOOKS:
        assert callable(getattr(lamina, name))
    with pytest.raises(AttributeError, match="module 'lamina' has no attribute 'read_scans'"):
        lamina.read_scans  # noqa: B018


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's commands have run, with fewer tokens."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "src").symlink_to(ROOT / "src")
    small = ("scan.tokens=512", "max_seq_length=128", "scan.sublayers=true")
    for line in "".join(re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)).splitlines():
        done = command(*line.split()[1:], *small, cwd=folder)
        assert done.code == 0, done.errors
    for seed in (1, 2):
        own = ["experiment=quickstart", f"seed={seed}"]
        write_result(folder / "sweep" / str(seed), name=f"seed-{seed}", overrides=own, seed=seed)
    return folder


def test_the_pages_examples_run(folder: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S):
        done = run("-c", block, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_runs_are_a_table_with_the_columns_of_the_report(folder: Path) -> None:
    write_result(folder / "one", metrics={"eval_loss": 1.2})
    runs = lamina.read_runs(str(folder / "sweep"), folder / "one")
    assert isinstance(runs, pandas.DataFrame)
    assert runs["name"].tolist() == ["drop-3-lora", "seed-1", "seed-2"]
    assert runs["healed_loss"].tolist() == [1.2, 1.5, 1.5]
    assert runs["rank"].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match=r"gone: no such folder$"):
        lamina.read_runs(folder / "gone")


def test_a_scan_has_a_row_for_each_removal(folder: Path) -> None:
    scores = lamina.read_scan(str(folder / "scan"))
    assert isinstance(scores, pandas.DataFrame)
    named = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE, re.M)
    assert list(scores.columns) == re.findall(r"\w+", " ".join(named))
    counts = scores["part"].value_counts().to_dict()
    assert counts == {"layer": 12 * 13 // 2, "attention": 12, "mlp": 12}
    alone = scores[(scores["part"] == "layer") & (scores["count"] == 1)]
    written = pandas.read_csv(folder / "scan" / "scan.csv")
    assert alone["layer"].tolist() == list(range(12))
    for name in ("loss", "delta", "stderr", "delta_stderr", "kl", "block_influence", "magnitude"):
        assert alone[name].tolist() == pytest.approx(written[name].tolist(), rel=1e-12)
    blocks = scores[(scores["part"] == "layer") & (scores["count"] > 1)]
    assert (blocks["layer"] + blocks["count"]).max() == 12
    assert blocks["loss"].isna().all()
    assert blocks["angular_distance"].between(0, 1).all()
    mlp = scores[scores["part"] == "mlp"]
    assert mlp["loss"].tolist() == pytest.approx(written["mlp_loss"].tolist(), rel=1e-12)


def test_a_reduced_model_is_what_a_run_loads() -> None:
    kept = (0, 1, *range(5, 12))
    expected = load_model(resolve(str(REFERENCE)), kept, dtype=torch.bfloat16).state_dict()
    for keep in ([0, 1, "5-12"], "0,1,5-12", iter(kept), torch.tensor(kept).numpy()):
        found = lamina.load_reduced(REFERENCE, keep=keep)
        assert not found.training
        state = found.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert lamina.load_reduced(str(REFERENCE), range(2), dtype="float32").dtype == torch.float32
    assert lamina.load_reduced(REFERENCE, 3, torch.float16).dtype == torch.float16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": None}, "keep=None: names no layer"),
        ({"keep": []}, "keep=[]: names no layer"),
        ({"keep": [0, 12]}, "keep=[0,12]: 12 lies outside of the model's 12 layers: indices are "),
        ({"keep": [-1]}, "keep=[-1]: '-1' is neither a 0-based layer index nor a half-open range"),
        ({"keep": [1, "0-3"]}, "keep=[1,0-3]: layer 1 is named more than once"),
        ({"keep": 2.5}, "keep=2.5: '2.5' is neither a 0-based layer index nor a half-open range"),
        (
            {"keep": [0], "dtype": "int8"},
            "dtype=int8: use bfloat16, float16, float32 or float64",
        ),
        ({"model": "./gone", "keep": [0]}, "model_name=./gone: no such folder"),
        ({"model": ROOT / "docs", "keep": [0]}, f"model_name={ROOT / 'docs'}: no config.json in "),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LaminaError) as refused:
        lamina.load_reduced(**{"model": REFERENCE, **given})
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_what_is_no_scan_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone: no such folder$"):
        lamina.read_scan(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"holds no run, sweep, scan or evaluation"):
        lamina.read_scan(tmp_path)
    text = (folder / "scan" / SCAN_FILE).read_text()
    for damaged in ("", text[:-20], text.replace('"kl"', '"kk"', 1), '{"num_layers": 12}'):
        (tmp_path / SCAN_FILE).write_text(damaged)
        with pytest.raises(LaminaError) as refused:
            lamina.read_scan(tmp_path)
        assert str(refused.value).startswith(f"{tmp_path / SCAN_FILE}: ")
        assert "\n" not in str(refused.value)
