"""A scan's CSV file, terminal tables and chart show what its statistics contain."""

import io
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from lamina.depth.statistics import LeaveOneOut, Numbers, Stability, Statistics
from lamina.errors import OutputError
from lamina.report.page.picture import draw_scan
from lamina.report.scan_report import best_block, scan_table, write_csv

BASELINE = 3.5
RISES = (9.5, 1.5, 0.25, 0.125, 0.0625, 0.03125, 0.001, 0.002, 0.0625, 0.125, 0.25, 0.5)


def scores(rises: Numbers) -> LeaveOneOut:
    return LeaveOneOut(
        loss=tuple(BASELINE + rise for rise in rises),
        stderr=(0.25,) * len(rises),
        delta_stderr=(0.0005,) * len(rises),
        kl=tuple(abs(rise) / 2 for rise in rises),
    )


def distances(layers: int, best: int) -> tuple[Numbers, ...]:
    """Distances that grow with a block's length and how far it starts from `best`."""
    return tuple(
        tuple(0.01 * n + 0.001 * abs(start - best) for n in range(layers - start + 1))
        for start in range(layers)
    )


def statistics(rises: Numbers = RISES, **given: object) -> Statistics:
    layers = len(rises)
    values = {
        "num_layers": layers,
        "num_tokens": 65408,
        "num_windows": 512,
        "baseline_loss": BASELINE,
        "baseline_stderr": 0.03125,
        "leave_one_out": scores(rises),
        "block_influence": tuple(0.5 / (layer + 1) for layer in range(layers)),
        "magnitude": (0.75,) * layers,
        "angular_distance": distances(layers, 5),
        "angular_distance_last": distances(layers, 3),
        **given,
    }
    return Statistics(**values)


NEGATIVE = statistics((*RISES[:6], -0.25, 0.0, *RISES[8:]))
WITH_PARTS = statistics(
    sublayer={"attention": scores(RISES[::-1]), "mlp": scores(RISES)},
    stability=Stability(kendall_tau=(0.91, 0.88, 0.94), jaccard=(0.5, 1.0, 0.75)),
)
DEEP = statistics(
    tuple(0.02 * math.sin(layer) + 10 * math.exp(-layer) for layer in range(80)),
    sublayer={"attention": scores((0.01,) * 80), "mlp": scores((0.02,) * 80)},
)
TWO = statistics((2.0, 1.0))
ONE = statistics((2.0,))
ZERO = statistics((0.0, 0.0, 0.0))
BROKEN = statistics((math.nan, math.inf, 0.5, 0.25))
ALL = {
    "twelve": statistics(),
    "negative": NEGATIVE,
    "parts": WITH_PARTS,
    "deep": DEEP,
    "two": TWO,
    "one": ONE,
    "zero": ZERO,
    "broken": BROKEN,
}


