"""A config file of someone else runs no code, reaches no server and writes nowhere else."""

import json
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import REFERENCE, SHORT, Finished, run, train
from tests.hostile.conftest import CANARY, Refused

RUN = "{_target_: transformers.testing_utils.run_command, command: [touch, CANARY]}"
SYSTEM = "{_target_: os.system, command: touch CANARY}"
LOGGED = "- override /logger: wandb"
FILES = "- override /data: csv"

TARGETS = {
    f"callbacks: {{x: {RUN}}}": "callbacks.x._target_=transformers.testing_utils.run_command: not "
    "allowed; if you trust this TrainerCallback, set "
    "LAMINA_ALLOW=transformers.testing_utils.run_command",
    f"logger: {{x: {RUN}}}": "logger.x._target_=",
    f"trainer: {{args: {RUN}}}": "trainer.args._target_=",
    f"trainer: {{args: {{lr_scheduler_kwargs: {RUN}}}}}": "trainer.args.lr_scheduler_kwargs."
    "_target_=transformers.testing_utils.run_command: not allowed; only Lamina's own settings are",
    f"trainer: {{args: {{accelerator_config: {RUN}}}}}": "trainer.args.accelerator_config._target_",
    f"trainer: {{args: {{include_for_metrics: [{RUN}]}}}}": "trainer.args.include_for_metrics.0.",
    f"trainer: {RUN}": "trainer._target_=",
    f"adapter: {{rank_pattern: {RUN}}}": "adapter.rank_pattern._target_=",
    f"adapter: {{alpha_pattern: {{q: {RUN}}}}}": "adapter.alpha_pattern.q._target_=",
    f"adapter: {{target_modules: [{RUN}]}}": "adapter.target_modules.0._target_=",
    f"{FILES}\ndata: {{train: rows.csv, columns: {RUN}}}": "data.columns._target_=",
    f"{FILES}\ndata: {{train: rows.csv, columns: {{text: {RUN}}}}}": "data.columns.text._target_=",
    f"data: {SYSTEM}": "data._target_=os.system: not allowed",
    f"model: {SYSTEM}": "model._target_=os.system: not allowed",
    f"selector: {SYSTEM}": "selector._target_=os.system: not allowed",
    f"backend: {SYSTEM}": "backend._target_=os.system: not allowed",
    "evaluation: {_target_: os.system}": "evaluation._target_=os.system: not allowed",
    "lora: {_target_: os.system}": "lora._target_=os.system: not allowed",
    "export: {_target_: os.system}": "export._target_=os.system: not allowed",
    "_target_: os.system": "_target_=os.system: not allowed",
    "_target_: lamina.config.parameters.Parameters": "not allowed",
    "callbacks: {x: {_target_: lamina.heal.libraries.os.system, command: touch CANARY}}": "",
    "callbacks: {x: {_target_: builtins.exec, source: 1}}": "callbacks.x._target_=builtins.exec",
    "callbacks: {x: {_target_: [os.system]}}": "callbacks.x._target_",
    "callbacks: {x: {_target_: lamina.heal.callbacks.settings.UserCallback, target: os.system, "
    "arguments: {command: touch CANARY}}}": "callbacks.x._target_=lamina.heal.callbacks.settings.",
    "callbacks: {x: {_target_: transformers.AutoConfig.from_pretrained, trust_remote_code: true, "
    "pretrained_model_name_or_path: CODE}}": "callbacks.x._target_=transformers.AutoConfig.from",
    "logger: {x: {_target_: torch.utils.tensorboard.SummaryWriter, log_dir: CANARY}}": "logger.x.",
    "callbacks: {x: {_target_: transformers.EarlyStoppingCallback}}": "callbacks.x._target_=",
    "callbacks: {x: {_target_: logging.FileHandler, filename: CANARY}}": "callbacks.x._target_=",
    "logger: {x: {_target_: urllib.request.urlopen, url: 'http://LISTENER/'}}": "logger.x._target_",
    "callbacks: {x: {_target_: lamina.depth.variants.Original}}": "callbacks.x=Original: expected",
    "trainer: {args: {lr_scheduler_kwargs: {_target_: lamina.depth.variants.Original}}}": "trainer."
    "args.lr_scheduler_kwargs._target_=lamina.depth.variants.Original: not allowed",
    "trainer: {args: {lr_scheduler_kwargs: {_args_: [1]}}}": "_args_: not allowed",
    "callbacks: {progress: {_args_: [touch CANARY]}}": "callbacks.progress._args_: no such key",
    "evaluation: {_partial_: true}": "evaluation._partial_: no such key",
    "adapter: {_partial_: true}": "adapter._partial_: not allowed",
    # Nodes from elsewhere.
    f"trainer: {{args: {{lr_scheduler_kwargs: {SYSTEM}}}}}\ncallbacks: "
    "{x: '${trainer.args.lr_scheduler_kwargs}'}": "callbacks.x._target_=os.system: not allowed",
    "callbacks: {x: {_target_: '${oc.env:EVIL,os.system}', command: touch CANARY}}": "callbacks.x.",
    "callbacks: {x: '${oc.create:{_target_: os.system, command: touch CANARY}}'}": "callbacks.x",
    f"trainer: {{args: {{lr_scheduler_kwargs: &evil {SYSTEM}}}}}\ncallbacks: {{x: *evil}}": ""
    "callbacks.x._target_=os.system: not allowed",
    f"trainer: {{args: {{optim_args: &evil {SYSTEM}}}}}\ncallbacks: {{x: {{<<: *evil}}}}": "args."
    "optim_args._target_=os.system: not allowed",
    "seed: !!python/object/apply:os.system [touch CANARY]": "not YAML",
    # What leaves this machine.
    "trainer: {args: {push_to_hub: true}}": "trainer.args.push_to_hub=true: give it on the command "
    "line, or set LAMINA_ALLOW=trainer.args.push_to_hub",
    "data: {answers: original, answer_settings: {vllm: ./program}}": "data.answer_settings.vllm="
    "./program: give it on the command line, or set LAMINA_ALLOW=data.answer_settings.vllm",
    "packing: true\ntrainer: {args: {push_to_hub: '${packing}'}}": "trainer.args.push_to_hub=true:",
    f"{LOGGED}\nlogger: {{wandb: {{mode: online}}}}": "logger.wandb.mode=online: give it on the "
    "command line, or set LAMINA_ALLOW=logger.wandb.mode",
    f"{LOGGED}\nlogger: {{wandb: {{mode: '${{wandb_project}}'}}}}\nwandb_project: online": "logger."
    "wandb.mode=online: give it on the command line",
    "logger: {x: {_target_: lamina.heal.callbacks.loggers.WandB, project: a, name: b, group: c, "
    "mode: online}}": "logger.x.mode=online: give it on the command line",
}
"""What an experiment file tries, and what the refusal says."""

