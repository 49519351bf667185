"""Configs of the older form: a base and six children keep their values when migrated."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from lamina.commands.migrate import train_command, write_experiment
from lamina.errors import ConfigError
from lamina.legacy.experiment_file import experiment, experiment_name
from lamina.legacy.form import KEYS, resolve
from lamina.runtime.paths import conf_dir
from tests.conftest import ROOT, Finished, environment, lamina, run
from tests.forked import fresh

OLDER = Path(__file__).parent / "older"
CHILDREN = (
    "original.yaml",
    "original_lora.yaml",
    "dropped.yaml",
    "dropped_lora.yaml",
    "pruned.yaml",
    "deeper/pruned_lora.yaml",
)

SAME = {
    "layer_to_drop": "depth.layer_to_drop",
    "keep_layers": "depth.keep_layers",
    "eval_strategy": "trainer.args.eval_strategy",
    "fp16": "trainer.args.fp16",
    "dataset_path": "data.path",
    "wandb_run_name": "logger.wandb.name",
    "save_strategy": "trainer.args.save_strategy",
    "lora.dropout": "adapter.dropout",
    "lora.bias": "adapter.bias",
    "lora.target_modules": "adapter.target_modules",
    "dataset_name": "data.name",
    "dataset_config": "data.config",
    "train_split": "data.train",
    "eval_split": "data.eval",
    "max_train_samples": "data.max_train_samples",
    "max_eval_samples": "data.max_eval_samples",
}
"""Today's places of renamed keys."""

LOGGERS = {
    "none": set(),
    "tensorboard": {"tensorboard"},
    "wandb": {"wandb"},
    "all": {"tensorboard", "wandb"},
}

MEANT = {
    "learning_rate": float,
    "max_steps": lambda value: int(float(value)),
    "wandb_run_name": lambda value: "auto" if value is None else str(value),
    "eval_strategy": lambda value: "no" if value is False else value,
}
"""The intended value where YAML 1.1 reads another; with null Lamina names the run."""


def old_resolution(path: Path) -> dict[str, Any]:
    """The older loader: yaml.safe_load, the child over its base, lora key by key."""
    child = yaml.safe_load(path.read_text())
    base = child.pop("_extends", None)
    values = old_resolution(path.parent / base) if base else {}
    child["lora"] = {**values.get("lora", {}), **child.get("lora", {})}
    return {**values, **child}


def shown(*arguments: str, cwd: Path) -> Finished:
    """Run `python` with arguments that show a config."""
    done = run(*arguments, cwd=cwd)
    return Finished(done.returncode, done.stdout, done.stderr, cwd)


def old(folder: Path, **files: str) -> Path:
    """Write files of the older form and return the last one's path."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{[*files][-1]}.yaml"


@pytest.mark.parametrize("child", CHILDREN)
def test_a_migrated_child_composes_to_its_resolved_values(child: str, tmp_path: Path) -> None:
    migrated = lamina("migrate", OLDER / child, cwd=tmp_path)
    assert migrated.code == 0, migrated.errors
    printed = migrated.output.splitlines()[-1]
    name = f"old_{Path(child).stem}"  # experiments of these names ship
    assert printed == f"python -m train --config-dir migrated experiment={name}"
    composed = shown(*printed.split()[1:], "--cfg", "job", cwd=tmp_path)
    assert composed.code == 0, composed.errors
    config = OmegaConf.create(composed.output)
    values = old_resolution(OLDER / child)

    assert config.model._target_ == f"lamina.depth.variants.{values['model_type'].capitalize()}"
    assert ("adapters.Lora" in config.adapter._target_) is values["use_lora"]
    assert config.data._target_.endswith("Disk" if values["dataset_path"] else "Hub")
    reports = values["report_to"]
    names = reports if isinstance(reports, list) else [reports]
    assert set(config.logger) == set().union(*(LOGGERS[report] for report in names))
    if values["model_type"] == "dropped":
        assert config.model.layer_to_drop == values["layer_to_drop"]
    if values["model_type"] == "pruned":
        assert config.model.keep_layers == values["keep_layers"]
        assert config.model.selector._target_ == "lamina.depth.selection.First"
    if values["use_lora"]:
        assert dict(config.adapter).items() >= values["lora"].items()

    values |= {f"lora.{key}": value for key, value in values["lora"].items()}
    for key in ("model_type", "use_lora", "report_to", "lora"):
        del values[key]
    if values["dataset_path"] is None:
        del values["dataset_path"]
    if "wandb" not in config.logger:
        values.pop("wandb_run_name", None)
    meant = {key: MEANT.get(key, lambda same: same)(value) for key, value in values.items()}
    found = {key: OmegaConf.select(config, SAME.get(key, key)) for key in meant}
    assert found == meant


@pytest.mark.parametrize("child", CHILDREN)
def test_old_composes_to_the_same_as_the_migrated_file(child: str, tmp_path: Path) -> None:
    path = OLDER / child
    written = write_experiment(experiment(resolve(path)), tmp_path, experiment_name(path))
    given = train_command(written).split()[1:]
    migrated = shown(*given, "--cfg", "job", cwd=tmp_path)
    direct = lamina("train", "--old", path, "--cfg", "job", cwd=tmp_path)
    assert (migrated.code, direct.code) == (0, 0), migrated.errors + direct.errors
    assert direct.output == migrated.output


def test_comments_go_with_their_keys(tmp_path: Path) -> None:
    assert lamina("migrate", OLDER / "dropped.yaml", cwd=tmp_path).code == 0
    lines = (tmp_path / "migrated" / "experiment" / "old_dropped.yaml").read_text().splitlines()
    assert lines[:9] == [
        "# @package _global_",
        "# From a config of the older form: dropped.yaml < base.yaml",
        "# One layer less,",
        "# every weight trained.",
        "defaults:",
        "  - override /model: dropped",
        "  - override /adapter: full",
        "  - override /data: disk",
        "  - override /logger: tb",
    ]
    assert lines[10] == "model_name: Qwen/Qwen3-8B   # from the hub"
    at = lines.index("  # The one that a scan found.")
    assert lines[at + 1] == "  layer_to_drop: 9"
    assert "  alpha: 32   # twice the rank" in lines


COMMENTED = """\
# The head.

