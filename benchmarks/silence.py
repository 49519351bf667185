"""The longest time without output of the commands that people wait for.

    python benchmarks/silence.py [--model FOLDER] [--json FILE] [--check]

Shows: seconds until the first output, seconds without any after that, and the wall time, of the
quickstart, a scan and a sweep of two jobs, in a terminal of 80 x 24 and in a pipe. Every cache is
empty at first. --model scans that model, too, and heals it for ten steps.
Peer: none.
Aims: the first output after one second; then never 2 s without any in a terminal, 32 s in a pipe,
which is the interval of lines and how long a stage waits with its first one.
"""

import os
import pty
import sys
import tempfile
import termios
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen

from harness.figures import Aim, finish, options, show

FIRST_AIM = 1.0
AIMS = {"terminal": 2.0, "pipe": 32.0}

QUICKSTART = "train experiment=quickstart"
COMMANDS = {
    "quickstart": QUICKSTART,
    "scan": "scan experiment=quickstart",
    "sweep": f"{QUICKSTART} max_steps=20 --multirun model=dropped model.layer_to_drop=3,5",
}
REAL = {
    "scan of a model": "scan data=synthetic model_name={} max_seq_length=512 scan.tokens=2k",
    "ten steps on a model": "train data=synthetic model_name={} model=dropped max_seq_length=512 "
    "max_steps=10 eval_steps=10 save_steps=10 logging_steps=1 generator.eval_rows=50 "
    "per_device_train_batch_size=1",
}


@dataclass(frozen=True)
class Silence:
    """Seconds of one command."""

    first: float
    """Until the first output."""
    longest: float
    """Without output, after the first."""
    after: str
    """The end of what was shown last before the longest silence."""
    wall: float


def watched(command: str, folder: Path, where: str) -> Silence:
    """Run a command of Lamina in a terminal or a pipe, and note when it writes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "rows")}
    environment["LAMINA_CACHE"] = str(folder / "cache")
    given = [str(Path(sys.executable).with_name("lamina")), *command.split()]
    reading, writing = pty.openpty() if where == "terminal" else os.pipe()
    if where == "terminal":
        termios.tcsetwinsize(writing, (24, 80))
    began = last = time.monotonic()
    first, longest, after, text = 0.0, 0.0, "", b""
    with Popen(given, cwd=folder, env=environment, stdin=DEVNULL, stdout=writing, stderr=writing,
               start_new_session=True) as process:  # fmt: skip
        os.close(writing)
        with suppress(OSError):  # Linux reports a closed terminal as an error
            while piece := os.read(reading, 65536):
                now = time.monotonic()
                if not text:
                    first = now - began
                elif now - last > longest:
                    longest, after = now - last, text.decode(errors="replace")[-60:].strip()
                text, last = (text + piece)[-4000:], now
        os.close(reading)
    if process.returncode:
        sys.exit(f"error: {command} failed:\n{text.decode(errors='replace')}")
    return Silence(first, longest, after, time.monotonic() - began)


def main() -> None:
    """Measure all commands."""
    parser = options(__doc__)
    parser.add_argument("--model", metavar="FOLDER", help="a real model, scanned and healed too")
    given = parser.parse_args()
    commands = dict(COMMANDS)
    if given.model:
        commands |= {name: line.format(given.model) for name, line in REAL.items()}
    found, aims, rows = {}, [], []
    for name, command in commands.items():
        for where, limit in AIMS.items():
            with tempfile.TemporaryDirectory() as folder:
                silence = watched(command, Path(folder), where)
            label = f"{name}, {where}"
            found[label] = asdict(silence)
            figures = (silence.first, silence.longest, silence.wall)
            rows.append((label, *(f"{seconds:.2f}" for seconds in figures), silence.after))
            aims += [
                Aim(name=f"{label}: first output", value=silence.first, limit=FIRST_AIM),
                Aim(name=f"{label}: longest silence", value=silence.longest, limit=limit),
            ]
    header = ("", "first output, s", "longest silence, s", "wall, s", "silent after")
    show("Silence", header, rows, "two cores; every cache empty at first")
    finish({"silence": found}, aims, given.json, given.check)


if __name__ == "__main__":
    main()
