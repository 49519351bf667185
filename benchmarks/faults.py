"""Whether a run that is killed at any of its writes ends, started again, like an undisturbed one.

    python benchmarks/faults.py [--sample N] [--seed 0] [--workers 2] [--json FILE] [--check]

Shows: one short run of the embedded reference model is traced: every file it opens for writing and
every rename, link and removal, in the run folder and in both caches. What differs only in a step, a
process id or a temporary name counts once. Then, for each of these operations, a run in a folder
and with caches of its own gets SIGKILL before the first such operation, another one after the last;
each is started again with the same command. --sample draws so many of these runs.
Peer: the traced run, undisturbed.
Aims: each second start succeeds, with the same loss of each step, before, after removal and after
healing, and the same weights in final/; and no file that the peer lacks is left in the run folder
or in Lamina's cache. Temporary files in HF_DATASETS_CACHE may stay: another process may own them.

The libraries are imported once, and each run is a fork.
"""

import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from harness.figures import Aim, at_least, finish, options, show
from sweep import results

RUN = (
    "experiment=quickstart",
    "generator.train_rows=60",
    "generator.eval_rows=12",
    "model.keep_layers=3",
    "max_steps=3",
    "eval_steps=1",
    "save_steps=1",
    "save_total_limit=2",
    "logging_steps=1",
    "num_threads=1",
    "evaluation.num_samples=1",
    "evaluation.max_new_tokens=2",
)

RUN_FOLDER = "0"
"""As a sweep calls its first job's."""

VARIABLE = (
    (r"\d+\.[\w.-]*tfevents[\w.-]*|events\.out\.tfevents[\w.-]*", "EVENTS"),
    (r"/_[\w.-]+\.lock", "/LOCK"),
    (r"tmp[a-z0-9_]{8}\b", "TEMPORARY"),
    (r"\b[0-9a-f]{16,}\b", "HASH"),
    (r"checkpoint-\d+", "checkpoint-STEP"),
    (r"\d{3,}", "NUMBER"),
)
"""Patterns of names that differ between runs or steps, and what stands for them."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate")
"""Audit events of what changes a folder; the writers in `NATIVE` raise none."""

NATIVE = (("torch", "save", 1), ("safetensors.torch", "serialize_file", 1))
"""Writers in C++ and Rust: module, function, and the place of its path."""

LIMIT_S = 300
"""Seconds for one start."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One interruption."""

    operation: str
    number: int
    """1-based, among the operations of the same name."""
    after: bool


class Hook:
    """Counts a process's writes, and kills the process at one of them."""

    def __init__(self, root: Path, kill: Kill | None) -> None:
        self.root, self.kill = str(root), kill
        self.seen: Counter[str] = Counter()

    def install(self) -> None:
        """Watch this process from now on."""
        for module, name, place in NATIVE:
            found = import_module(module)
            setattr(found, name, self.watched(getattr(found, name), name, place))
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of an event that writes."""
        if event == "open":
            path, mode, flags = arguments
            if any(each in "wax+" for each in mode or "") or (flags or 0) & WRITES:
                self.note("open", path)
        elif event in CHANGES:
            paths = [each for each in arguments if isinstance(each, str | bytes | os.PathLike)]
            if len(paths) == 1 and isinstance(arguments[-1], int) and arguments[-1] >= 0:
                paths = [Path(f"/proc/self/fd/{arguments[-1]}").resolve() / os.fsdecode(paths[0])]
            self.note(event.removeprefix("os."), *paths)

    def watched(self, call: Callable[..., Any], name: str, place: int) -> Callable[..., Any]:
        """Return a writer in native code that takes note of itself."""

        def noted(*arguments: Any, **options: Any) -> Any:
            path = arguments[place] if len(arguments) > place else options["filename"]
            self.note(name, path, profiled=False)
            made = call(*arguments, **options)
            if self.is_due(self.name(name, path), after=True):
                die()
            return made

        return noted

    def note(self, event: str, *paths: Any, profiled: bool = True) -> None:
        """Count an operation, and die before or after it if it is the one."""
        operation = self.name(event, *paths)
        if operation is None:
            return
        self.seen[operation] += 1
        if self.is_due(operation, after=False):
            die()
        if profiled and self.is_due(operation, after=True):
            # Its next event outside this class comes once the operation is over.
            own = (Hook.note.__code__, Hook.audit.__code__)
            sys.setprofile(lambda frame, *_: frame.f_code in own or die())

    def name(self, event: str, *paths: Any) -> str | None:
        """Return an operation's name; None if it is not in this run's folders."""
        given = [os.fsdecode(path) for path in paths if not isinstance(path, int)]
        inside = [path.removeprefix(self.root) for path in given if path.startswith(self.root)]
        return f"{event} {' '.join(map(general, inside))}" if inside else None

    def is_due(self, operation: str | None, *, after: bool) -> bool:
        """Whether this is the moment to die."""
        given = self.kill
        if given is None or operation != given.operation or after != given.after:
            return False
        return self.seen[operation] == given.number


def die() -> NoReturn:
    """End this process as a crash of the machine would."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def general(path: str) -> str:
    """Return a path without what differs between runs or steps."""
    for pattern, name in VARIABLE:
        path = re.sub(pattern, name, path)
    return path


def import_all() -> None:
    """Import what a run imports; nothing may start a thread."""
    import lamina
    from lamina.heal.libraries import import_heavy

    import_heavy()
    for module in pkgutil.walk_packages(lamina.__path__, "lamina."):
        import_module(module.name)
    for name in ("torch.utils.tensorboard", "transformers.models.qwen3.modeling_qwen3"):
        import_module(name)