HANDLER = "{class: logging.FileHandler, filename: CANARY}"
SOCKET = "{class: logging.handlers.SocketHandler, host: 127.0.0.1, port: 9}"
NODE = f"trainer: {{args: {{lr_scheduler_kwargs: {SYSTEM}}}}}\nhydra: "

HYDRA = {
    f"{{callbacks: {{x: {SYSTEM}}}}}": "hydra.callbacks.x: ",
    "{callbacks: {sweep: {_target_: os.system}}}": "hydra.callbacks.sweep: ",
    "{launcher: {setup: [touch CANARY]}}": "hydra.launcher.setup",
    f"{{launcher: {SYSTEM}}}": "hydra.launcher._target_",
    "{launcher: {srun_args: [--task-prolog=CANARY]}}": "hydra.launcher.srun_args",
    "{launcher: {additional_parameters: {wrap: touch CANARY}}}": "hydra.launcher.additional",
    f"{{sweeper: {SYSTEM}}}": "hydra.sweeper._target_",
    "{sweeper: {params: {hydra.job.env_set.PATH: evil}}}": "hydra.sweeper.params: ",
    "{sweeper: {params: {'+hydra.launcher.setup': '[a]'}}}": "hydra.sweeper.params: ",
    "{overrides: {hydra: [hydra.job.env_set.PATH=evil]}}": "hydra.overrides.hydra",
    "{overrides: {task: ['callbacks.x._target_=os.system']}}": "hydra.overrides.task",
    "{job: {env_set: {PATH: evil}}}": "hydra.job.env_set",
    "{job: {env_set: {PYTHONPATH: evil}}}": "hydra.job.env_set",
    "{job: {env_set: {GIT_SSH_COMMAND: touch CANARY}}}": "hydra.job.env_set",
    "{job: {env_set: {LAMINA_ALLOW: os.system}}}": "hydra.job.env_set",
    "{job: {env_set: {HF_ENDPOINT: 'http://LISTENER'}}}": "hydra.job.env_set",
    "{job: {env_set: {WANDB_BASE_URL: 'http://LISTENER'}}}": "hydra.job.env_set",
    "{job: {env_copy: [HOME]}}": "hydra.job.env_copy",
    "{job: {name: ../../CANARY}}": "hydra.job.name",
    f"{{job_logging: {{handlers: {{file: {HANDLER}}}}}}}": "job_logging.handlers",
    f"{{job_logging: {{handlers: {{x: {SOCKET}}}, root: {{handlers: [x]}}}}}}": "job_logging.root",
    "{job_logging: {handlers: {x: {(): os.system, command: a b}}}}": "job_logging.handlers",
    "{job_logging: {formatters: {plain: {(): os.system}}}}": "job_logging.formatters",
    "{job_logging: {filters: {x: {(): os.system}}}}": "hydra.job_logging.filters",
    "{job_logging: {formatters: {plain: {format: 'ext://evil.format'}}}}": "job_logging.formatters",
    f"{{hydra_logging: {{handlers: {{console: {HANDLER}}}}}}}": "hydra.hydra_logging.handlers",
    "{launcher: '${trainer.args.lr_scheduler_kwargs}'}": "hydra.launcher",
    "{launcher: {partition: '${trainer.args.lr_scheduler_kwargs}'}}": "hydra.launcher.partition",
    "{launcher: {partition: '${oc.create:{_target_: os.system}}'}}": "hydra.launcher.partition",
    "{run: {dir: '${oc.create:{_target_: os.system}}'}}": "hydra.run.dir",
    "{run: {dir: '${${wandb_project}:{_target_: os.system}}'}}": "hydra.run.dir",
    "{job: '${trainer.args.lr_scheduler_kwargs}'}": "hydra.job",
    "'${trainer.args.lr_scheduler_kwargs}'": "hydra: a config file must not",
    "{callbacks: &evil {x: {_target_: os.system}}, launcher: *evil}": "hydra.callbacks.x: ",
    "{job: {<<: {env_set: {PATH: evil}}}}": "hydra.job.env_set",
}
"""What a file sets below hydra, and the key that the refusal names."""


