"""Commands forked from a process that has already imported the libraries.

Importing torch, transformers, trl, peft, datasets and wandb takes ten seconds of CPU, more than
most runs of a test. Each process of pytest starts a server, a fresh interpreter that imports them
and runs nothing; tests with variables of their own start another. A command is a fork of one, with
its own arguments, folder, environment and output. Several may run at once.

`needs_fresh` decides which commands still start a fresh interpreter. Two differences remain. All
forks of a server share its hash seed: only two sessions can show a dependence on the order of a
set. And a fork does not tear its modules down: what a global's `__del__` would do is not done.
"""

import atexit
import gc
import json
import os
import pkgutil
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, NoReturn, Self

LIBRARIES = (
    "datasets.packaged_modules.generator.generator",
    "multiprocessing.synchronize",
    "peft.utils.transformers_weight_conversion",
    "torch.utils.tensorboard",
    "transformers.models.qwen3.modeling_qwen3",
    "wandb._analytics",
    "wandb.apis.public",
    "wandb.sdk.launch",
)
"""What a run imports late, beside what `import_heavy` and the modules of `lamina` import."""

MAY_DIFFER = frozenset(
    {
        "COLUMNS",
        "LAMINA_ALLOW",
        "LAMINA_CACHE",
        "PYTEST_CURRENT_TEST",
        "TOKENIZERS_PARALLELISM",  # set in pytest's own process by a test that tokenizes
        "TORCHINDUCTOR_CACHE_DIR",  # set in pytest's own process by importing torch's compiler
    }
)
"""Variables that nothing reads at import: a fork may have other values than its server."""

RANKS = frozenset({"distributed", "parallel"})
"""Keys with which torchrun starts processes; a dry run only counts them."""

DRIVER = Path("/dev/nvidiactl")
"""Imports look for GPUs, and CUDA fails in a fork of a process that has looked."""


def needs_fresh(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], imported: Mapping[str, str]
) -> str | None:
    """Return why a command needs a fresh interpreter; None where a fork equals one.

    Args:
        command: Its arguments.
        cwd: Its folder.
        env: Its environment.
        imported: The environment in which the server imports.
    """
    changed = {name for name in {*env, *imported} if env.get(name) != imported.get(name)}
    if changed := changed - MAY_DIFFER:
        return f"may be read at import: {', '.join(sorted(changed))}"
    if (cwd / ".env").exists():
        return ".env sets variables before the libraries are imported"
    processes = {"hydra/launcher"} | (frozenset() if "dry_run=true" in command else RANKS)
    if keys := processes.intersection(argument.partition("=")[0] for argument in command):
        return f"starts processes: {', '.join(sorted(keys))}"
    if "backend=unsloth" in command:
        return "Unsloth patches what is imported after it"
    return "CUDA fails in a fork" if DRIVER.exists() else None


