"""A key goes to its own server only; a .env or a model in the working directory is someone's."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import REFERENCE, SHORT, Finished, environment, run
from tests.hostile.conftest import CANARY, Refused

QUICK = ("-m", "train", "experiment=quickstart")
KEY = "0123456789abcdef0123456789abcdef01234567"

REFUSED = {
    "HF_ENDPOINT=http://LISTENER": "HF_TOKEN",
    "export HF_ENDPOINT='http://LISTENER'": "HUGGING_FACE_HUB_TOKEN",
    f"HF_ENDPOINT=http://LISTENER\nHF_TOKEN={KEY}": "HF_TOKEN",
    "HF_TOKEN_PATH=token\nHF_ENDPOINT=http://LISTENER": "HF_TOKEN",
    "WANDB_BASE_URL=http://LISTENER": "WANDB_API_KEY",
    f"WANDB_API_KEY={KEY}\nWANDB_BASE_URL=http://LISTENER": "WANDB_API_KEY",
    'WANDB_BASE_URL = "http://LISTENER"': "WANDB_IDENTITY_TOKEN_FILE",
}
"""A .env, and the key of the environment that its server would get."""


@contextmanager
def server() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server's address, and the path and the key of each request that it got."""
    heard: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.path, self.headers.get("Authorization", "none")))
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, args=[0.05], daemon=True).start()
        yield "{}:{}".format(*running.server_address), heard
        running.shutdown()


def finished(cwd: Path, *command: str, **env: str) -> Finished:
    done = run(*command, cwd=cwd, imports="command", **env)
    return Finished(done.returncode, done.stdout, done.stderr, cwd)


@pytest.mark.parametrize("content", REFUSED)
def test_a_key_of_the_environment_never_goes_to_a_server_of_a_file(
    content: str, tmp_path: Path, refused: Refused
) -> None:
    with server() as (address, heard):
        (tmp_path / ".env").write_text(content.replace("LISTENER", address))
        done = finished(tmp_path, *QUICK, **{REFUSED[content]: KEY})
    endpoint = "HF_ENDPOINT" if "HF_ENDPOINT" in content else "WANDB_BASE_URL"
    refused(done, f".env: its {endpoint} would get the environment's {REFUSED[content]}: set ")
    assert heard == []


SENT = {
    # Where the server is named, where the key is, and whether it is sent.
    "both in .env": (".env", ".env", True),
    "both in the environment": ("environment", "environment", True),
    "the key in .env": ("environment", ".env", True),
    "a stored login": (".env", "login", False),
}


@pytest.mark.parametrize("case", SENT)
def test_a_key_goes_to_the_server_that_stands_beside_it(case: str, tmp_path: Path) -> None:
    endpoint, key, is_sent = SENT[case]
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(KEY if key == "login" else "")
    with server() as (address, heard):
        given = {"HF_ENDPOINT": f"http://{address}"} if endpoint == ".env" else {}
        given |= {"HF_TOKEN": KEY} if key == ".env" else {}
        (tmp_path / ".env").write_text("".join(f"{k}={v}\n" for k, v in given.items()))
        env = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
        env |= {"HF_ENDPOINT": f"http://{address}"} if endpoint == "environment" else {}
        env |= {"HF_TOKEN": KEY} if key == "environment" else {}
        done = finished(tmp_path, *QUICK, "model_name=someone/model", **env)
    assert "neither a folder nor a repository on the hub" in done.errors
    assert any("someone/model" in path for path, _ in heard)
    keys = {sent for path, sent in heard if "someone/model" in path}
    assert keys == {f"Bearer {KEY}" if is_sent else "none"}


IGNORED = (
    "PYTHONSTARTUP PYTHONHOME PYTHONBREAKPOINT LD_PRELOAD LD_LIBRARY_PATH BASH_ENV GIT_SSH_COMMAND "
    "GIT_CONFIG_COUNT CC CUDA_HOME WANDB_MODE WANDB_SERVICE HTTPS_PROXY REQUESTS_CA_BUNDLE "
    "HYDRA_FULL_ERROR SOMEONES_OWN LAMINA_ALLOW"
).split()
"""Variables of a .env that change what programs run, or where they send."""


def test_a_file_sets_no_variable_that_runs_code(tmp_path: Path) -> None:
    shown = ",".join(f"{name}=${{oc.env:{name},unset}}" for name in IGNORED)
    (tmp_path / ".env").write_text("".join(f"{name}=evil\n" for name in IGNORED))
    quoted = f'wandb_project="{shown}"'
    done = finished(tmp_path, *QUICK, quoted, "--cfg", "job", "--resolve", "--package", "_global_")
    assert (done.code, done.refusal) == (0, "")
    assert "evil" not in done.output
    assert "SOMEONES_OWN=unset" in done.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HOME", "~/home"),
        ("HF_DATASETS_CACHE", "rows"),
        ("WANDB_ENTITY", "lab"),
        ("WANDB_ENTITY", "${DB_PASSWORD}"),
        ("WANDB_BASE_URL", "http://here?${HOME}"),
    ],
)
def test_a_file_sets_folders_and_servers_and_reads_no_variable(
    name: str, value: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"{name}={value}\n")
    command = (*QUICK, f"wandb_project=${{oc.env:{name}}}", "--cfg", "job", "--resolve")
    env = {"DB_PASSWORD": KEY, "HF_DATASETS_CACHE": ""} if name == "WANDB_ENTITY" else {}
    done = finished(tmp_path, *command, **env)
    assert done.code == 0, done.errors
    if name != "HF_DATASETS_CACHE":  # the environment of tests has its own
        expected = str(Path(value).expanduser()) if value.startswith("~") else value
        assert f"wandb_project: {expected}\n" in done.output
    assert KEY not in done.output