@pytest.fixture(scope="module")
def listener() -> Iterator[str]:
    """The address of a server to which nothing may connect."""
    heard: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    heard.append(server.accept()[1])
                except OSError:
                    return

        Thread(target=listen, daemon=True).start()
        yield "{}:{}".format(*server.getsockname())
        server.shutdown(socket.SHUT_RDWR)
    assert heard == []


@pytest.fixture
def hostile(tmp_path: Path, listener: str) -> Path:
    """A folder for someone else's configs, with the code of a model beside them."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}})
    )
    (code / "evil.py").write_text(f"open({str(tmp_path / CANARY)!r}, 'w')")
    return tmp_path / "conf"


def written(path: Path, content: str, listener: str, start: str = "- quickstart") -> str:
    """Write a config with its defaults list; return the folder that --config-dir takes."""
    root = path
    while root.name != "conf":
        root = root.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "# @package _global_\ndefaults:\n"
    overrides = [line for line in content.splitlines() if line.startswith("- ")]
    rest = [line for line in content.splitlines() if not line.startswith("- ")]
    text += "".join(f"  {line}\n" for line in [start, *overrides])
    text += "\n".join(["", *rest, ""])
    text = text.replace("CANARY", str(root.parent / CANARY)).replace("LISTENER", listener)
    path.write_text(text.replace("CODE", str(root.parent / "code")))
    return str(root)


def started(cwd: Path, *given: str) -> Finished:
    """Run the command in a fork that has imported as little as a refused command does."""
    done = run("-m", "train", *given, cwd=cwd, imports="command")
    return Finished(done.returncode, done.stdout, done.stderr, cwd)


@pytest.mark.parametrize("content", TARGETS)
def test_an_experiment_file_runs_no_code(
    content: str, hostile: Path, listener: str, refused: Refused
) -> None:
    folder = written(hostile / "experiment" / "mine.yaml", content, listener)
    done = started(hostile.parent, "--config-dir", folder, "experiment=mine")
    refused(done, TARGETS[content])


@pytest.mark.parametrize("content", HYDRA)
def test_an_experiment_file_does_not_configure_hydra(
    content: str, hostile: Path, listener: str, refused: Refused
) -> None:
    path = hostile / "experiment" / "mine.yaml"
    folder = written(path, f"{NODE}{content}", listener)
    done = started(hostile.parent, "--config-dir", folder, "experiment=mine")
    refused(done, "conf file experiment/mine: ", HYDRA[content], "must not set this; LAMINA_ALLOW=")
    assert not (hostile.parent / "outputs").exists()


SOME = [*HYDRA][::4]


@pytest.mark.parametrize("content", SOME)
def test_a_file_of_another_group_does_not_configure_hydra(
    content: str, hostile: Path, listener: str, refused: Refused
) -> None:
    folder = written(hostile / "logger" / "mine.yaml", f"{NODE}{content}", listener, "- tb")
    given = ("--config-dir", folder, "experiment=quickstart", "logger=mine")
    refused(started(hostile.parent, *given), "conf file logger/mine: ", HYDRA[content])


@pytest.mark.parametrize("content", SOME)
def test_a_primary_config_does_not_configure_hydra(
    content: str, hostile: Path, listener: str, refused: Refused
) -> None:
    folder = written(hostile / "mine.yaml", f"{NODE}{content}", listener, "- config")
    given = ("--config-dir", folder, "--config-name", "mine", "experiment=quickstart")
    refused(started(hostile.parent, *given), "conf file mine: ", HYDRA[content])


def test_the_search_path_of_a_primary_config_imports_no_package(
    hostile: Path, listener: str, refused: Refused
) -> None:
    (hostile.parent / "evil.py").write_text(f"open({CANARY!r}, 'w')")
    content = "hydra: {searchpath: [pkg://evil]}"
    folder = written(hostile / "mine.yaml", content, listener, "- config")
    given = ("--config-dir", folder, "--config-name", "mine", "experiment=quickstart")
    refused(started(hostile.parent, *given), "conf file mine: hydra.searchpath: a config file must")


PLACES = {
    "hydra/launcher/mine.yaml": ("hydra/launcher=mine", "# @package hydra.launcher\nsetup: [a]"),
    "hydra/job_logging/mine.yaml": ("hydra/job_logging=mine", "handlers: {x: {class: a}}"),
    "hydra/callbacks/mine.yaml": ("hydra/callbacks=mine", "x: {_target_: os.system}"),
    "trainer/mine.yaml": ("trainer=mine", "# @package hydra.job\nenv_set: {PATH: a}"),
    "data/mine.yaml": ("data=mine", "# @package hydra\njob: {env_set: {PATH: a}}"),
    "evil/mine.yaml": ("+evil@hydra.job=mine", "env_set: {PATH: a}"),
}
"""Files that end below hydra by their group or package, and the arguments that choose them."""


@pytest.mark.parametrize("place", PLACES)
def test_a_file_cannot_hide_where_it_ends(place: str, tmp_path: Path, refused: Refused) -> None:
    argument, content = PLACES[place]
    path = tmp_path / "conf" / place
    path.parent.mkdir(parents=True)
    path.write_text(content)
    given = ("--config-dir", str(tmp_path / "conf"), "experiment=quickstart", argument)
    refused(started(tmp_path, *given), f"conf file {place[:-5]}: hydra.", "LAMINA_ALLOW=hydra.")


@pytest.mark.parametrize("climb", ["/../../outside", "../../outside", "/hydra/../../../outside"])
def test_a_file_outside_of_the_search_path_is_as_foreign(
    climb: str, tmp_path: Path, refused: Refused
) -> None:
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    (tmp_path / "outside.yaml").write_text("# @package _global_\nhydra: {launcher: {setup: [a]}}")
    mine.write_text(f"# @package _global_\ndefaults: [quickstart, {climb}]\n")
    done = started(tmp_path, "--config-dir", str(tmp_path / "conf"), "experiment=mine")
    refused(done, "outside")


OLDER = {
    f"callbacks: {{x: {SYSTEM}}}": "callbacks.x={'_target_': 'os.system'",
    "hydra: {launcher: {setup: [touch CANARY]}}": "hydra.launcher={'setup': ",
    "trainer: {args: {push_to_hub: true}}": "trainer.args={'push_to_hub': 'true'}: no such key",
    "push_to_hub: true": "push_to_hub=true: no such key",
    "_target_: os.system": "_target_=os.system: no such key",
    "report_to: '${oc.create:{_target_: os.system}}'": "report_to=",
    "model_name: '${oc.create:{_target_: os.system}}'": "model_name=",
}


@pytest.mark.parametrize("content", OLDER)
def test_a_config_of_the_older_form_runs_no_code(
    content: str, tmp_path: Path, refused: Refused
) -> None:
    own = "" if "model_name" in content else f"model_name: {REFERENCE}\n"
    content = content.replace("CANARY", str(tmp_path / CANARY))
    (tmp_path / "old.yaml").write_text(f"model_type: pruned\nkeep_layers: 8\n{own}{content}\n")
    done = started(tmp_path, "--old", "old.yaml")
    refused(done, OLDER[content.replace(str(tmp_path / CANARY), "CANARY")])


SWEPT = {
    "+callbacks.x": "{_target_: os.system, command: touch}",
    "+trainer.args.lr_scheduler_kwargs": "{_target_: os.system}",
    "+trainer.args.push_to_hub": "true",
    "data.answer_settings.vllm": "./program",
}


@pytest.mark.parametrize("key", SWEPT)
def test_parameters_of_a_sweep_are_not_the_command_line(
    key: str, hostile: Path, listener: str, tmp_path: Path
) -> None:
    content = f"hydra: {{sweeper: {{params: {{{key}: '{SWEPT[key]}'}}}}}}"
    folder = written(hostile / "experiment" / "mine.yaml", content, listener)
    done = started(tmp_path, "--multirun", "--config-dir", folder, "experiment=mine")
    assert done.code == 1
    assert "not allowed" in done.errors or "give it on the command line" in done.errors
    assert "Traceback" not in done.errors
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["status"] == "failed"


ALLOWED = {
    "launcher: {partition: long, account: lab, timeout_min: 10}": "partition: long",
    "sweeper: {params: {seed: '1,2'}}": "seed: 1,2",
    "run: {dir: 'runs/${now:%Y}/${wandb_project}'}": "dir: runs/${now:%Y}/${wandb_project}",
    "run: {dir: '${oc.env:HOME}/runs'}": "dir: ${oc.env:HOME}/runs",
    "sweep: {dir: sweeps, subdir: '${hydra.job.num}'}": "dir: sweeps",
    "verbose: true": "verbose: true",
    "job_logging: {root: {level: DEBUG}, loggers: {lamina: {level: ERROR}}}": "level: DEBUG",
    "mode: MULTIRUN": "mode: MULTIRUN",
}


@pytest.mark.parametrize("content", ALLOWED)
def test_what_does_not_run_code_may_stand_in_a_file(
    content: str, hostile: Path, listener: str
) -> None:
    launcher = "- override /hydra/launcher: slurm\n" if "launcher" in content else ""
    text = f"{launcher}hydra: {{{content}}}"
    folder = written(hostile / "experiment" / "mine.yaml", text, listener)
    done = started(hostile.parent, "--config-dir", folder, "experiment=mine", "--cfg", "hydra")
    assert (done.code, done.refusal) == (0, "")
    assert ALLOWED[content] in done.output


def test_the_environment_allows_one_key_and_the_command_line_all(
    hostile: Path, listener: str, refused: Refused
) -> None:
    text = (
        "- override /hydra/launcher: slurm\n"
        "hydra: {launcher: {setup: [module load cuda]}, job: {env_set: {OMP_NUM_THREADS: '1'}}}"
    )
    folder = written(hostile / "experiment" / "mine.yaml", text, listener)
    given = ("-m", "train", "--config-dir", folder, "experiment=mine", "--cfg", "hydra")
    allow = {"LAMINA_ALLOW": "hydra.launcher.setup"}
    done = run(*given, cwd=hostile.parent, imports="command", **allow)
    one = Finished(done.returncode, done.stdout, done.stderr, hostile.parent)
    refused(one, "hydra.job.env_set: a config file must not set this")
    assert "launcher" not in one.errors
    allow = {"LAMINA_ALLOW": "hydra.launcher.setup, hydra.job.env_set"}
    both = run(*given, cwd=hostile.parent, imports="command", **allow)
    assert (both.returncode, both.stderr) == (0, "")
    assert "- module load cuda" in both.stdout
    own = started(
        hostile.parent,
        *("experiment=quickstart", "hydra/launcher=slurm", "--cfg", "hydra"),
        *("hydra.launcher.setup=[module load cuda]", "+hydra.job.env_set.A=1"),
    )
    assert (own.code, own.errors) == (0, "")
    assert "- module load cuda" in own.output


CALLBACK = """
from pathlib import Path
from transformers import TrainerCallback

