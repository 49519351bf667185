"""Property: any chain of older files composes to its resolved values when migrated."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from lamina.config.library_fields import counterpart
from lamina.config.schema import register
from lamina.legacy.experiment_file import experiment, scalar
from lamina.legacy.flag import take_old
from lamina.legacy.form import resolve
from lamina.runtime.paths import conf_dir

Written = tuple[str, Any]
"""A value as written in the file, and its meaning."""

TRICKY = [
    "${seed}",
    "${oc.env:HOME}",
    "\\${seed}",
    "\\\\${a",
    "a: b # c",
    "'\"",
    "1e5",
    "0x10",
    "no",
    "null",
    "~",
    "2024-05-01",
    "1:30",
    "- a",
    "{a: b}",
    "C:\\runs\\new",
    "line\nline\n",
    " spaces ",
    "",
    "\x85\u2028\t\x1b",
    "\U0001f600 é",
    "@here",
    "%tag",
    "auto",
]


def quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', width=float("inf")).strip()


def plain(text: str) -> str:
    """As PyYAML would write it, without quotes where it can; on one line."""
    return yaml.safe_dump({"k": text}, width=float("inf"))[2:].strip()


TEXTS: st.SearchStrategy[Written] = st.one_of(
    (st.sampled_from(TRICKY) | st.text(max_size=12))
    .filter(lambda text: text != "???")
    .flatmap(lambda text: st.sampled_from([(quoted(text), text), (plain(text), text)])),
    st.sampled_from(
        [(text, text) for text in ("2024-05-01", "yes", "1e5", "0.5", "${seed}", "a-b")]
    ),
)
"""Quoted, and unquoted where YAML reads a text as something else."""

WHOLE: st.SearchStrategy[Written] = st.one_of(
    st.integers(-(10**20), 10**20).map(lambda n: (str(n), n)),
    st.integers(0, 10**6).map(lambda n: (f"{n:_}", n)),
    st.integers(1, 9).map(lambda n: (f"{n}e2", n * 100)),
    st.integers(0, 99).map(lambda n: (f"{n}.0", n)),
    st.integers(0, 99).map(lambda n: (f'"{n}"', n)),
)

NUMBERS: st.SearchStrategy[Written] = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(lambda x: (repr(x), x)),
    st.floats(0, 1).map(lambda x: (f"{x:.3e}", float(f"{x:.3e}"))),
    st.integers(1, 9).map(lambda n: (f"{n}e-4", float(f"{n}e-4"))),
    st.integers(1, 9).map(lambda n: (f".{n}", n / 10)),
    st.integers(-5, 9999).map(lambda n: (str(n), float(n))),
)

FLAGS: st.SearchStrategy[Written] = st.sampled_from(
    [
        *((text, True) for text in ("true", "True", "yes", "on", "YES")),
        *((text, False) for text in ("false", "FALSE", "no", "off", "Off")),
    ]
)

NULLS: st.SearchStrategy[Written] = st.sampled_from([("null", None), ("~", None), ("", None)])

REPORTS: st.SearchStrategy[Written] = st.sampled_from(
    [
        ("none", set()),
        ("[]", set()),
        ("[none]", set()),
        ("tensorboard", {"tensorboard"}),
        ("[wandb]", {"wandb"}),
        ("\n- wandb\n- tensorboard", {"tensorboard", "wandb"}),
        ("all", {"tensorboard", "wandb"}),
    ]
)


def chosen(*names: str) -> st.SearchStrategy[Written]:
    return st.sampled_from([(name, name) for name in names])


KEYS: dict[str, st.SearchStrategy[Written]] = {
    "model_type": chosen("original", "dropped", "pruned"),
    "use_lora": FLAGS,
    "model_name": TEXTS,
    "max_seq_length": WHOLE,
    "learning_rate": NUMBERS,
    "lr_scheduler_type": TEXTS,
    "warmup_ratio": NUMBERS,
    "packing": FLAGS,
    "num_train_epochs": NUMBERS,
    "max_steps": WHOLE,
    "seed": WHOLE,
    "num_threads": WHOLE | NULLS,
    "gradient_checkpointing": FLAGS,
    "output_dir": TEXTS,
    "logging_dir": TEXTS,
    "wandb_project": TEXTS,
    "wandb_run_name": TEXTS | NULLS,
    "report_to": REPORTS,
    "dataset_path": TEXTS | NULLS,
    "layer_to_drop": WHOLE,
    "keep_layers": WHOLE,
    "eval_strategy": chosen("no", "steps", "epoch"),
    "fp16": FLAGS,
    "lora.r": WHOLE,
    "lora.alpha": WHOLE,
}

PLACES = {
    "wandb_run_name": "logger.wandb.name",
    "dataset_path": "data.path",
    "layer_to_drop": "depth.layer_to_drop",
    "keep_layers": "depth.keep_layers",
    "eval_strategy": "trainer.args.eval_strategy",
    "fp16": "trainer.args.fp16",
}

FILES = st.lists(st.fixed_dictionaries({}, optional=KEYS), min_size=1, max_size=4)
"""Files of a chain, the last base first; each with any of the keys."""

LAMINA = {"use_lora": True, "report_to": {"tensorboard"}, "dataset_path": None, "bf16": True}
"""The defaults of keys that a chain leaves out."""


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def text_of(values: dict[str, Written], base: str | None) -> str:
    """A file of the older form."""
    lines = [f"{key}: {written}" for key, (written, _) in values.items() if "." not in key]
    lora = [f"  {key[5:]}: {written}" for key, (written, _) in values.items() if "." in key]
    lines += ["lora:", *lora] if lora else []
    return "\n".join([*([f"_extends: {base}"] if base else []), *lines]) + "\n"


def written_chain(folder: Path, files: list[dict[str, Written]]) -> Path:
    """Write the files, each extending the one before."""
    for number, values in enumerate(files):
        base = f"level{number - 1}.yaml" if number else None
        (folder / f"level{number}.yaml").write_text(text_of(values, base), encoding="utf-8")
    return folder / f"level{len(files) - 1}.yaml"


def composed(path: Path, *overrides: str) -> DictConfig:
    return compose("config", take_old(["--old", str(path), *overrides], counterpart))


def at(config: DictConfig, place: str) -> Any:
    """A value with its interpolations resolved, as a run reads it."""
    section, _, key = place.rpartition(".")
    return (OmegaConf.select(config, section) if section else config)[key]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(files=FILES, model_type=KEYS["model_type"])
def test_a_chain_composes_to_its_resolved_values(
    files: list[dict[str, Written]], model_type: Written, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files[0].setdefault("model_type", model_type)
    config = composed(written_chain(tmp_path_factory.mktemp("chain"), files))
    meant = {key: meaning for values in files for key, (_, meaning) in values.items()}

    said = {**LAMINA, **meant}
    assert config.model._target_.endswith(f".{said['model_type'].capitalize()}")
    assert ("adapters.Lora" in config.adapter._target_) is said["use_lora"]
    assert config.data._target_.endswith(".Hub" if said["dataset_path"] is None else ".Disk")
    assert set(config.logger) == said["report_to"]
    assert config.bf16 is not said.get("fp16", False)
    if said["model_type"] == "dropped" and "layer_to_drop" in meant:
        assert config.model.layer_to_drop == meant["layer_to_drop"]
    if said["model_type"] == "pruned" and "keep_layers" in meant:
        assert config.model.keep_layers == meant["keep_layers"]

    unnamed = meant.get("wandb_run_name") is None or "wandb" not in said["report_to"]
    absent = {"model_type", "use_lora", "report_to"} | ({"wandb_run_name"} if unnamed else set())
    absent |= {"dataset_path"} if meant.get("dataset_path") is None else set()
    for key in meant.keys() - absent:
        found = at(config, PLACES.get(key, key))
        assert (type(found), found) == (type(meant[key]), meant[key]), key


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.sampled_from(TRICKY) | st.text(max_size=20))
def test_omegaconf_reads_the_very_text_that_was_written(text: str) -> None:
    line = f"key: {scalar(text)}"
    assert "\n" not in line
    if text != "???":
        assert OmegaConf.create(f"{line}   # beside").key == text


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    comment=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20),
    key=st.sampled_from(["model_type", "use_lora", "seed", "report_to", "layer_to_drop"]),
)
def test_a_comment_changes_no_value(
    comment: str, key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = {"model_type": "pruned", "use_lora": "false", "seed": "5", "layer_to_drop": "3"}
    values["report_to"] = "[wandb]"
    folder = tmp_path_factory.mktemp("comment")
    bare = folder / "bare.yaml"
    bare.write_text("".join(f"{k}: {v}\n" for k, v in values.items()))
    said = " ".join(comment.split())
    lines = [
        f"#{said}\n{k}: {v} #{said}\n" if k == key else f"{k}: {v}\n" for k, v in values.items()
    ]
    (folder / "said.yaml").write_text(f"# {said}\n\n{''.join(lines)}", encoding="utf-8")
    text = experiment(resolve(folder / "said.yaml"))
    assert yaml.safe_load(text) == yaml.safe_load(experiment(resolve(bare)))
    assert f"#{said}\n" in text


def test_an_override_wins_over_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "level.yaml"
    path.write_text("model_type: dropped\nlayer_to_drop: 3\nseed: 5\nlora: {r: 4}\n")
    config = composed(path, "seed=6", "lora.r=2", "model.layer_to_drop=1", "adapter=full")
    assert (config.seed, config.lora.r, config.model.layer_to_drop) == (6, 2, 1)
    assert "adapters.Full" in config.adapter._target_