# Above extends.
_extends: base.yaml
model_type: pruned  # beside
# Far above.

# Above.
keep_layers: 8
lora:  # beside lora
  # above r
  r: 4
report_to:
  - wandb  # in the list
  # in the list, too
  - tensorboard
wandb_run_name: |  # no text
  # text
# Below a block.
seed: 3

# The end.
"""


def test_every_comment_is_kept(tmp_path: Path) -> None:
    path = old(tmp_path, base="# Of the base.\n\nseed: 1  # its seed\n", old=COMMENTED)
    assert experiment(resolve(path)).splitlines() == [
        "# @package _global_",
        "# From a config of the older form: old.yaml < base.yaml",
        "# The head.",
        "# Above extends.",
        "defaults:",
        "  - override /model: pruned   # beside",
        "  - override /selector: first",
        "  - override /adapter: lora",
        "  # in the list, too",
        "  - override /logger: both   # in the list",
        "",
        "# Below a block.",
        "seed: 3",
        "depth:",
        "  # Far above.",
        "  # Above.",
        "  keep_layers: 8",
        "logger:",
        "  wandb:",
        '    name: "# text\\n"   # no text',
        "lora:",
        "  # beside lora",
        "  # above r",
        "  r: 4",
        "# The end.",
    ]


REFUSED = {
    "": "@: model_type is missing: use original, dropped or pruned",
    "model_type: prunned": "@: model_type=prunned: use original, dropped or pruned; "
    "did you mean pruned?",
    "use_lora: maybe": "@: use_lora=maybe: expected true or false",
    "use_lora: 'true'": "@: use_lora=true: expected true or false",
    "learning_rate: fast": "@: learning_rate=fast: expected a number",
    "learning_rate: .inf": "@: learning_rate=.inf: expected a number",
    "learning_rate: 1e999": "@: learning_rate=1e999: expected a finite number",
    "learning_rate: true": "@: learning_rate=true: expected a number",
    "max_steps: 1.5": "@: max_steps=1.5: expected a whole number",
    "max_steps: null": "@: max_steps=null: expected a whole number; leave the key out for "
    "Lamina's default",
    "seed: 010": "@: seed=010: YAML reads this as 8: write it without leading zeros",
    "model_name: [a]": "@: model_name=['a']: expected text",
    "model_name: ???": "@: model_name=???: expected a value",
    "eval_strategy: never": "@: eval_strategy=never: use no, steps or epoch",
    "report_to: mlflow": "@: report_to=mlflow: use none, tensorboard, wandb or all, or a list "
    "of them without none",
    "report_to: [none, wandb]": "@: report_to=['none', 'wandb']: use none, tensorboard, wandb "
    "or all, or a list of them without none",
    "lora: 16": "@: lora=16: expected a mapping with r and alpha",
    "lora: {r: 8.5}": "@: lora.r=8.5: expected a whole number",
    "fp16: true\nbf16: true": "@: fp16=true and bf16=true: set only one of them",
    "model_type: dropped\nlayer_to_drop: ~": "@: layer_to_drop=null: model_type=dropped needs a "
    "whole number",
    "model_type: pruned\nkeep_layers: null": "@: keep_layers=null: model_type=pruned needs a "
    "whole number",
    "seed: 1\nseed: 2": '@, line 3: invalid YAML: found duplicate key "seed" with value "2" '
    '(original value: "1")',
    "seed: [1": "@, line 2: invalid YAML: expected ',' or ']', but got '<stream end>'",
    "seed: !!timestamp x": '@, line 2: invalid YAML: failed to construct timestamp from "x"',
    "seed: !!python/name:os.system": "@: seed has a tag: leave it out",
    "? [a]\n: b": "@: a key must be text, not a list or a mapping",
    "<<: {[a]: b}": "@: a key must be text, not a list or a mapping",
    "a: &a {<<: *a}": "@: more than 5,000 values, with those that aliases (*NAME) repeat",
    "- a": "@, line 2: invalid YAML: expected <block end>, but found '-'",
    "_extends: [a, b]": "@: _extends=['a', 'b']: expected the path of one file",
    "_extends: nowhere.yaml": "@: _extends=%/nowhere.yaml: no such file or directory",
    "_extends: .": "@: _extends=%: is a directory",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_mistake_is_named(text: str, tmp_path: Path) -> None:
    given = text if "model_type" in text or not text else f"model_type: original\n{text}"
    path = old(tmp_path, old=given)
    with pytest.raises(ConfigError) as refused:
        resolve(path)
    said = REFUSED[text].replace("@", str(path)).replace("%", str(tmp_path))
    assert str(refused.value) == said


def test_a_list_is_refused(tmp_path: Path) -> None:
    path = old(tmp_path, old="- a\n- b\n")
    with pytest.raises(ConfigError, match="expected a mapping of keys to values"):
        resolve(path)


def test_a_file_nested_too_deeply_is_named(tmp_path: Path) -> None:
    path = old(tmp_path, old=f"model_type: original\nseed: {'[' * 5000}")
    with pytest.raises(ConfigError, match="nested too deeply"):
        resolve(path)


def test_all_unknown_keys_are_listed_and_force_leaves_them_out(tmp_path: Path) -> None:
    child = "_extends: base.yaml\nmodel_type: original\nlora: {alhpa: 3}\nlora.r: 4\n"
    old(tmp_path, base="learnig_rate: 1\nseed: 7\n", child=child)
    listed = [
        "base.yaml: learnig_rate=1: no such key; did you mean learning_rate?",
        "child.yaml: lora.alhpa=3: no such key; did you mean lora.alpha?",
        "child.yaml: 'lora.r'=4: no such key; did you mean lora.r?",
    ]
    refused = lamina("migrate", "child.yaml", cwd=tmp_path)
    assert refused.code == 1
    assert refused.errors.splitlines() == [
        f"error: {listed[0]}",
        *listed[1:],
        "lamina migrate --force leaves out unknown keys",
    ]
    assert not (tmp_path / "migrated").exists()
    forced = lamina("migrate", "child.yaml", "--force", cwd=tmp_path)
    assert forced.code == 0
    assert forced.output.splitlines() == [
        *(f"left out: {line}" for line in listed),
        "migrated/experiment/child.yaml: from child.yaml < base.yaml",
        "python -m train --config-dir migrated experiment=child",
    ]
    text = (tmp_path / "migrated" / "experiment" / "child.yaml").read_text()
    assert yaml.safe_load(text)["seed"] == 7
    assert "alhpa" not in text


FURTHER = """
model_type: pruned
load_in_4bit: true
lora: {dropout: 0.05, bias: none, target_modules: [q_proj, v_proj]}
dataset_name: me/rows
dataset_config: null
train_split: train[:90%]
eval_split: null
max_eval_samples: 5_0
save_strategy: epoch
optim: paged_adamw_8bit
attention: sdpa
kernels: none
torch_compile: false
activation_offloading: false
"""


def test_further_keys_have_todays_places(tmp_path: Path) -> None:
    done = lamina("train", "--old", old(tmp_path, old=FURTHER), "--cfg", "job", cwd=tmp_path)
    assert done.code == 0, done.errors
    config = OmegaConf.create(done.output)
    assert config.adapter._target_.endswith("QLora.of")
    assert config.data._target_.endswith("Hub")
    meant = {
        "lora.dropout": 0.05,
        "lora.bias": "none",
        "lora.target_modules": ["q_proj", "v_proj"],
        "dataset_name": "me/rows",
        "dataset_config": None,
        "train_split": "train[:90%]",
        "eval_split": None,
        "max_eval_samples": 50,
        "save_strategy": "epoch",
        "optim": "paged_adamw_8bit",
        "attention": "sdpa",
        "kernels": "none",
        "torch_compile": False,
        "activation_offloading": False,
    }
    assert {key: OmegaConf.select(config, SAME.get(key, key)) for key in meant} == meant
    assert config.trainer.args.load_best_model_at_end is False, "evaluated by steps"


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("lora_alpha: 3", "; write lora: {alpha}"),
        ("attn_implementation: sdpa", "; write attention (flash, flex, sdpa, eager)"),
        (
            "max_grad_norm: 1",
            "; today it is trainer.args.max_grad_norm, in the migrated file or on",
        ),
        (
            "lora: {use_rslora: true}",
            "; today it is adapter.use_rslora, in the migrated file or on",
        ),
        ("target_parameters: 6e9", "; write keep_layers, or give model.target_parameters on the"),
        ("answers: original", "; write data.answers=original on the command line"),
        ("datasets: [a, b]", "; write data=blend data.sources=... on the command line"),
        (
            "train_head: true",
            "; write adapter=partial, and adapter.head=untied for a tied head, on",
        ),
        ("teacher_model: a/b", "; write trainer=distill on the command line"),
        ("load_strategy: no", ""),
        ("use_liger: true", "; today: set kernels=liger"),
        ("lora: {task_type: x}", "; today: it is always CAUSAL_LM"),
    ],
)
def test_an_unknown_key_is_answered_with_its_counterpart_or_nothing(
    given: str, advice: str, tmp_path: Path
) -> None:
    old(tmp_path, old=f"model_type: original\n{given}\n")
    for refused in (
        lamina("migrate", "old.yaml", cwd=tmp_path),
        lamina("train", "--old", "old.yaml", cwd=tmp_path),
    ):
        line, force = refused.errors.splitlines()
        assert f": no such key{advice}" in line
        assert advice or line.endswith(": no such key")
        assert force == "lamina migrate --force leaves out unknown keys"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            "use_lora: false\nload_in_4bit: true",
            "load_in_4bit=true and use_lora=false: 4-bit weights",
        ),
        ("dataset_path: a\ndataset_name: b", "dataset_path and dataset_name: set only one of them"),
    ],
)
def test_what_contradicts_is_refused(given: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve(old(tmp_path, old=f"model_type: original\n{given}\n"))


def test_lora_keys_without_lora_become_comments(tmp_path: Path) -> None:
    path = old(tmp_path, old="model_type: original\nuse_lora: false\nlora: {dropout: 0.1}\n")
    assert experiment(resolve(path)).splitlines()[-2:] == [
        "# lora.dropout: 0.1 has no effect without LoRA",
        "learning_rate: 0.0002   # the older form's; today's is 2e-5",
    ]


def test_force_does_not_leave_out_wrong_values(tmp_path: Path) -> None:
    path = old(tmp_path, old="model_type: original\nseed: many\n")
    refused = lamina("migrate", path, "--force", cwd=tmp_path)
    assert refused.refusal == f"error: {path}: seed=many: expected a whole number\n"


def test_a_circle_is_named(tmp_path: Path) -> None:
    old(tmp_path, a="_extends: b.yaml", b="_extends: c.yaml", c="_extends: ./a.yaml")
    refused = lamina("migrate", "a.yaml", cwd=tmp_path)
    assert refused.code == 1
    assert refused.refusal == (
        "error: _extends forms a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml; "
        "remove it from one of them\n"
    )


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = old(tmp_path, old="model_type: original\n")
    folder = tmp_path / "lab" / "experiment"
    folder.mkdir(parents=True)
    (folder / "old.yaml").write_text("mine")
    for output in ("lab", "lab/experiment"):
        refused = lamina("migrate", path, "--output", output, "--force", cwd=tmp_path)
        assert refused.code == 1
        assert refused.refusal == (
            "error: lab/experiment/old.yaml already exists: use another --output\n"
        )
    assert (folder / "old.yaml").read_text() == "mine"


def test_the_command_names_the_config_folder_unless_it_ships(tmp_path: Path) -> None:
    assert train_command(conf_dir() / "experiment" / "x.yaml") == "python -m train experiment=x"
    assert train_command(tmp_path / "a b" / "experiment" / "x.yaml") == (
        f"python -m train --config-dir '{tmp_path}/a b' experiment=x"
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a b.v2.yaml", "a_b_v2"),
        ("8b.yml", "old_8b"),
        ("null.yaml", "old_null"),
        ("é.yaml", "old__"),
    ],
)
def test_a_name_that_hydra_cannot_parse_is_changed(file: str, name: str, tmp_path: Path) -> None:
    assert experiment_name(Path(file)) == name
    (tmp_path / file).write_text("model_type: pruned\nkeep_layers: 5\n")
    printed = lamina("migrate", file, cwd=tmp_path).output.splitlines()[-1]
    composed = shown(*printed.split()[1:], "--cfg", "job", cwd=tmp_path)
    assert OmegaConf.create(composed.output).model.keep_layers == 5


def test_missing_keys_have_laminas_defaults(tmp_path: Path) -> None:
    path = old(tmp_path, old="model_type: original\n")
    assert experiment(resolve(path)).splitlines()[2:] == [
        "defaults:",
        "  - override /model: original",
        "  - override /adapter: lora",
    ]


def test_defaults_that_would_contradict_are_overridden(tmp_path: Path) -> None:
    head = "model_type: original\n"
    for given, added in {
        "fp16: true": "bf16: false",
        "eval_strategy: no": "    load_best_model_at_end: false",
        "eval_strategy: epoch": "    save_strategy: epoch",
    }.items():
        lines = experiment(resolve(old(tmp_path, old=head + given))).splitlines()
        assert [line for line in lines if line.split("   #")[0] == added] != []


def test_a_run_name_without_wandb_becomes_a_comment(tmp_path: Path) -> None:
    path = old(tmp_path, old="model_type: original\nwandb_run_name: mine\nreport_to: none\n")
    last = experiment(resolve(path)).splitlines()[-1]
    assert last == "# wandb_run_name: mine has no effect without the logger wandb"


def test_keys_that_base_yaml_shares_keep_their_places() -> None:
    shared = yaml.safe_load((ROOT / "conf" / "base.yaml").read_text())
    shared |= yaml.safe_load((ROOT / "conf" / "reduction.yaml").read_text())
    known = {key.split(".")[0] for key in KEYS}
    known -= {"model_type", "use_lora", "load_in_4bit", "report_to"}
    assert known - SAME.keys() <= shared.keys()


MISTAKES = {
    "--old": "--old: pass the path of a config of the older form",
    "--old --cfg job": "--old: pass the path of a config of the older form",
    "--old nowhere.yaml": "nowhere.yaml: no such file or directory",
    "--old old.yaml --old=old.yaml": "--old is given more than once: old.yaml, old.yaml; pass one "
    "file",
    "--old old.yaml experiment=pruned": "--old old.yaml and experiment=pruned: use one of them",
    "--old old.yaml sed=3": "sed=3: no such key; did you mean seed?",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_with_old_is_named(given: str, tmp_path: Path) -> None:
    old(tmp_path, old="model_type: original\n")
    done = shown("-m", "train", *given.split(), cwd=tmp_path)
    assert (done.code, done.errors) == (1, f"error: {MISTAKES[given]}\n")


@pytest.mark.parametrize(
    "given",
    [
        "--old old.yaml seed=9 --cfg job",
        "--cfg job --old=old.yaml seed=9",
        "seed=9 --old old.yaml -c job",
    ],
)
def test_overrides_win_over_old(given: str, tmp_path: Path) -> None:
    old(tmp_path, old="model_type: dropped\nseed: 5\nmax_steps: 4\n")
    done = shown("-m", "train", *given.split(), cwd=tmp_path)
    config = OmegaConf.create(done.output)
    assert (config.seed, config.max_steps, config.model.layer_to_drop) == (9, 4, 16)


HEAVY = """
import sys
from lamina.cli import main
sys.argv = ["lamina", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "wandb"} & sys.modules.keys()
    print("heavy:", *sorted(heavy))
"""


@pytest.mark.parametrize("given", ["migrate old.yaml", "train --old old.yaml --cfg job"])
def test_the_older_form_needs_no_torch(given: str, tmp_path: Path) -> None:
    old(tmp_path, old="model_type: original\n")
    with fresh(["-c", HEAVY, *given.split()], cwd=tmp_path, env=environment()) as process:
        done = process.completed(120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]
