"""A forked command equals one in a fresh interpreter."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.conftest import IMPORTED, ROOT, SHORT, Finished, environment, forks, train
from tests.forked import Server, needs_fresh

TRAIN = ("-m", "train", "experiment=quickstart")

STATE = f"""
import gc, json, logging, os, signal, sys, threading, warnings
sys.path.append({str(ROOT)!r})
from tests.forked import import_all
import_all()
import torch, wandb
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from accelerate.state import AcceleratorState, PartialState

def handlers(logger):
    return [type(handler).__name__ for handler in logger.handlers]

def state():
    yield [__name__, __file__, sys.argv, sys.path, os.getcwd(), dict(os.environ), sys.flags[:]]
    yield [(f.isatty(), f.encoding, f.errors) for f in (sys.stdin, sys.stdout, sys.stderr)]
    yield [sys.stdin.read(), sys.stdout.line_buffering, sys.stderr.line_buffering]
    yield [str(signal.getsignal(number)) for number in signal.valid_signals()]
    yield [str(signal.pthread_sigmask(0, []))]
    yield [gc.isenabled(), gc.get_threshold(), gc.get_debug(), threading.active_count()]
    yield [threading.current_thread() is threading.main_thread(), os.getpgrp(), os.umask(18)]
    yield [torch.get_num_threads(), torch.get_num_interop_threads(), torch.is_grad_enabled()]
    yield [str(torch.get_default_dtype()), torch.are_deterministic_algorithms_enabled()]
    yield [GlobalHydra.instance().is_initialized(), HydraConfig.instance().cfg]
    yield [sorted(ConfigStore.instance().repo), wandb.run, wandb.setup is None]
    yield [AcceleratorState._shared_state, PartialState._shared_state]
    yield [str(warnings.filters)]
    for name in (None, *sorted(logging.root.manager.loggerDict)):
        logger = logging.getLogger(name)
        yield [name, logger.level, logger.propagate, logger.disabled, handlers(logger)]

