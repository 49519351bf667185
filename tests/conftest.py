"""The real command, run in a folder of its own, and what it leaves there."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from lamina.data.answers.settings import AnswerSettings
from lamina.depth.selection import NoScores
from lamina.heal.backends.unsloth import is_installed
from tests.forked import Process, Server, fresh, needs_fresh

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "src" / "lamina" / "assets" / "reference"

CACHE = TemporaryDirectory(prefix="lamina-cache-")
"""The cache of one session of tests: none of a person's own is read or written."""

# A shell in the background or nohup hands these on as ignored, and commands inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ["HF_DATASETS_CACHE"] = f"{CACHE.name}/datasets"  # datasets reads it when it is imported

SHORT = (
    "experiment=quickstart",
    "generator.train_rows=400",
    "generator.eval_rows=60",
    "max_steps=6",
    "eval_steps=3",
    "save_steps=3",
    "logging_steps=1",
    "evaluation.max_new_tokens=8",
)
"""The quickstart cut to a few seconds of training."""

GENERATED: dict[str, Any] = {
    "loss_on": "auto",
    "chat_template": None,
    "max_dropped": 0.01,
    "answers": "given",
    "answer_settings": AnswerSettings(
        temperature=0.0, seed=1, max_new_tokens=256, batch_tokens=16384, vllm="auto"
    ),
}
"""Settings that all data sources have."""

FOREIGN: dict[str, Any] = {
    **GENERATED,
    "eval": None,
    "eval_fraction": 0.5,
    "max_train_samples": None,
    "max_eval_samples": None,
    "columns": {},
    "on_bad_row": "error",
}
"""Settings that all data sources but the generator have."""

FIRST_LINES = (
    "run folder: ",
    "sweep folder: ",
    "runs: ",
    "cutting ",
    "exporting ",
    "verifying ",
    "dry run: ",
    "no checkpoint to resume from: ",
)
"""How the lines begin that say where a run is and what it does."""

STAGE_LINE = re.compile(r"(?!error)[a-z][\w ,-]*: (\d[\d,.]* \w* ?of .*|\d+ s)\n?")
"""A stage that takes more than two seconds, on a busy machine even a short one."""

NEEDS_BITSANDBYTES = pytest.mark.skipif(
    find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install bitsandbytes",
)

NEEDS_UNSLOTH = pytest.mark.skipif(
    not is_installed(), reason="Unsloth is not installed: make install-unsloth"
)


LONGEST = (
    "config/test_options.py",
    "integration/test_quickstart.py",
    "integration/test_distributed.py",
    "integration/test_gpu_benchmark.py",
    "config/test_mistakes.py",
    "integration/test_resume.py",
    "integration/test_ends.py",
    "integration/test_chaos.py",
    "integration/test_compiled.py",
    "integration/test_scanning.py",
)
"""Files to begin with, such that none is left over when the other processes have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def no_scores(_: object) -> NoScores:
    """What `make_plan` gets where the choice goes by position."""
    return NoScores()


@dataclass(frozen=True)
class Finished:
    """A finished command."""

    code: int
    output: str
    errors: str
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def metrics(self) -> dict[str, Any]:
        return self.result["metrics"]

    @property
    def refusal(self) -> str:
        """What went to stderr, without the lines that say where the run is."""
        lines = self.errors.splitlines(keepends=True)
        said = (line for line in lines if not line.startswith(FIRST_LINES))
        return "".join(line for line in said if not STAGE_LINE.fullmatch(line))

    @property
    def final(self) -> Path:
        return self.folder / self.result["final"]


def environment(**changes: str) -> dict[str, str]:
    """The test's environment without what would let a run reach a service."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HF_", "HYDRA_"))}
    own = {"LAMINA_CACHE": CACHE.name, "HF_DATASETS_CACHE": os.environ["HF_DATASETS_CACHE"]}
    return {**kept, "HF_HUB_OFFLINE": "1", **own, **changes}


IMPORTED = environment()
"""The environment in which the server of forks imports the libraries."""

