"""Models and data sets by their hub ids: what is downloaded, recorded and reported.

The clients are real; the hub is a server on this machine.
"""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REFERENCE, ROOT, SHORT, Finished, forking, lamina, run, train
from tests.hub.server import Hub, HubServer

MODEL, DATA = "lamina/reference", "lamina/sample"
IDS = (f"model_name={MODEL}", "data=hub", f"data.name={DATA}")
TINY = (*SHORT, "max_steps=2", "eval_steps=2", "save_steps=2", "evaluation.num_samples=1")

RELOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM
folder, rows, revision = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, revision=revision)
nll = tokens = 0
for row in map(json.loads, open(rows)):
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
    count = int((labels[:, 1:] != -100).sum())
    with torch.no_grad():
        nll += model(input_ids=ids, labels=labels).loss.item() * count
    tokens += count
print(json.dumps({"layers": model.config.num_hidden_layers, "loss": nll / tokens}))
"""
"""A user's own check of final/, without Lamina."""

LOAD = """
import json, sys, torch
from lamina.depth.loading import load_model
from lamina.weights.source import resolve
name, folder = sys.argv[1:]
source = resolve(name)
loaded = [load_model(s, range(4), dtype=torch.float32) for s in (source, resolve(folder))]
ours, theirs = (model.state_dict() for model in loaded)
same = ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
print(json.dumps({"revision": source.revision, "same": same}))
"""
"""Loads the first four layers of a model by its id and from its folder."""

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1])
print("null")
"""

FIND = """
import json, sys
from lamina.weights.source import resolve
source = resolve(sys.argv[1])
absent = source.fetch("no_such_file.json", required=False)
files = sorted(set(source.weight_map.values()))
print(json.dumps([files, absent, "torch" in sys.modules]))
"""

READ = """
import json, sys
from lamina.errors import DataError
from lamina.data.sources import Hub
said = []
for name, config, split, held in json.loads(sys.argv[1]):
    keys = dict(name=name, config=config, train=split, eval=held, eval_fraction=0.2, loss_on="auto")
    keys |= dict(max_train_samples=None, max_eval_samples=None, columns={}, on_bad_row="error")
    keys |= dict(chat_template=None, max_dropped=0.01, answers="given", answer_settings=None)
    try:
        said.append(f"{len(Hub(**keys).load().eval.rows)} rows")
    except DataError as error:
        said.append(str(error))