class Server:
    """A process that has imported libraries, and forks commands."""

    def __init__(self, env: Mapping[str, str], imports: str = "everything") -> None:
        """Start it.

        Args:
            env: The environment in which it imports.
            imports: A key of `IMPORTS`.

        Raises:
            RuntimeError: An import failed, or printed something: no fork would print it.
        """
        self.env, self.imports = env, imports
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ended: dict[int, int] = {}
        with theirs, TemporaryFile("w+") as printed:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), imports],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=[theirs.fileno()],
            )
            theirs.close()
            ready = self._link.recv(1)
            printed.seek(0)
            if (said := printed.read()) or not ready:
                raise RuntimeError(f"importing the libraries failed, or printed:\n{said}")

    def close(self) -> None:
        """End it."""
        self._link.close()
        self._process.wait()

    def start(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> "Process":
        """Start a Python script, `-m` and a module, or `-c` and code, in a fork.

        Args:
            command: What stands behind `python` in a command line.
            cwd: Its folder.
            env: Its environment.
        """
        request = json.dumps({"command": command, "cwd": str(cwd.absolute()), "env": env})
        files = os.memfd_create("stdout"), os.memfd_create("stderr")
        socket.send_fds(self._link, [request.encode()], files)
        while (pid := self._hear()) is None:
            pass
        return Process(command, pid, files, partial(self._exit_code, pid))

    def run(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Start a command and wait for its end, like `subprocess.run`.

        Raises:
            subprocess.TimeoutExpired: It was killed after that many seconds.
        """
        with self.start(command, cwd=cwd, env=env) as process:
            return process.completed(timeout)

    def _exit_code(self, pid: int, timeout: float) -> int | None:
        deadline = time.monotonic() + timeout
        while pid not in self._ended:
            if not select.select([self._link], [], [], max(deadline - time.monotonic(), 0))[0]:
                return None
            self._hear()
        return self._ended[pid]

    def _hear(self) -> int | None:
        """Take the server's next message: the pid of a fork that began, or that of one that ended.

        Returns:
            The pid of the one that began.
        """
        pid, *status = map(int, self._link.recv(32).split())
        if not status:
            return pid
        self._ended[pid] = os.waitstatus_to_exitcode(status[0])
        return None


class Process:
    """A running command, used like `subprocess.Popen`; the end of a `with` kills it."""

    def __init__(
        self,
        command: Sequence[str],
        pid: int,
        files: Sequence[int],
        wait: Callable[[float], int | None],
    ) -> None:
        """Take over a process.

        Args:
            command: Its arguments.
            pid: Its id.
            files: What it prints to stdout and stderr.
            wait: Waits that many seconds at most; returns the exit code if it has ended.
        """
        self._command, self.pid, self._files, self._wait = command, pid, files, wait

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for file in self._files:
            os.close(file)

    def poll(self) -> int | None:
        """Return the exit code, negative after a signal; None while it runs."""
        return self._wait(0)

    def kill(self) -> None:
        """Kill it unless it has ended, and wait for its end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._wait(60)

    def completed(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It still runs after that many seconds.
        """
        if (code := self._wait(timeout)) is None:
            raise subprocess.TimeoutExpired(self._command, timeout)
        said = (Path(f"/proc/self/fd/{file}").read_text() for file in self._files)
        return subprocess.CompletedProcess(self._command, code, *said)


def fresh(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Process:
    """Start a command in a fresh interpreter, as `Server.start` does in a fork."""
    files = os.memfd_create("stdout"), os.memfd_create("stderr")
    stdin, (stdout, stderr) = subprocess.DEVNULL, files
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env=env,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )

    def wait(timeout: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout)
        return None

    return Process(command, process.pid, files, wait)


def import_all() -> None:
    """Import what commands import, in the order in which they do; nothing may run."""
    import lamina.commands.train
    from lamina.heal.libraries import import_heavy

    import_heavy()
    for module in pkgutil.walk_packages(lamina.__path__, "lamina."):
        import_module(module.name)
    for name in LIBRARIES:
        import_module(name)


def import_command() -> None:
    """Import what a refused command imports."""
    import_module("lamina.commands.train")
    import_module("lamina.config.composition")


def import_transformers() -> None:
    """Import what a user of a model imports, and nothing of ours."""
    import_module("transformers.models.qwen3.modeling_qwen3")
    import_module("transformers.models.auto.modeling_auto")


IMPORTS = {
    "everything": import_all,
    "command": import_command,
    "transformers": import_transformers,
}
"""What a server imports."""


def _import(imports: str) -> dict[str, str]:
    """Import; return the variables that the imports set."""
    if imports != "transformers":
        from lamina.runtime.paths import load_environment

        load_environment()  # as a command does first
    before = dict(os.environ)
    IMPORTS[imports]()
    return dict(os.environ.items() - before.items())


def _serve(link: socket.socket, imports: str) -> dict[str, Any]:
    """Import, then fork a process for each request; return the request, in its fork alone."""
    # What Ctrl-C sends to the terminal's processes ends the command, and pytest ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with TemporaryDirectory() as empty:  # no .env is read, and no test's module is imported
        os.chdir(empty)
        del sys.path[0]
        made = _import(imports)
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert threads <= {"python", "jemalloc_bg_thd"}, f"an import started threads: {threads}"
    gc.collect()
    gc.freeze()  # collections in the forks would copy every page
    link.send(b"1")
    asked, files = _requested(link)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    request = json.loads(asked)
    return {**request, "env": {**made, **request["env"]}}


def _requested(link: socket.socket) -> tuple[bytes, list[int]]:
    """Fork for each request, and tell when a fork ends; return the request, in its fork alone."""
    selector = selectors.DefaultSelector()
    selector.register(link, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is not None:
                selector.unregister(key.fd)
                os.close(key.fd)
                link.send(f"{key.data} {os.waitpid(key.data, 0)[1]}".encode())
                continue
            asked, files, *_ = socket.recv_fds(link, 1 << 20, 2)
            if not asked:
                os._exit(0)
            if (pid := os.fork()) == 0:
                for each in selector.get_map().values():
                    os.close(each.fd)
                link.detach()
                selector.close()
                return asked, files
            for file in files:
                os.close(file)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            link.send(str(pid).encode())


def _become(command: list[str], cwd: str, env: dict[str, str]) -> None:
    """Do what a fresh interpreter does with a command line."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if torch := sys.modules.get("torch"):  # Python's own generator is seeded by the fork
        sys.modules["numpy"].random.seed()
        torch.default_generator.seed()
    sys.orig_argv = [sys.executable, *command]
    sys.argv = command[command[0] == "-m" :]
    if command[0] == "-m":
        sys.path.insert(0, cwd)
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        del sys.argv[1]
        sys.path.insert(0, "")
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(command[0]).resolve().parent))
        runpy.run_path(command[0], run_name="__main__")


def _exit_code(command: Callable[[], None]) -> int:
    """Return the exit code of what a command does, and print what the interpreter would print."""
    try:
        command()
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            sys.stderr.write(f"{ended.code}\n")
            return 1
        return (ended.code or 0) & 0xFF
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End as the interpreter does, but leave the modules alone: that would copy all their pages."""
    threading._shutdown()
    atexit._run_exitfuncs()
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    request = _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
    _end(_exit_code(lambda: _become(**request)))