class Mine(TrainerCallback):
    def __init__(self, word):
        self.word = word

    def on_train_end(self, *_, **__):
        Path("said").write_text(self.word)

class Other:
    pass
"""


def test_a_callback_that_the_command_line_names_takes_part(
    hostile: Path, listener: str, refused: Refused
) -> None:
    place = hostile.parent
    (place / "mine.py").write_text(textwrap.dedent(CALLBACK))
    given = ("+callbacks.mine._target_=mine.Mine", "+callbacks.mine.word=hello")
    quick = (*SHORT, "evaluation=none", "logger=none", "max_steps=3")
    done = train(place / "run", *quick, *given)
    assert done.code == 0, done.errors
    assert (place / "said").read_text() == "hello"
    wrong = train(place / "wrong", *quick, *given, "+callbacks.mine.more=1")
    refused(wrong, "callbacks: _target_=mine.Mine: got an unexpected keyword argument 'more'")
    other = train(place / "other", *quick, "+callbacks.mine._target_=mine.Other")
    refused(other, "_target_=mine.Other: it does not derive from transformers.TrainerCallback")
    none = train(place / "none", *quick, "+callbacks.mine._target_=mine.Nobody")
    refused(none, "callbacks: _target_=mine.Nobody: module 'mine' has no attribute 'Nobody'")
    call = train(place / "call", *quick, "+callbacks.x={_target_:os.system,command:touch canary}")
    refused(call, "_target_=os.system: it does not derive from transformers.TrainerCallback")


def test_a_callback_in_a_file_needs_lamina_allow(
    hostile: Path, listener: str, refused: Refused
) -> None:
    place = hostile.parent
    (place / "mine.py").write_text(textwrap.dedent(CALLBACK))
    content = "callbacks: {mine: {_target_: mine.Mine, word: allowed}}"
    folder = written(hostile / "experiment" / "mine.yaml", content, listener, "- quickstart")
    given = (f"--config-dir={folder}", *SHORT[1:], "experiment=mine", "evaluation=none")
    refused(train(place / "run", *given), "trust this TrainerCallback, set LAMINA_ALLOW=mine.Mine")
    done = train(place / "run", *given, "logger=none", "max_steps=3", LAMINA_ALLOW="mine.Mine")
    assert done.code == 0, done.errors
    assert (place / "said").read_text() == "allowed"


@pytest.mark.parametrize("given", ["+trainer.args.push_to_hub=true", "logger.wandb.mode=online"])
def test_the_command_line_may_send_a_run_to_a_server(given: str, tmp_path: Path) -> None:
    wrong = ("experiment=quickstart", "logger=wandb", "seed=-1", given)  # stops it after its checks
    done = started(tmp_path, *wrong)
    assert done.refusal == "error: seed=-1: use 0 to 4294967295, as NumPy does\n"
