"""Commands forked from a process that has already imported the libraries.

Importing torch, transformers, trl, peft, datasets and wandb takes ten seconds of CPU, more than
most runs of a test. Each process of pytest starts one server, a fresh interpreter that imports them
and runs nothing. A command is a fork of it, with its own arguments, folder, environment and pipes.

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
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, NoReturn

LIBRARIES = (
    "datasets.packaged_modules.generator.generator",
    "matplotlib.pyplot",
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
        "LAMINA_CACHE",
        "PYTEST_CURRENT_TEST",
        "TOKENIZERS_PARALLELISM",  # set in pytest's own process by a test that tokenizes
        "TORCHINDUCTOR_CACHE_DIR",  # set in pytest's own process by importing torch's compiler
    }
)
"""Variables that nothing reads at import: a fork may have other values than its server."""

PROCESSES = frozenset({"backend", "distributed", "hydra/launcher", "parallel"})
"""Keys that start processes: with torchrun or submitit, or for Unsloth."""

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
    if keys := PROCESSES.intersection(argument.partition("=")[0] for argument in command):
        return f"starts processes: {', '.join(sorted(keys))}"
    return "CUDA fails in a fork" if DRIVER.exists() else None


class Server:
    """A process that has imported the libraries, and forks commands one after the other."""

    def __init__(self, env: Mapping[str, str], *, heavy: bool = True) -> None:
        """Start it.

        Args:
            env: The environment in which it imports.
            heavy: Whether it imports torch and its relatives, or only what a refused command does.

        Raises:
            RuntimeError: An import failed, or printed something: no fork would print it.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, TemporaryFile("w+") as printed:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *["heavy"][:heavy]],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=[theirs.fileno()],
            )
            theirs.close()
            ready = self._socket.recv(1)
            printed.seek(0)
            if (said := printed.read()) or not ready:
                raise RuntimeError(f"importing the libraries failed, or printed:\n{said}")

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.wait()

    def run(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python script, or `-m` and a module, in a fork; otherwise like `subprocess.run`.

        Args:
            command: The script or `-m MODULE`, and the arguments.
            cwd: Its folder.
            env: Its environment.
            timeout: In seconds.

        Raises:
            subprocess.TimeoutExpired: It was killed.
        """
        request = json.dumps({"command": command, "cwd": str(cwd.absolute()), "env": env})
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        socket.send_fds(self._socket, [request.encode()], [its_out, its_err])
        os.close(its_out)
        os.close(its_err)
        pid = int(self._socket.recv(32))
        with ThreadPoolExecutor(2) as pool:
            said = pool.map(_read, (out, err))
            self._socket.settimeout(timeout)
            try:
                code = os.waitstatus_to_exitcode(int(self._socket.recv(32)))
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                self._socket.settimeout(None)
                self._socket.recv(32)
                raise subprocess.TimeoutExpired(command, timeout) from None
            return subprocess.CompletedProcess(command, code, *said)


def _read(pipe: int) -> str:
    with open(pipe) as file:
        return file.read()


def import_all() -> None:
    """Import what commands import, in the order in which they do; nothing may run."""
    import lamina.commands.train
    from lamina.heal.libraries import import_heavy

    import_heavy()
    for module in pkgutil.walk_packages(lamina.__path__, "lamina."):
        import_module(module.name)
    for name in LIBRARIES:
        import_module(name)


def _import(*, heavy: bool) -> dict[str, str]:
    """Import; return the variables that the imports set."""
    from lamina.runtime.paths import load_environment

    load_environment()  # as a command does first
    before = dict(os.environ)
    if heavy:
        import_all()
    else:
        import_module("lamina.commands.train")
    return dict(os.environ.items() - before.items())


def _serve(link: socket.socket, *, heavy: bool) -> dict[str, Any]:
    """Import, then fork a process for each request; return the request, in its fork alone."""
    # What Ctrl-C sends to the terminal's processes ends the command, and pytest ends this one.
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with TemporaryDirectory() as empty:  # no .env is read, and no test's module is imported
        os.chdir(empty)
        del sys.path[0]
        made = _import(heavy=heavy)
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert threads <= {"python", "jemalloc_bg_thd"}, f"an import started threads: {threads}"
    gc.collect()
    gc.freeze()  # collections in the forks would copy every page
    link.send(b"1")
    while True:
        asked, pipes, *_ = socket.recv_fds(link, 1 << 20, 2)
        if not asked:
            os._exit(0)
        if (pid := os.fork()) == 0:
            link.close()
            signal.signal(signal.SIGINT, interrupted)
            for number, pipe in enumerate(pipes, 1):
                os.dup2(pipe, number)
                os.close(pipe)
            request = json.loads(asked)
            return {**request, "env": {**made, **request["env"]}}
        for pipe in pipes:
            os.close(pipe)
        link.send(str(pid).encode())
        link.send(str(os.waitpid(pid, 0)[1]).encode())


def _become(command: list[str], cwd: str, env: dict[str, str]) -> None:
    """Do what a fresh interpreter does with a command line."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if torch := sys.modules.get("torch"):  # Python's own generator is seeded by the fork
        sys.modules["numpy"].random.seed()
        torch.default_generator.seed()
    is_module = command[0] == "-m"
    sys.argv = command[is_module:]
    sys.path.insert(0, cwd if is_module else str(Path(command[0]).resolve().parent))
    if is_module:
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
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
    request = _serve(socket.socket(fileno=int(sys.argv[1])), heavy="heavy" in sys.argv[2:])
    _end(_exit_code(lambda: _become(**request)))
