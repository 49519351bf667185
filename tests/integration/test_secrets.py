"""No secret is written; a config that would write one is refused first."""

import hashlib
import secrets
from pathlib import Path

import pytest

from tests.conftest import SHORT, Finished, train

NAMES = ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_APIKEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")
KEPT = "keys stay in the environment or in .env, and are never written"


def written(folder: Path, known: list[str]) -> list[Path]:
    """Return the files and folders below one that contain a secret or have it in their name."""
    found = []
    for path in folder.rglob("*"):
        if path.name == ".env":
            continue
        content = path.read_bytes() if path.is_file() else b""
        if any(each in str(path) or each.encode() in content for each in known):
            found.append(path)
    return found


def test_a_run_writes_no_secret(tmp_path: Path) -> None:
    known = {name: secrets.token_hex(20) for name in NAMES}
    known["HF_TOKEN"] = f"hf_{secrets.token_hex(20)}"
    in_file = secrets.token_hex(20)
    (tmp_path / ".env").write_text(f"HUGGINGFACE_API_KEY={in_file}\n")
    done = train(tmp_path / "run", *SHORT, "logger=both", "logger.wandb.mode=offline", **known)
    assert done.code == 0, done.errors
    assert list((done.folder / "wandb").glob("offline-run-*"))
    assert len(list(done.folder.rglob("*"))) > 30
    assert written(tmp_path, [*known.values(), in_file]) == []
    assert not any(each in done.output + done.errors for each in [*known.values(), in_file])
    # The search finds a planted secret.
    (done.folder / "logs" / "note").write_text(f"key: {in_file}")
    assert written(tmp_path, [in_file]) == [done.folder / "logs" / "note"]


KEY = hashlib.sha1(b"no file has it in this form").hexdigest()

REFUSED = {
    "wandb_project: ${oc.env:WANDB_API_KEY}": "wandb_project: refers to the secret WANDB_API_KEY; "
    + KEPT,
    "logger: {wandb: {name: 'run-${oc.env:WANDB_API_KEY}'}}": "logger.wandb.name: refers to the "
    f"secret WANDB_API_KEY; {KEPT}",
    "output_dir: runs/${oc.env:WANDB_API_KEY}": "output_dir: refers to the secret WANDB_API_KEY; "
    + KEPT,
    "hydra: {run: {dir: 'runs/${oc.env:WANDB_API_KEY}'}}": "hydra.run.dir: refers to the secret "
    f"WANDB_API_KEY; {KEPT}",
    "hydra: {run: {dir: 'runs/${oc.decode:${run_dir}}'}}": "conf file experiment/mine: "
    "hydra.run.dir: a config file must not set this; LAMINA_ALLOW=hydra.run.dir allows it",
    f"wandb_project: lamina-{KEY}": f"wandb_project: holds the value of WANDB_API_KEY; {KEPT}",
    "wandb_project: '${${model_name}:WANDB_API_KEY}'\nmodel_name: oc.env": "wandb_project: refers "
    f"to the secret WANDB_API_KEY; {KEPT}",
}


@pytest.mark.parametrize("content", REFUSED)
def test_a_config_file_that_would_write_a_secret_is_refused(content: str, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    (conf / "experiment").mkdir(parents=True)
    logged = "defaults:\n  - quickstart\n  - override /logger: wandb\n"
    text = f"# @package _global_\n{logged}\n{content}\n"
    (conf / "experiment" / "mine.yaml").write_text(text)
    done = started(tmp_path, "--config-dir", str(conf), "experiment=mine")
    assert done.refusal == f"error: {REFUSED[content]}\n"
    assert done.code == 1
    assert written(tmp_path / "place", [KEY]) == []


def started(tmp_path: Path, *given: str) -> Finished:
    """Run the command in an empty folder with the default run folder."""
    import subprocess
    import sys

    from tests.conftest import environment

    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "train", *given],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment(WANDB_API_KEY=KEY),
        timeout=300,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr, place)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (f"logger.wandb.name={KEY}", "logger.wandb.name: holds the value of WANDB_API_KEY"),
        (f"++key_{KEY}=1", "a key of the config: holds the value of WANDB_API_KEY"),
        (f"hydra.run.dir=runs/{KEY}", "hydra.run.dir: holds the value of WANDB_API_KEY"),
    ],
)
def test_an_argument_that_holds_a_secret_is_refused(
    argument: str, message: str, tmp_path: Path
) -> None:
    done = started(tmp_path, "experiment=quickstart", "logger=wandb", argument)
    assert done.refusal == f"error: {message}; {KEPT}\n"
    assert done.code == 1
    assert list(done.folder.rglob("*")) == []


def test_a_model_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    import pickle
    import shutil

    from tests.conftest import REFERENCE

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "unpickled",)  # type: ignore[return-value]

    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REFERENCE / name, folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))
    done = train(tmp_path / "run", *SHORT, f"model_name={folder}")
    assert done.code == 1
    assert done.refusal.startswith(f"error: model_name={folder} has no safetensors weights")
    assert not (tmp_path / "unpickled").exists()