print(json.dumps(said))
"""
"""Reads data sets and reports the outcome of each."""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of generated rows, laid out as people upload one."""
    from lamina.data.synthetic import generate

    folder = tmp_path_factory.mktemp("sample")
    for name, split, count in (("train", "train", 40), ("test", "eval", 10)):
        lines = [json.dumps(row) for row in islice(generate(split, 1), count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model in several shards."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("sharded")
    model = AutoModelForCausalLM.from_pretrained(REFERENCE)
    model.save_pretrained(folder, max_shard_size="500KB")
    return folder


class Clients:
    """The hub's real clients: at import they read its address and that of their cache.

    Both stay the same, such that commands can be forked; what they lead to changes.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        with socket.create_server(("127.0.0.1", 0)) as closed:
            self.port = closed.getsockname()[1]
        self.server: HubServer | None = None

    def of(self, hub: Hub | None, cache: Path, offline: str = "0") -> dict[str, str]:
        """Return the variables for a hub, or for one that cannot be reached, and a cache."""
        self.close()
        self.server = HubServer(hub, self.port) if hub else None
        self.home.unlink(missing_ok=True)
        cache.mkdir(exist_ok=True)
        self.home.symlink_to(cache)
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HOME": str(self.home),
            "HF_DATASETS_CACHE": str(self.home / "datasets"),
            "HF_HUB_OFFLINE": offline,
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }

    def close(self) -> None:
        if self.server:
            self.server.close()
            self.server = None


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    folder = tmp_path_factory.mktemp("clients")
    clients = Clients(folder)
    with forking(**clients.of(None, folder / "nothing")):
        yield clients
    clients.close()


@pytest.fixture(scope="module")
def hub(sample: Path) -> Hub:
    hub = Hub()
    hub.publish(f"models/{MODEL}", REFERENCE)
    hub.publish(f"datasets/{DATA}", sample)
    return hub


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of `trained`."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(
    clients: Clients, hub: Hub, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """A training that downloaded everything."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = train(folder, *TINY, *IDS, **clients.of(hub, cache))
    assert done.code == 0, done.errors
    return done


def python(
    script: str, *arguments: object, env: dict[str, str], imports: str = "everything"
) -> Any:
    """Run a script and return what it prints."""
    done = run("-c", script, *arguments, cwd=ROOT, imports=imports, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(done: Finished) -> str:
    """Return the single error that a run ended with."""
    assert done.code == 1, done.output
    assert "Traceback" not in done.errors
    assert "Retrying" not in done.errors
    assert done.errors.count("error: ") == 1
    return done.errors.splitlines()[-1]


def test_training_takes_a_model_id_and_a_data_set_id(trained: Finished, hub: Hub) -> None:
    commit = hub.commits[f"models/{MODEL}"][-1].hash
    assert trained.result["status"] == "completed"
    assert trained.result["provenance"]["base_model"] == MODEL
    assert trained.result["provenance"]["base_revision"] == commit
    assert trained.metrics["eval_loss"] > 0


def test_only_the_needed_files_were_downloaded(trained: Finished, hub: Hub) -> None:
    assert hub.downloaded(f"datasets/{DATA}") == {"train.jsonl", "test.jsonl"}
    files = hub.downloaded(f"models/{MODEL}")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert "README.md" not in files


def test_an_adapter_names_its_base_by_id_and_commit(trained: Finished, hub: Hub) -> None:
    adapter = json.loads((trained.final / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == MODEL
    assert adapter["revision"] == hub.commits[f"models/{MODEL}"][-1].hash


def test_final_reloads_on_another_machine_though_the_hub_has_moved_on(
    trained: Finished, clients: Clients, sharded: Path, tmp_path: Path
) -> None:
    adapter = json.loads((trained.final / "adapter_config.json").read_text())
    later = Hub()
    first = later.publish(f"models/{MODEL}", REFERENCE)
    later.publish(f"models/{MODEL}", sharded)
    arguments = (trained.final, trained.folder / "eval.jsonl", adapter["revision"])
    loaded = python(RELOAD, *arguments, env=clients.of(later, tmp_path), imports="transformers")
    assert first == adapter["revision"]
    assert "model.safetensors" in later.downloaded(f"models/{MODEL}")
    assert loaded["layers"] == len(trained.result["kept_layers"])
    assert loaded["loss"] == pytest.approx(trained.metrics["eval_sample_loss"], rel=1e-5)


def test_only_files_with_kept_layers_are_downloaded(
    clients: Clients, sharded: Path, tmp_path: Path
) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    layer = {name: re.search(r"layers\.(\d+)\.", name) for name in index}
    needed = {index[n] for n, found in layer.items() if found is None or int(found[1]) < 4}
    assert needed < set(index.values())
    hub = Hub()
    commit = hub.publish("models/lamina/sharded", sharded)
    loaded = python(LOAD, "lamina/sharded", sharded, env=clients.of(hub, tmp_path))
    assert loaded == {"revision": commit, "same": True}
    weights = {f for f in hub.downloaded("models/lamina/sharded") if f.endswith(".safetensors")}
    assert weights == needed


def test_a_model_is_shown_from_its_headers(clients: Clients, sharded: Path, tmp_path: Path) -> None:
    hub = Hub()
    hub.publish("models/lamina/sharded", sharded)
    done = lamina("show", "lamina/sharded", cwd=tmp_path, **clients.of(hub, tmp_path / "cache"))
    assert done.code == 0, done.errors
    assert "1,814,528" in done.output
    assert not [name for name in hub.downloaded("models/lamina/sharded") if "model-" in name]
    assert {name for _, name in hub.parts} == {p.name for p in sharded.glob("*.safetensors")}


def test_a_model_is_cut_by_its_id(clients: Clients, sharded: Path, tmp_path: Path) -> None:
    hub = Hub()
    commit = hub.publish("models/lamina/sharded", sharded)
    given = ("model_name=lamina/sharded", "model=pruned", "model.keep_layers=4", "output=out")
    done = lamina("cut", *given, cwd=tmp_path, **clients.of(hub, tmp_path / "cache"))
    assert done.code == 0, done.errors
    note = json.loads((tmp_path / "out" / "lamina.json").read_text())
    assert (note["source_model"], note["revision"]) == ("lamina/sharded", commit)
    assert note["source_fingerprint"] is None
    assert "base_model: lamina/sharded" in (tmp_path / "out" / "README.md").read_text()


def test_every_chat_template_of_a_model_is_copied_by_its_id(
    clients: Clients, tmp_path: Path
) -> None:
    source, hub = tmp_path / "source", Hub()
    shutil.copytree(REFERENCE, source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    hub.publish("models/lamina/templates", source)
    given = ("model_name=lamina/templates", "model=pruned", "model.keep_layers=4")
    env = clients.of(hub, tmp_path / "cache")
    done = lamina("cut", *given, "output=out", cwd=tmp_path, **env)
    assert done.code == 0, done.errors
    copied = tmp_path / "out" / "additional_chat_templates"
    assert [path.name for path in copied.iterdir()] == ["tool_use.jinja"]
    env = clients.of(None, tmp_path / "cache", offline="1")
    done = lamina("cut", *given, "output=again", cwd=tmp_path, **env)
    assert done.code == 0, done.errors
    assert (tmp_path / "again" / "additional_chat_templates" / "tool_use.jinja").is_file()


def test_a_cached_model_and_data_set_need_no_hub(
    trained: Finished, clients: Clients, cache: Path, tmp_path: Path
) -> None:
    done = train(tmp_path / "run", *TINY, *IDS, "evaluation=none", **clients.of(None, cache))
    assert done.code == 0, done.errors
    assert "Retrying" not in done.errors
    for key in ("base_model", "base_revision", "data_fingerprint"):
        assert done.result["provenance"][key] == trained.result["provenance"][key]


def test_a_snapshot_is_enough_offline(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    python(DOWNLOAD, MODEL, env=clients.of(hub, tmp_path))
    offline = clients.of(None, tmp_path, offline="1")
    found = python(FIND, MODEL, env=offline)  # no server has imported in this environment
    assert found == [["model.safetensors"], None, False]


@pytest.mark.parametrize("ids", [IDS[:1], IDS[1:]], ids=["model", "data"])
def test_an_unreachable_hub_is_reported_at_once(
    clients: Clients, tmp_path: Path, ids: tuple[str, ...]
) -> None:
    done = train(tmp_path / "run", *TINY, *ids, **clients.of(None, tmp_path / "cache"))
    message = refused(done)
    assert message.startswith(f"error: {ids[-1]}: the hub cannot be reached")
    assert "experiment=quickstart works offline" in message
    assert done.result["status"] == "failed"


@pytest.mark.parametrize("name", ["lamina/unknown", "two words"])
def test_an_unknown_model_is_reported(
    clients: Clients, hub: Hub, tmp_path: Path, name: str
) -> None:
    overrides = [*TINY, f"model_name={name}"]
    done = train(tmp_path / "run", *overrides, **clients.of(hub, tmp_path / "cache"))
    expected = f"error: model_name={name}: neither a folder nor a repository on the hub"
    assert refused(done).startswith(expected)


def test_a_gated_model_is_reported(clients: Clients, hub: Hub, tmp_path: Path) -> None:
    hub.publish("models/lamina/gated", REFERENCE)
    hub.gated.add("models/lamina/gated")
    overrides = [*TINY, "model_name=lamina/gated"]
    done = train(tmp_path / "run", *overrides, **clients.of(hub, tmp_path / "cache"))
    assert "accept its terms on the hub, then set HF_TOKEN" in refused(done)


def test_a_data_set_that_cannot_be_read_is_reported(
    clients: Clients, hub: Hub, tmp_path: Path
) -> None:
    for name, file, content in (
        ("empty", "notes.md", "no rows"),
        ("broken", "train.jsonl", '{"text": "a"}\n{"text": '),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
        hub.publish(f"datasets/lamina/{name}", tmp_path / name)
    expected = {
        (DATA, None, "train"): "8 rows",
        (DATA, None, "dev"): f"data.train=dev: {DATA} has the splits train, test; choose one",
        (DATA, "other", "test"): f"data.config=other: {DATA} has default; choose one of them",
        ("lamina/unknown", None, "train"): "data.name=lamina/unknown: no such data set on the hub",
        ("two words", None, "train"): "data.name=two words: Repo id must use",
        ("lamina/empty", None, "train"): "data.name=lamina/empty: holds no data files, such as "
        "parquet, jsonl or csv",
        ("lamina/broken", None, "train"): "data.name=lamina/broken: JSON parse error",
    }
    asked = [(*each, None) for each in expected]
    said = python(READ, json.dumps(asked), env=clients.of(hub, tmp_path / "cache"))
    for line, start in zip(said, expected.values(), strict=True):
        assert line.startswith(start)


def test_rows_that_are_trained_are_not_evaluated(
    clients: Clients, hub: Hub, tmp_path: Path
) -> None:
    expected = {
        ("train[:90%]", "train[:10%]"): "trained",
        ("train[:21]", "train[20:]"): "trained",
        ("train", "train[:5%]"): "trained",
        ("train[:9%]", "train"): "trained",
        ("test+train[:5]", "train[4:6]"): "trained",
        ("all", "test"): "trained",
        ("test", "all"): "trained",
        ("train[:20]", "train[20:]"): "20 rows",
        ("train[:90%]", "train[90%:]+test"): "14 rows",
        ("all", "auto"): "10 rows",
        ("train", "dev[:1]"): f"data.eval=dev[:1]: {DATA} has the splits train, test; choose one "
        "of them, or data.eval=null to hold out data.eval_fraction of the training rows",
    }
    asked = [(DATA, None, *each) for each in expected]
    said = python(READ, json.dumps(asked), env=clients.of(hub, tmp_path / "cache"))
    for line, wanted, (_, held) in zip(said, expected.values(), expected, strict=True):
        refused = line.startswith(f"data.eval={held}: data.train=") and "also trains on it" in line
        assert (refused and wanted == "trained") or line == wanted