SERVERS: list[Server] = []
"""This process's servers of forks."""


@cache
def forks(imports: str = "everything") -> Server:
    """Return the server of forks that most commands share; the first one starts it."""
    SERVERS.append(Server(IMPORTED, imports))
    return SERVERS[-1]


@contextmanager
def forking(**env: str) -> Iterator[None]:
    """In the body, fork commands with these variables, too, instead of starting them fresh."""
    SERVERS.append(Server({**IMPORTED, **env}))
    with closing(SERVERS[-1]) as server:
        yield
        SERVERS.remove(server)


@pytest.fixture(scope="session", autouse=True)
def _forks_end() -> Iterator[None]:
    yield
    for server in SERVERS:
        server.close()


def start(*command: object, cwd: Path, imports: str = "everything", **env: str) -> Process:
    """Start the installed command, `-m` and a module, or `-c` and code.

    It is forked from a server with its environment, unless it needs a fresh interpreter.
    """
    given, own = [*map(str, command)], environment(**env)
    if needs_fresh(given, cwd, own, IMPORTED) is None:
        return forks(imports).start(given, cwd=cwd, env=own)
    for server in SERVERS:
        if server.imports == imports and needs_fresh(given, cwd, own, server.env) is None:
            return server.start(given, cwd=cwd, env=own)
    return fresh(given, cwd=cwd, env=own)


def run(
    *command: object, cwd: Path, timeout: float = 600, imports: str = "everything", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `start` starts it."""
    with start(*command, cwd=cwd, imports=imports, **env) as process:
        return process.completed(timeout)


def train(folder: Path, *overrides: str, cwd: Path | None = None, **env: str) -> Finished:
    """Run `python -m train` with its run folder given; flags come before the other arguments."""
    flags = [given for given in overrides if given.startswith("--")]
    others = [given for given in overrides if not given.startswith("--")]
    given = ("-m", "train", *flags, f"hydra.run.dir={folder}", *others)
    done = run(*given, cwd=cwd or folder.parent, timeout=900, **env)
    return Finished(done.returncode, done.stdout, done.stderr, folder)


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One short run of the quickstart, for all tests that only look at it."""
    done = train(tmp_path_factory.mktemp("pruned") / "run", *SHORT, "logger=both")
    assert done.code == 0, done.errors
    return done


def lamina(*arguments: object, cwd: Path, **env: str) -> Finished:
    """Run the `lamina` command in a folder."""
    done = run(Path(sys.executable).with_name("lamina"), *arguments, cwd=cwd, **env)
    return Finished(done.returncode, done.stdout, done.stderr, cwd)


UNWELL = """
    import importlib.machinery, os, sys, time

    class Loader(importlib.machinery.SourceFileLoader):
        def exec_module(self, module):
            super().exec_module(module)
            step = module.TokenLossTrainer.training_step

            def unwell(self, *arguments, **options):
                if slow:
                    time.sleep(0.8)
                elif self.state.global_step == 7:
                    os.environ["UNWELL"] == "killed" and os.kill(os.getpid(), 9)
                    raise ValueError("rank one is unwell")
                return step(self, *arguments, **options)

            module.TokenLossTrainer.training_step = unwell

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "lamina.heal.trainer":
                spec = importlib.machinery.PathFinder.find_spec(name, path)
                spec.loader = Loader(spec.loader.name, spec.loader.path)
                return spec

    slow = os.environ["UNWELL"] == "slow"
    if "SLURM_RESTART_COUNT" not in os.environ if slow else os.environ.get("RANK") == "1":
        sys.meta_path.insert(0, Finder)
"""
"""A sitecustomize.py with which rank 1 fails in its eighth step.

Or a job's batches are slow before its first requeue, such that its time is over on any machine.
"""


def unwell(folder: Path, how: str) -> dict[str, str]:
    """Return an environment in which rank 1 `raises` or is `killed`, or the job is `slow`."""
    (folder / "sitecustomize.py").write_text(textwrap.dedent(UNWELL))
    paths = (str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(paths), "UNWELL": how}