def forked(body: Callable[[], int]) -> int:
    """Call a function in a fork; return its exit code, negative after a signal."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            code = body()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def started(folder: Path, kill: Kill | None = None, seen: Path | None = None) -> int:
    """Start the run in a folder; return its exit code."""

    def body() -> int:
        import datasets

        signal.alarm(LIMIT_S)
        with (folder / "log").open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.chdir(folder)
        os.environ.update(LAMINA_CACHE=str(folder / "cache"), TMPDIR=str(folder))
        datasets.config.HF_DATASETS_CACHE = folder / "datasets"
        sys.argv = ["train.py", f"hydra.run.dir={folder / RUN_FOLDER}", *RUN]
        hook = Hook(folder, kill)
        hook.install()
        try:
            run_command()
        except SystemExit as ended:
            if ended.code:
                return 1
        if seen is not None:
            seen.write_text(json.dumps(hook.seen))
        return 0

    return forked(body)


def run_command() -> None:
    """Do what `python -m train` does."""
    from train import main

    main()


def found(folder: Path) -> list[Any]:
    """Return what must be equal: losses and weights."""
    weights = sorted((folder / RUN_FOLDER).glob("checkpoints/*/final/*.safetensors"))
    status = json.loads((folder / RUN_FOLDER / "result.json").read_text())["status"]
    return [status, results(folder, 1), [sha256(w.read_bytes()).hexdigest() for w in weights]]


def left(folder: Path) -> set[str]:
    """Return the files in the run folder and in Lamina's cache."""
    paths = (path for place in (RUN_FOLDER, "cache") for path in (folder / place).rglob("*"))
    names = (str(path.relative_to(folder)) for path in paths)
    return {re.sub(*VARIABLE[0], name) for name in names}


def outcome(folder: Path, kill: Kill, expected: list[Any], files: set[str]) -> str | None:
    """Kill a run, start it again; return what is wrong, if anything."""
    folder.mkdir()
    if (code := started(folder, kill)) != -signal.SIGKILL:
        return f"the operation did not come: the first start ended with {code}"
    if code := started(folder):
        return f"the second start ended with {code}: {(folder / 'log').read_text()[-2000:]}"
    if found(folder) != expected:
        return "other losses or weights"
    here = left(folder)
    differing = [f"left: {name}" for name in here - files]
    differing += [f"missing: {name}" for name in files - here]
    if not differing:
        shutil.rmtree(folder)
    return "; ".join(differing) or None


def all_outcomes(
    root: Path, kills: Sequence[Kill], workers: int, check: Callable[[Path, Kill], str | None]
) -> Iterator[str | None]:
    """Check each interruption in a process of its own; yield what was wrong with each, in order."""
    running: dict[int, int] = {}
    answers = [root / f"{number}.json" for number in range(len(kills))]

    def answer(number: int) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        reason: str | None = "the check itself failed"
        try:
            reason = check(root / str(number), kills[number])
        finally:
            answers[number].write_text(json.dumps(reason))
            os._exit(0)

    shown = 0
    for number in range(len(kills)):
        if len(running) == workers:
            del running[os.waitpid(-1, 0)[0]]
        if (pid := os.fork()) == 0:
            answer(number)
        running[pid] = number
        while shown < number and answers[shown].exists() and shown not in running.values():
            yield json.loads(answers[shown].read_text())
            shown += 1
    for pid in running:
        os.waitpid(pid, 0)
    yield from (json.loads(path.read_text()) for path in answers[shown:])


def main() -> None:
    """Trace a run, interrupt others, show, compare with the aims."""
    parser = options("Kill a run at each of its writes, and compare what the next start makes.")
    parser.add_argument("--sample", type=at_least(1), help="interruptions; all of them by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=at_least(1), default=2, help="runs at once")
    given = parser.parse_args()
    began = time.monotonic()
    import_all()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve()
        peer = root / "peer"
        peer.mkdir()
        if code := started(peer, seen=root / "seen.json"):
            sys.exit(f"error: the undisturbed run ended with {code}: {(peer / 'log').read_text()}")
        seen = json.loads((root / "seen.json").read_text())
        kills = [
            Kill(operation=operation, number=last if after else 1, after=after)
            for operation, last in seen.items()
            for after in (False, True)
        ]
        if given.sample:
            chosen = random.Random(given.seed).sample(range(len(kills)), given.sample)
            kills = [kills[number] for number in sorted(chosen)]
        expected, files = found(peer), left(peer)
        wrong = []
        outcomes = all_outcomes(
            root, kills, given.workers, lambda folder, kill: outcome(folder, kill, expected, files)
        )
        for kill, reason in zip(kills, outcomes, strict=True):
            if reason is not None:
                wrong.append({**asdict(kill), "reason": reason})
                print(f"{'after' if kill.after else 'before'} {kill.operation}: {reason}")
    seconds = time.monotonic() - began
    show(
        "A run killed at its writes and started again",
        ["", "operations", "interrupted", "wrong", "s"],
        [["", str(len(seen)), str(len(kills)), str(len(wrong)), f"{seconds:.0f}"]],
        "each operation once before, once after",
    )
    aims = [Aim(name="runs that did not end like the undisturbed one", value=len(wrong), limit=0)]
    figures = {"operations": seen, "interrupted": len(kills), "wrong": wrong, "seconds": seconds}
    finish(figures, aims, given.json, given.check)


if __name__ == "__main__":
    main()