def printed(of: Statistics, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(scan_table(of, "bfloat16"))
    return [line.rstrip() for line in console.export_text().splitlines()]


def row(lines: list[str], layer: int) -> str:
    return next(line for line in lines if line.split()[:1] == [str(layer)])


def test_csv(tmp_path: Path) -> None:
    write_csv(TWO, tmp_path / "made" / "scan.csv")
    assert (tmp_path / "made" / "scan.csv").read_bytes().decode() == (
        "layer,loss,delta,stderr,delta_stderr,kl,block_influence,magnitude\n"
        "0,5.5,2.0,0.25,0.0005,1.0,0.5,0.75\n"
        "1,4.5,1.0,0.25,0.0005,0.5,0.25,0.75\n"
    )
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["scan.csv"]


def test_csv_with_sublayers(tmp_path: Path) -> None:
    write_csv(WITH_PARTS, tmp_path / "scan.csv")
    header, first, *others = (tmp_path / "scan.csv").read_text().splitlines()
    assert header.endswith(",magnitude,attention_loss,mlp_loss")
    assert first == "0,13.0,9.5,0.25,0.0005,4.75,0.5,0.75,4.0,13.0"
    assert len(others) == 11


def test_heading() -> None:
    heading = "12 layers, 65,408 predictions in 512 windows, baseline loss 3.5 ± 0.031, in bfloat16"
    assert printed(statistics())[1] == heading
    one = printed(replace(TWO, num_windows=1, baseline_stderr=math.nan))
    assert " in 1 window, " in one[1]
    assert "± unknown from one window: raise scan.tokens" in one[2]


def test_a_row_has_its_figures() -> None:
    first = row(printed(statistics()), 0).split()
    assert first == ["0", "13", "+9.5", "5.0e-04", "█" * 30, "4.75", "0.5000"]


def test_cheapest_and_noise_are_marked() -> None:
    lines = printed(statistics())
    assert row(lines, 6).endswith("cheapest, within noise")
    marked = [line for line in lines if "cheapest" in line or "within noise" in line]
    assert marked == [row(lines, 6)]


def test_a_gain_is_cheapest_and_has_no_bar() -> None:
    lines = printed(NEGATIVE)
    gain, zero = row(lines, 6), row(lines, 7)
    assert gain.endswith(" cheapest")
    assert "-0.25" in gain
    assert "█" not in gain
    assert zero.endswith(" within noise")
    assert "█" not in zero


def test_bars_are_logarithmic() -> None:
    lines = printed(statistics((10.0, 1.0, 0.1, 1e-12)))
    assert "1e-06 to 10, log" in "\n".join(lines)
    lengths = [sum(character in "█▉▊▋▌▍▎▏" for character in row(lines, n)) for n in range(4)]
    assert lengths[0] == 30
    assert lengths[0] - lengths[1] == pytest.approx(lengths[1] - lengths[2], abs=1)
    assert lengths[3] == 1


def test_best_blocks() -> None:
    lines = printed(statistics())
    blocks = [line.split() for line in lines[-4:]]
    assert blocks == [
        ["1", "[5,", "6)", "0.0100", "[3,", "4)", "0.0100"],
        ["2", "[5,", "7)", "0.0200", "[3,", "5)", "0.0200"],
        ["4", "[5,", "9)", "0.0400", "[3,", "7)", "0.0400"],
        ["8", "[4,", "12)", "0.0810", "[3,", "11)", "0.0800"],
    ]


def test_best_block_reaches_the_last_layer() -> None:
    distance = ((0.0, 0.5, 0.6, 0.7), (0.0, 0.4, 0.3), (0.0, 0.1))
    assert best_block(distance, 1) == (2, 0.1)
    assert best_block(distance, 2) == (1, 0.3)
    assert best_block(distance, 3) == (0, 0.7)
    assert best_block(((0.0, math.nan, 0.6), (0.0, 0.4)), 1) == (1, 0.4)


def test_stability() -> None:
    assert printed(WITH_PARTS)[-1] == (
        "stability over 3 pairs of sets: Kendall tau 0.91 (least 0.88), Jaccard 0.75 (least 0.50)"
    )
    single = statistics(stability=Stability(kendall_tau=(0.9,), jaccard=(0.5,)))
    assert printed(single)[-1] == ("stability over 1 pair of sets: Kendall tau 0.90, Jaccard 0.50")
    assert "stability" not in "\n".join(printed(statistics()))


def test_two_layers_have_one_block_size_and_one_layer_none() -> None:
    assert [line.split()[0] for line in printed(TWO)[-2:]] == ["layers", "1"]
    assert "blocks" not in "\n".join(printed(ONE))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [100, 200])
def test_width(name: str, width: int) -> None:
    lines = printed(ALL[name], width)
    assert max(map(len, lines)) <= 100
    for layer in range(ALL[name].num_layers):
        assert row(lines, layer)


def test_a_narrow_terminal_costs_bars_only() -> None:
    lines = printed(NEGATIVE, 80)
    assert row(lines, 0).split()[-2:] == ["4.75", "0.5000"]
    header = next(line.split() for line in lines if line.lstrip().startswith("layer "))
    assert header == ["layer", "loss", "increase", "±", "KL", "influence"]
    assert ", log" in " ".join(lines)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("error")
def test_picture(tmp_path: Path, name: str) -> None:
    path = tmp_path / "made" / "scan.png"
    draw_scan(ALL[name], path)
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert 1400 < picture.width < 1700
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 10
    assert path.stat().st_size < 200_000
    assert list(path.parent.iterdir()) == [path]


def test_the_picture_depends_on_the_statistics_only(tmp_path: Path) -> None:
    content = []
    for given in (DEEP, DEEP, replace(DEEP, baseline_loss=3.0)):
        draw_scan(given, tmp_path / "scan.png")
        content.append((tmp_path / "scan.png").read_bytes())
    assert content[0] == content[1] != content[2]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "scan.out").mkdir()
    for write in (write_csv, draw_scan):
        with pytest.raises(OutputError, match=r"scan\.out cannot be written"):
            write(TWO, tmp_path / "scan.out")
    assert [file.name for file in tmp_path.iterdir()] == ["scan.out"]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"scan\.png cannot be written"):
        draw_scan(TWO, tmp_path / "file" / "scan.png")


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; heavy = {'torch', 'transformers', 'vl_convert', 'numpy'}\n"
        "import lamina.report.scan_report\n"
        "from lamina.report.page.picture import draw_scan\n"
        "from lamina.depth.statistics import Statistics\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        "import json, pathlib\n"
        "draw_scan(Statistics.from_dict(json.loads(sys.argv[1])), pathlib.Path(sys.argv[2]))\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()\n"
    )
    arguments = [json.dumps(asdict(TWO)), str(tmp_path / "scan.png")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