"""
"""What a command could find other than in a fresh interpreter, once both have the libraries."""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1"}, "may be read at import: HF_ENDPOINT"),
        ({"WANDB_MODE": "offline"}, "may be read at import: WANDB_MODE"),
        ({"HYDRA_FULL_ERROR": "1"}, "may be read at import: HYDRA_FULL_ERROR"),
        ({"PYTHONPATH": ".", "UNWELL": "slow"}, "may be read at import: PYTHONPATH, UNWELL"),
        ({"SOME_KEY": "secret"}, "may be read at import: SOME_KEY"),
        ({"LAMINA_CACHE": "/elsewhere", "COLUMNS": "200"}, None),
    ],
)
def test_a_variable_that_may_be_read_at_import_needs_a_fresh_interpreter(
    tmp_path: Path, change: dict[str, str], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "DRIVER", tmp_path / "nvidiactl")
    assert needs_fresh(TRAIN, tmp_path, {**IMPORTED, **change}, IMPORTED) == reason
    assert needs_fresh(TRAIN, tmp_path, IMPORTED, {**IMPORTED, **change}) == reason


def test_what_else_needs_a_fresh_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "DRIVER", tmp_path / "nvidiactl")
    for key in ("distributed=2", "parallel=ddp", "hydra/launcher=slurm"):
        said = needs_fresh((*TRAIN, key), tmp_path, IMPORTED, IMPORTED)
        assert said == f"starts processes: {key.partition('=')[0]}"
    dry = (*TRAIN, "distributed=2", "dry_run=true")
    assert needs_fresh(dry, tmp_path, IMPORTED, IMPORTED) is None
    said = needs_fresh((*TRAIN, "backend=unsloth"), tmp_path, IMPORTED, IMPORTED)
    assert said == "Unsloth patches what is imported after it"
    assert needs_fresh(TRAIN, tmp_path, IMPORTED, IMPORTED) is None
    (tmp_path / "nvidiactl").touch()
    assert needs_fresh(TRAIN, tmp_path, IMPORTED, IMPORTED) == "CUDA fails in a fork"
    (tmp_path / ".env").touch()
    said = needs_fresh(TRAIN, tmp_path, IMPORTED, IMPORTED)
    assert said == ".env sets variables before the libraries are imported"


def both(folder: Path, script: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a script with an argument in a fork and in a fresh interpreter."""
    (folder / "script.py").write_text(script)
    (folder / "cwd").mkdir()
    where: dict[str, Any] = {"cwd": folder / "cwd", "env": environment(COLUMNS="77")}
    command = [str(folder / "script.py"), "argument"]
    fresh = subprocess.run(
        [sys.executable, *command],
        **where,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return [forks().run(command, **where, timeout=60), fresh]


def test_a_fork_has_the_state_of_a_fresh_interpreter(tmp_path: Path) -> None:
    forked_one, fresh = both(tmp_path, f"{STATE}print(json.dumps([*state()], default=str))")
    assert (forked_one.stderr, fresh.stderr) == ("", "")
    ours, theirs = (json.loads(done.stdout) for done in (forked_one, fresh))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("sys.exit(3)", 3),
        ("sys.exit('reason')", 1),
        ("sys.exit()", 0),
        ("raise ValueError('reason')", 1),
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), 9)", -9),
        ("signal.raise_signal(signal.SIGINT)", -2),
        ("threading.Thread(target=lambda: time.sleep(0.1) or print('late')).start()", 0),
        ("atexit.register(print, 'late')", 0),
    ],
)
def test_a_fork_ends_like_a_fresh_interpreter(tmp_path: Path, last: str, code: int) -> None:
    begin = "import atexit, os, signal, sys, threading, time\nprint('a\\rb', flush=True)\n"
    forked_one, fresh = both(tmp_path, begin + last)
    assert forked_one.returncode == fresh.returncode == code
    assert forked_one.stdout == fresh.stdout
    assert forked_one.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_random_numbers_differ_from_fork_to_fork(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import random, numpy, torch\n"
        "print(random.random(), numpy.random.random(), torch.rand(()).item())"
    )
    where: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "timeout": 60}
    drawn = [forks().run([str(tmp_path / "script.py")], **where).stdout for _ in range(2)]
    assert len({*drawn[0].split(), *drawn[1].split()}) == 6


def test_a_fork_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import time\ntime.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        forks().run([str(tmp_path / "script.py")], cwd=tmp_path, env=environment(), timeout=0.5)
    (tmp_path / "script.py").write_text("print('next')")
    done = forks().run([str(tmp_path / "script.py")], cwd=tmp_path, env=environment(), timeout=60)
    assert (done.returncode, done.stdout) == (0, "next\n")


def test_imports_that_print_are_refused(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("raise ImportError('not this one')")
    with pytest.raises(RuntimeError, match=r"printed:\n(.*\n)*ImportError: not this one"):
        Server(environment(PYTHONPATH=str(tmp_path)))


def figures(run: Finished) -> dict[str, Any]:
    """Return a run's result without its times and its memory."""
    measured = ("tokens_per_second", "flops_per_second", "train_seconds", "peak_memory_bytes")
    result = run.result
    assert set(result["metrics"].pop("seconds")) > {"data", "other"}
    for name in measured:
        assert result["metrics"].pop(name) > 0
    return result


def test_a_forked_training_has_the_numbers_of_a_fresh_one(tmp_path: Path) -> None:
    forked_run = train(tmp_path / "forked", *SHORT, LAMINA_CACHE=str(tmp_path / "one"))
    fresh = train(tmp_path / "fresh", *SHORT, LAMINA_CACHE=str(tmp_path / "two"), FRESH="1")
    assert (forked_run.code, fresh.code) == (0, 0), forked_run.errors + fresh.errors
    assert figures(forked_run) == figures(fresh)
