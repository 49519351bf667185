"""What a mistake on the command line says: short, with the key, the value and what is allowed."""

import sys
from pathlib import Path

import pytest

from tests.conftest import Finished, environment, train

MISTAKES = {
    "model.keep_layers=99": "model.keep_layers=99, but the model has 12 layers: give 1 to 11",
    "model.keep_layers=12": "model.keep_layers=12, but the model has 12 layers: give 1 to 11; for "
    "the whole model choose model=original",
    "model.keep_layers=0": "model.keep_layers=0, but the model has 12 layers: give 1 to 11",
    "model.keep_layers=-1": "model.keep_layers=-1, but the model has 12 layers: give 1 to 11",
    "model=dropped model.layer_to_drop=-1": "model.layer_to_drop=-1, but the model has 12 layers: "
    "give 0 to 11 (0-based)",
    "model=dropped model.layer_to_drop=12": "model.layer_to_drop=12, but the model has 12 layers: "
    "give 0 to 11 (0-based)",
    "model=dropped model.layer_to_drop=abc": "model.layer_to_drop=abc: expected a whole number",
    "model.layer_to_drop=-1": "model.layer_to_drop=-1: this key goes with model=dropped; "
    "model=pruned has keep_layers",
    "model=original model.keep_layers=3": "model.keep_layers=3: this key goes with model=pruned",
    "model=prunned": "model=prunned: no such option; did you mean pruned?\n"
    "There are dropped, layers, original, pruned, scratch.",
    "learnig_rate=1": "learnig_rate=1: no such key; did you mean learning_rate?",
    "++learnig_rate=1": "learnig_rate=1: no such key; did you mean learning_rate?",
    "++trainer.args.learnig_rate=1": "trainer.args.learnig_rate=1: no such key; did you mean "
    "learning_rate?",
    "use_lora=true": "use_lora=true: no longer a key, choose adapter=lora or adapter=full",
    "report_to=wandb": "report_to=wandb: no longer a key, choose logger=tb, wandb, both or none",
    "bf16=maybe": "bf16=maybe: expected true or false",
    "max_steps=ten": "max_steps=ten: expected a whole number",
    "learning_rate=fast": "learning_rate=fast: expected a number",
    "warmup_ratio=1": "warmup_ratio=1.0: give a share of all steps, 0 to below 1",
    "learning_rate=0": "learning_rate=0.0: give more than 0",
    "max_steps=0": "max_steps=0: give 1 or more, or -1 for no limit",
    "save_steps=75": "save_steps=75 is not a multiple of eval_steps=50",
    "export.form=gguf": "export.form=gguf: give auto, adapter, merged or both",
    "adapter=full export.form=adapter": "export.form=adapter needs adapter=lora",
    "packing=false +trainer.args.eval_packing=true": "trainer.args.eval_packing=True needs packing",
    "data.loss_on=everything": "data.loss_on=everything: give auto, assistant, completion or all",
    "logger=wandb logger.wandb.mode=sometimes": "logger.wandb.mode=sometimes: give auto, online or "
    "offline",
    "resume=maybe": "resume=maybe: give auto or never",
    "backend=unsloth": "backend=unsloth is not part of this version",
    "data=jsonl": "data.train is missing: give data.train=VALUE",
    "data=csv data.train=a data.on_bad_row=ignore": "data.on_bad_row=ignore: give error or skip",
    "data=csv data.train=a data.format=xls": "data.format=xls: give csv, json, jsonl or parquet",
    "data=csv data.train=a data.columns.promt=a": "data.columns.promt=a: no such key; did you mean "
    "data.columns.prompt?",
    "data=csv data.train=a data.eval_fraction=2": "data.eval_fraction=2.0: give a share above 0 "
    "and below 1",
    "data=csv data.train=a data.max_train_samples=0": "data.max_train_samples=0: give 1 or more, "
    "or null for all rows",
    "data.max_dropped=2": "data.max_dropped=2.0: give a share, 0 to 1",
    "experiment": "experiment: not of the form NAME=VALUE",
    "++model._target_=os.system": "model._target_=os.system: not allowed",
    "model_name=./nowhere": "model_name=./nowhere: no such folder",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """Each mistake's outcome."""
    folder = tmp_path_factory.mktemp("mistakes")
    return {
        mistake: train(folder / str(number), "experiment=quickstart", *mistake.split())
        for number, mistake in enumerate(MISTAKES)
    }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_three_lines_at_most(
    mistake: str, answers: dict[str, Finished]
) -> None:
    done = answers[mistake]
    assert done.code == 1
    assert done.errors.startswith(f"error: {MISTAKES[mistake]}")
    assert "Traceback" not in done.errors
    assert len(done.errors.splitlines()) <= 3


def test_a_refused_run_says_failed_in_its_result(answers: dict[str, Finished]) -> None:
    result = answers["model.keep_layers=99"].result
    assert result["status"] == "failed"
    assert result["error"].startswith("model.keep_layers=99")


def test_several_mistakes_are_named_together(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "experiment=quickstart", "warmup_ratio=2", "save_steps=7")
    assert done.code == 1
    assert "warmup_ratio=2" in done.errors
    assert "save_steps=7" in done.errors


HEAVY = """
import sys
from lamina.commands.train import main
sys.argv = ["train", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "wandb"} & sys.modules.keys()
    print("heavy:", *sorted(heavy))
"""


@pytest.mark.parametrize(
    "given",
    [
        "--cfg job",
        "--help",
        "experiment=quickstart model.keep_layers=99",
        "experiment=quickstart model=dropped model.layer_to_drop=-1",
        "experiment=quickstart model=dropped model.layer_to_drop=abc",
        "experiment=quickstart model=prunned",
        "experiment=quickstart learnig_rate=1",
    ],
)
def test_what_the_config_decides_needs_no_torch(given: str, tmp_path: Path) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", HEAVY, *given.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]