ONLINE = ("logger=wandb", "seed=-1")  # the seed ends it after its checks
SEED = "error: seed=-1: use 0 to 4294967295, as NumPy does\n"
MODE = (
    "logger.wandb.mode=online: give it on the command line, or set LAMINA_ALLOW=logger.wandb.mode"
)
PUSH = "trainer.args.push_to_hub=true: give it on the command line, or set LAMINA_ALLOW="


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, (MODE, PUSH)),
        ({"WANDB_MODE": "online"}, (PUSH,)),
        ({"LAMINA_ALLOW": "logger.wandb.mode"}, (PUSH,)),
        ({"LAMINA_ALLOW": "trainer.args.push_to_hub"}, (MODE,)),
        ({"LAMINA_ALLOW": "logger.wandb.mode, trainer.args.push_to_hub"}, ()),
        ({"LAMINA_ALLOW": "logger, trainer"}, (MODE, PUSH)),
    ],
)
def test_only_the_user_publishes(
    env: dict[str, str], said: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "# @package _global_\ndefaults: [quickstart, override /logger: wandb]\n"
        "logger: {wandb: {mode: online}}\ntrainer: {args: {push_to_hub: true}}\n"
    )
    given = ("--config-dir", str(path.parents[1]), "experiment=mine", "seed=-1")
    done = finished(tmp_path, "-m", "train", *given, **env)
    assert done.code == 1
    assert [line for line in (MODE, PUSH) if line in done.errors] == [*said]
    assert "seed=-1" in done.errors


SETTINGS = """
import sys, wandb
from lamina.heal.callbacks.loggers import WandB

logger = WandB(project="p", name="n", group="g", mode="auto")
settings = wandb.Settings(silent=True, **logger._server())
run = wandb.init(project="p", mode="offline", dir=".", settings=settings)
print(run.settings.base_url)
run.finish()
"""


def test_a_settings_file_beside_a_run_does_not_redirect_the_key(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://evil.example\n")
    home = {"HOME": str(tmp_path / "home"), "WANDB_CONFIG_DIR": str(tmp_path / "home")}
    for own in ("https://api.wandb.ai", "http://own.example"):
        env = {"WANDB_API_KEY": KEY, **home}
        env |= {"WANDB_BASE_URL": own} if own != "https://api.wandb.ai" else {}
        done = run("-c", SETTINGS, cwd=tmp_path, **env)
        assert done.stdout.splitlines()[-1:] == [own], done.stderr


def foreign(folder: Path, name: str, changes: dict[str, object]) -> Path:
    """Copy the reference model, with code of its own that leaves a canary."""
    shutil.copytree(REFERENCE, folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))
    (folder / "evil.py").write_text(f"open({str(folder.parent / CANARY)!r}, 'w')\nclass Evil: pass")
    return folder


CODE = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
TOKENIZER = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}

MODELS = {
    "config of an unknown type": ("config.json", {"model_type": "evil", **CODE}),
    "config of a type without a causal model": ("config.json", {"model_type": "vit", **CODE}),
}


@pytest.mark.parametrize("command", ["train", "scan", "cut"])
@pytest.mark.parametrize("case", MODELS)
def test_the_code_of_a_model_never_runs(
    case: str, command: str, tmp_path: Path, refused: Refused
) -> None:
    folder = foreign(tmp_path / "model", *MODELS[case])
    own = ["model=dropped", "model.layer_to_drop=2", "output=small"]
    given = own if command == "cut" else ["experiment=quickstart"]
    start = [str(Path(sys.executable).with_name("lamina")), command, f"model_name={folder}", *given]
    done = run(*start, cwd=tmp_path)
    kind = "evil" if "unknown" in case else "vit"
    refused(Finished(done.returncode, done.stdout, done.stderr, tmp_path), kind)


def test_a_model_of_a_known_type_is_used_without_its_code_and_without_a_question(
    tmp_path: Path,
) -> None:
    folder = foreign(tmp_path / "model", "tokenizer_config.json", TOKENIZER)
    content = json.loads((folder / "config.json").read_text()) | CODE
    (folder / "config.json").write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, "-m", "train", *SHORT, f"model_name={folder}", "dry_run=true"],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert not (tmp_path / CANARY).exists()
