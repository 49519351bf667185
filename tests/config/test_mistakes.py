"""What a mistake says: all of it, exactly, with the key, the value and what is allowed."""

import subprocess
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lamina.config.quoting import as_text, typed
from tests.conftest import ROOT, Finished, environment
from tests.forked import Server

TRL, PEFT = (f"{name} {version(name)}" for name in ("trl", "peft"))

OURS = "not allowed; only Lamina's own settings are, at the keys of their groups"
EXPERIMENTS = ", ".join(sorted(file.stem for file in ROOT.glob("conf/experiment/*.yaml")))
VARIANTS = "The options are dropped, layers, original, pruned, scratch."

MISTAKES = {
    # The teacher's cache.
    "trainer=distill trainer.cache=true": "trainer.cache=True: use none, auto or a folder",
    "trainer=distill trainer.hidden=1 model.keep_layers=1": "trainer.hidden=1.0 compares states "
    "before each kept layer but the first, and model.keep_layers=1 keeps no other: set "
    "trainer.hidden=0",
    "trainer=distill trainer.top_k=0": "trainer.top_k=0: use 1 or more",
    "trainer=distill trainer.min_mass=1": "trainer.min_mass=1.0: use a value from 0 to below 1",
    "trainer=distill trainer.cache=null": "trainer.cache=null: set a value",
    "trainer=distill trainer.cache=''": "trainer.cache=: use none, auto or a folder",
    "trainer=distill adapter.init_lora_weights=olora export.form=merged": "adapter."
    "init_lora_weights=olora changes weights in place that trainer=distill shares with its "
    "teacher: leave it out, or set trainer.cache=auto",
    "trainer.cache=auto": "trainer.cache=auto: this key belongs to trainer=distill; trainer=sft "
    "has args",
    "trainer=distill trainer.cache=auto trainer.hidden=0.5": "trainer.hidden=0.5 compares hidden "
    "states, and trainer.cache=auto has predictions alone: set trainer.hidden=0, or "
    "trainer.cache=none",
    # Groups of free keys.
    "data=blend data.sources=null": "data.sources=null: a group of keys; set "
    "data.sources.NAME=VALUE",
    "model=scratch model.architecture=foo": "model.architecture=foo: a group of keys; set "
    "model.architecture.NAME=VALUE",
    "trainer.args={1:2}": "trainer.args.1: a name must be text, not a number, true or false",
    "adapter={1:2}": "adapter.1: a name must be text, not a number, true or false",
    "model=scratch model.architecture={true:2}": "model.architecture.True: a name must be text, "
    "not a number, true or false",
    # Layers.
    "model.keep_layers=99": "model.keep_layers=99, but the model has 12 layers: use 1 to 11",
    "model.keep_layers=12": "model.keep_layers=12, but the model has 12 layers: use 1 to 11; for "
    "the whole model choose model=original",
    "model.keep_layers=0": "model.keep_layers=0, but the model has 12 layers: use 1 to 11",
    "model.keep_layers=3.5": "model.keep_layers=3.5: expected a whole number",
    "model=dropped model.layer_to_drop=-1": "model.layer_to_drop=-1, but the model has 12 layers: "
    "use 0 to 11 (0-based)",
    "model=dropped model.layer_to_drop=12": "model.layer_to_drop=12, but the model has 12 layers: "
    "use 0 to 11 (0-based)",
    "model=dropped model.layer_to_drop=abc": "model.layer_to_drop=abc: expected a whole number "
    "(0-based), or auto for the layer that costs least",
    "depth.layer_to_drop=first": "depth.layer_to_drop=first: expected a whole number (0-based), or "
    "auto for the layer that costs least",
    # Protected layers.
    "model=dropped model.layer_to_drop=2 depth.protect=[0,2]": "model.layer_to_drop=2 removes "
    "layer 2, which depth.protect=[0,2] protects; 10 of 12 layers may go: choose other layers, or "
    "protect fewer",
    "model=layers model.drop=[1-3] depth.protect=[0,2]": "model.drop=[1-3] removes layer 2, which "
    "depth.protect=[0,2] protects; 10 of 12 layers may go: choose other layers, or protect fewer",
    "model=layers model.keep=0-8 depth.protect=full_attention": "model.keep=0-8 removes layer 8, "
    "which depth.protect=full_attention protects like every other: choose other layers, or "
    "protect fewer",
    "model.keep_layers=2 depth.protect=[0-3]": "model.keep_layers=2 leaves 2 of 12 layers, but "
    "depth.protect=[0-3] protects 3: keep at least those, or protect fewer",
    "depth.protect=[linear_attention]": "depth.protect=[linear_attention]: 'linear_attention' is "
    "neither a layer of this model (0 to 11, or a half-open range such as 0-2), nor a kind of its "
    "layers (full_attention)",
    "depth.protect=[0,12]": "depth.protect=[0,12]: 12 lies outside of the model's 12 layers: "
    "indices are 0 to 11, ranges half-open (0-12 is all)",
    "depth.protect=''": "depth.protect='': '' is neither a layer of this model (0 to 11, or a "
    "half-open range such as 0-2), nor a kind of its layers (full_attention)",
    # Targets.
    "model.target_parameters=abc": "model.target_parameters=abc: use a number such as 6e9 or 6B",
    "model.target_bytes=12": "model.target_bytes=12: use a number such as 500MB, 8GB or 8GiB",
    "model.target_parameters=1e6 model.keep_layers=8": "model.target_parameters=1e6 and "
    "model.keep_layers=8: set only one of them",
    "model.target_bytes=2MB depth.keep_layers=8": "model.target_bytes=2MB and "
    "depth.keep_layers=8: set only one of them",
    "model.target_bytes=2MB model.target_parameters=1M": "model.target_parameters=1M and "
    "model.target_bytes=2MB: set only one of them",
    # Keys of another option.
    "model.layer_to_drop=-1": "model.layer_to_drop=-1: this key belongs to model=dropped; "
    "model=pruned has keep_layers, selector, target_parameters, target_bytes",
    "model=original model.keep_layers=3": "model.keep_layers=3: this key belongs to model=pruned",
    "model.architecture.hidden_size=1": "model.architecture.hidden_size=1: this key belongs to "
    "model=scratch; model=pruned has keep_layers, selector, target_parameters, target_bytes",
    "adapter=full adapter.use_rslora=true": "adapter.use_rslora=true: this key belongs to "
    "adapter=lora, dora or qlora; adapter=full has learning_rate",
    "selector=last model=original": "selector chooses the layers of model=pruned: leave it out, or "
    "choose model=pruned",
    # Options.
    "model=prunned": f"model=prunned: no such option; did you mean pruned?\n{VARIANTS}",
    "experiment=quikstart": "experiment=quikstart: no such option; did you mean quickstart?\n"
    f"The options are {EXPERIMENTS}.",
    "adapter=null": "adapter=null: choose dora, full, lora, partial or qlora",
    "callbacks=null": "callbacks=null: choose default, early_stopping or none",
    "backend=transformer": "backend=transformer: no such option; did you mean transformers?\n"
    "The options are auto, transformers, unsloth.",
    # Keys.
    "learnig_rate=1": "learnig_rate=1: no such key; did you mean learning_rate?",
    "++learnig_rate=1": "learnig_rate=1: no such key; did you mean learning_rate?",
    "keep_layers=3": "keep_layers=3: no such key; did you mean depth.keep_layers?",
    "lora.rank=3": "lora.rank=3: no such key; use r or alpha",
    "logger=wandb logger.wandb.proj=3": "logger.wandb.proj=3: no such key; did you mean "
    "logger.wandb.project?",
    "++logger.tensorboard.folder=x": "logger.tensorboard.folder=x: no such key",
    "++data.train_row=3": "data.train_row=3: no such key; did you mean train_rows?",
    "callbacks=early_stopping callbacks.early_stopping.patienc=3": "callbacks.early_stopping."
    "patienc=3: no such key; did you mean callbacks.early_stopping.patience?",
    "callbacks=early_stopping callbacks.early_stopping.threshold=-1": "callbacks.early_stopping."
    "threshold=-1.0: use 0 or more",
    "hydra.run.folder=x": "hydra.run.folder=x: no such key; use dir",
    "qqqqzzz=1": "qqqqzzz=1: no such key; see docs/parameters.md",
    "use_lora=true": "use_lora=true: no longer a key; choose adapter=lora or adapter=full",
    "report_to=wandb": "report_to=wandb: no longer a key; choose logger=tb, wandb, both or none",
    "~learning_rate": "trainer.args.learning_rate: refers to learning_rate, which does not exist",
    # Fields of SFTConfig.
    "trainer.args.max_grad_nrom=1": "trainer.args.max_grad_nrom=1: no such key; did you mean "
    "max_grad_norm?",
    "++trainer.args.learnig_rate=1": "trainer.args.learnig_rate=1: no such key; did you mean "
    "learning_rate?",
    "trainer.args.evaluation_strategy=no": "trainer.args.evaluation_strategy=no: not a field of "
    f"SFTConfig in {TRL}: set trainer.args.eval_strategy",
    "trainer.args.max_seq_length=64": "trainer.args.max_seq_length=64: not a field of SFTConfig in "
    f"{TRL}: set max_seq_length=TOKENS",
    "trainer.args.warmup_ratio=0.1": "trainer.args.warmup_ratio=0.1: not a field of SFTConfig in "
    f"{TRL}: set warmup_ratio=SHARE",
    "trainer.args.chat_template_path=a.jinja": "trainer.args.chat_template_path=a.jinja: "
    "not set here: set data.chat_template=NAME or FILE",
    "trainer.args.no_cuda=true": "trainer.args.no_cuda=True: not a field of SFTConfig in "
    f"{TRL}: set trainer.args.use_cpu",
    "trainer.args.group_by_length=true": "trainer.args.group_by_length=True: not a field of "
    f"SFTConfig in {TRL}: set trainer.args.train_sampling_strategy=group_by_length",
    "trainer.args.output_dir=x": "trainer.args.output_dir=x: not set here: set output_dir=FOLDER",
    "trainer.args.hub_token=x": "trainer.args.hub_token=x: not set here: set HF_TOKEN in the "
    "environment or in .env",
    "trainer.args.tf32=maybe": "trainer.args.tf32=maybe: expected true, false or null",
    "trainer.args.max_grad_norm=big": "trainer.args.max_grad_norm=big: expected a number",
    "trainer.args.dataloader_num_workers=1.5": "trainer.args.dataloader_num_workers=1.5: expected "
    "a whole number",
    "trainer.args.include_for_metrics=[1]": "trainer.args.include_for_metrics=[1]: expected a list "
    "(each item text)",
    "trainer.args.optim=adamw": "trainer.args.optim=adamw: not one of its 41 choices; did you mean "
    "grokadamw?",
    "trainer.args.packing_strategy=best": "trainer.args.packing_strategy=best: use bfd, bfd_split "
    "or wrapped",
    "trainer.args=3": "trainer.args=3: a group of keys; set trainer.args.NAME=VALUE",
    "trainer.args.use_liger_kernel=true": "trainer.args.use_liger_kernel=True: not set here: set "
    "kernels=liger",
    # Kernels and memory, on a machine without a GPU.
    "attention=fast": "attention=fast: use auto, flash, flex, sdpa or eager",
    "attention=flash": "attention=flash needs a GPU: leave it out",
    "attention=flex": "attention=flex needs a GPU: leave it out",
    "kernels=triton": "kernels=triton: use none or liger",
    "kernels=liger": "kernels=liger needs a GPU with Triton: leave it out",
    "kernels=liger trainer.args.loss_type=chunked_nll": "trainer.args.loss_type=chunked_nll has "
    "no effect with kernels=liger, which replaces the loss: leave it out\n"
    "kernels=liger needs a GPU with Triton: leave it out",
    "kernels=liger trainer.args.label_smoothing_factor=0.1 trainer.args.loss_type=nll": "trainer."
    "args.label_smoothing_factor=0.1 has no effect with kernels=liger: its loss does not smooth "
    "labels\n"
    "kernels=liger needs a GPU with Triton: leave it out",
    "activation_offloading=true": "activation_offloading=true needs a GPU: leave it out",
    "torch_compile=maybe": "torch_compile=maybe: expected true or false",
    "torch_compile=true parallel=fsdp adapter=full": "torch_compile=true does not work with "
    "parallel=fsdp in this version: leave it out, or set parallel=ddp",
    "optim=sdg": "optim=sdg: not one of its 41 choices; did you mean sgd?",
    "optim=lomo": "optim=lomo needs lomo-optim: pip install lomo-optim, or leave it out",
    "adapter=dora adapter.use_dora=false": "adapter.use_dora=False: not set here: adapter=dora is "
    "true, adapter=lora false",
    "adapter.alora_invocation_tokens=[1,2]": "adapter.alora_invocation_tokens=[1, 2]: not set "
    "here: it is off until the prompt has these tokens, and neither a merged nor a reloaded model "
    "knows them; leave it out",
    "adapter.use_qlora=true": "adapter.use_qlora=True: not a field of LoraConfig in "
    f"{PEFT}: choose adapter=qlora",
    "parallel=fsdp adapter=dora": "parallel=fsdp shards trained weights, but adapter=dora "
    "trains few: set parallel=ddp, or adapter=full",
    # Fields of LoraConfig.
    "adapter.use_rslor=true": "adapter.use_rslor=True: no such key; did you mean use_rslora?",
    "adapter.use_dora=2": "adapter.use_dora=2: expected true or false",
    "adapter.lora_alpha=8": "adapter.lora_alpha=8: not set here: set adapter.alpha",
    "adapter.layer_replication=[[0,4]]": "adapter.layer_replication=[[0, 4]]: not set here: the "
    "kept layers decide it: choose model=dropped, pruned or layers",
    "adapter.kasa_config.rank=3 export.form=merged": "adapter.kasa_config={'rank': 3}: expected a "
    "mapping with the keys beta/gamma or null",
    "adapter.init_lora_weights=pissa": "adapter.init_lora_weights=pissa changes the base's "
    "weights, which an adapter alone cannot rebuild: set export.form=merged",
    "adapter.modules_to_save=[lm_head] export.form=adapter": "adapter.modules_to_save=['lm_head'] "
    "needs export.form=merged, not adapter: transformers leaves it out when it loads an adapter",
    "adapter.trainable_token_indices=[3] export.form=both": "adapter.trainable_token_indices=[3] "
    "needs export.form=merged, not both: transformers leaves it out when it loads an adapter\n"
    "adapter.trainable_token_indices=[3] needs trainer.args.loss_type=nll: TRL's chunked loss "
    "reads the output head, which may be tied to these tokens",
    "trainer=distill adapter.trainable_token_indices={wte:3} export.form=merged": "adapter."
    "trainable_token_indices={'wte': 3}: use lists of token ids, such as {embed_tokens:[3,4]}",
    "adapter.layers_to_transform=[0]": "adapter.layers_to_transform=[0] needs a list in "
    "adapter.target_modules, such as [q_proj,v_proj]",
    # Types.
    "bf16=maybe": "bf16=maybe: expected true or false",
    "max_steps=ten": "max_steps=ten: expected a whole number",
    "learning_rate=fast": "learning_rate=fast: expected a number",
    "learning_rate=null": "learning_rate=null: set a value",
    "learning_rate=inf": "learning_rate=inf: use a finite number",
    "model=pruned model.target_parameters=inf": "model.target_parameters=inf: use a finite number",
    "seed=5000000000": "seed=5000000000: use 0 to 4294967295, as NumPy does",
    "lora=[1]": "lora=[1]: a group of keys; set lora.NAME=VALUE",
    "lora=null": "lora=null: a group of keys; set lora.NAME=VALUE",
    "depth.protect={a:1}": "depth.protect={a:1}: expected a list",
    "distributed=[2]": "distributed=[2]: use auto for one process per GPU, none, or a number of 1 "
    "or more",
    "distributed=1.5": "distributed=1.5: use auto for one process per GPU, none, or a number of 1 "
    "or more",
    "adapter.target_modules={a:1}": "adapter.target_modules={'a': 1}: expected text, a list (each "
    "item text) or null",
    "data=csv data.train=a data.columns.prompt=[a]": "data.columns.prompt=['a']: expected one "
    "column's name, or null",
    "data=csv data.train=a data.columns=[a]": "data.columns=[a]: a group of keys; set "
    "data.columns.NAME=VALUE",
    "trainer.args.lr_scheduler_kwargs=text": "trainer.args.lr_scheduler_kwargs=text: expected a "
    "mapping",
    "optim=3": "optim=3: not one of its 41 choices, such as adamw_torch",
    "hydra.verbose={a:1}": "hydra.verbose={'a': 1}: use true, false, or a list of loggers' names",
    # Settings of another kind.
    "model.selector=first": "model.selector=first: expected the settings of an option; choose "
    "selector=OPTION",
    "logger.tensorboard=3": "logger.tensorboard=3: expected the settings of an option; choose "
    "logger=OPTION",
    "++callbacks.x={a:1}": "callbacks.x={'a': 1}: expected the settings of an option; choose "
    "callbacks=OPTION",
    "model=original ++selector._target_=lamina.depth.variants.Original": "selector=Original: "
    "expected the settings of an option; choose selector=OPTION",
    "backend={a:1}": "backend={a:1}: no such key; see docs/parameters.md",
    # Keys that are added or deleted.
    "+seed=3": "+seed=3: this key exists: leave out the +",
    "~learnig_rate": "~learnig_rate: no such key; did you mean learning_rate?",
    # Several values.
    "learning_rate=1e-3,1e-4": "learning_rate=1e-3,1e-4: several values need --multirun",
    "model=dropped,pruned": "model=dropped,pruned: several values need --multirun",
    "adapter.target_modules=q_proj,v_proj": "adapter.target_modules=q_proj,v_proj: several values "
    "need --multirun; if it is a list: 'adapter.target_modules=[q_proj,v_proj]'",
    "wandb_project=a,b": "wandb_project=a,b: several values need --multirun; if it is one text, "
    "quote it: 'wandb_project=\"a,b\"'",
    "learning_rate=interval(0,1)": "learning_rate=interval(0,1): an interval does not say which of "
    "its values to run: list them, separated by commas, or use range(START,STOP,STEP)",
    "seed=range(3,3)": "seed=range(3,3): an empty range; range(START,STOP,STEP) ends before "
    "STOP: use another STOP",
    "adapter=glob(x*)": "adapter=glob(x*): matches no option\n"
    "The options are dora, full, lora, partial, qlora.",
    "wandb_project=glob(*)": "wandb_project=glob(*): glob chooses options of a group; list the "
    "values, separated by commas",
    # Values that need quotes.
    "wandb_project=a=b": "wandb_project=a=b: not of the form NAME=VALUE; quote its value: "
    "'wandb_project=\"a=b\"'",
    "wandb_project=a#b": "wandb_project=a#b: not of the form NAME=VALUE; quote its value: "
    "'wandb_project=\"a#b\"'",
    "wandb_project=a(1)": "wandb_project=a(1): not of the form NAME=VALUE; quote its value: "
    "'wandb_project=\"a(1)\"'",
    "wandb_project=a[1]": "wandb_project=a[1]: not of the form NAME=VALUE; quote its value: "
    "'wandb_project=\"a[1]\"'",
    "wandb_project=[a]": "wandb_project=['a']: expected text; quote it: 'wandb_project=\"[a]\"'",
    "wandb_project=it's": "wandb_project=it's: not of the form NAME=VALUE; quote its value: "
    '"wandb_project=\\"it\'s\\""',
    "data=jsonl data.train=my (1).jsonl seed=1": "(1).jsonl: not of the form NAME=VALUE; if it "
    "belongs to the value before it, quote both: 'data.train=\"my (1).jsonl\"'",
    "model=layers model.keep=[0, 1, 5-11]": "model.keep=[0, 1, 5-11]: one argument with spaces: "
    "quote it: 'model.keep=[0, 1, 5-11]'",
    "model_name=./a(1) x.jsonl": "model_name=./a(1) x.jsonl: not of the form NAME=VALUE; quote "
    "its value: 'model_name=\"./a(1) x.jsonl\"'\n"
    "model_name=./a(1) x.jsonl: no such folder",
    "export=merged": "export=merged: a group of keys; set export.NAME=VALUE",
    "max_seq_length=4k": "max_seq_length=4k: use a whole number of tokens, such as 4096",
    "max_seq_length=0": "max_seq_length=0: use a whole number of tokens, such as 4096",
    "evaluation.max_new_tokens=1k": "evaluation.max_new_tokens=1k: use a whole number of tokens, "
    "such as 4096",
    "selector=greedy scan.tokens=500": "scan.tokens=500 is less than one window of "
    "max_seq_length=512 tokens: use more tokens or a shorter window",
    "scan.tokens=4kb": "scan.tokens=4kb: use a number such as 4096, 16k or 1.6M",
    "scan.memory=8": "scan.memory=8: use a number such as 500MB, 8GB or 8GiB",
    "scan.stream=maybe": "scan.stream=maybe: use auto, true or false",
    # Ranges.
    "warmup_ratio=1": "warmup_ratio=1.0: use a fraction of all steps, 0 to below 1",
    "learning_rate=0": "learning_rate=0.0: use a value above 0",
    "max_steps=0": "max_steps=0: use 1 or more, or -1 for no limit",
    "budget.tokens=4kb max_steps=-1": "budget.tokens=4kb: use a number such as 4096, 16k or 1.6M",
    "budget.tokens=16k": "budget.tokens=16k and max_steps=200: set only one of them; max_steps=-1 "
    "leaves the length to the budget",
    "budget.tokens=16k max_steps=-1 trainer.args.train_sampling_strategy=group_by_length "
    "trainer.args.dataloader_drop_last=true": "budget.tokens=16k needs "
    "trainer.args.train_sampling_strategy=random or sequential, not group_by_length\n"
    "budget.tokens=16k and trainer.args.dataloader_drop_last: leave out one of them",
    "budget.tokens=16k max_steps=-1 trainer.args.shuffle_dataset=true": "budget.tokens=16k and "
    "trainer.args.shuffle_dataset: leave out one of them",
    # Ladders.
    "ladder.keep_layers=8": "ladder.keep_layers=8: use two numbers of layers or more, such as "
    "[27,24]",
    "ladder.keep_layers=[10,ten]": "ladder.keep_layers=[10,'ten']: use two numbers of layers or "
    "more, such as [27,24]",
    "ladder.keep_layers=[9,0]": "ladder.keep_layers=[9,0]: each round must keep 1 layer or more",
    "ladder.keep_layers=[8,10]": "ladder.keep_layers=[8,10]: each round must keep fewer layers",
    "ladder.keep_layers=[10,10,8]": "ladder.keep_layers=[10,10,8]: each round must keep fewer "
    "layers",
    "ladder.keep_layers=[10,6]": "ladder.keep_layers=[10,6] ends with 6 layers, but "
    "model.keep_layers=8: set both to the same number",
    "ladder.keep_layers=[12,8]": "ladder.keep_layers=[12,8], but the model has 12 layers: begin "
    "with 11 or less",
    "ladder.keep_layers=[10,8] model=dropped": "ladder.keep_layers=[10,8] needs model=pruned with "
    "model.keep_layers=8",
    "ladder.keep_layers=[10,8] export.form=adapter": "ladder.keep_layers=[10,8] merges each "
    "round's adapter, after which export.form=adapter has no base: leave export.form out",
    "ladder.keep_layers=[10,8] resume=never": "ladder.keep_layers=[10,8] needs resume=auto: each "
    "round resumes from its own checkpoints",
    "ladder.keep_layers=[10,8] trainer=none": "ladder.keep_layers=[10,8] heals, and trainer=none "
    "trains nothing: leave out one of them",
    "ladder.keep_layers=[10,8] repair=magnitude": "ladder.keep_layers=[10,8] and repair=magnitude: "
    "leave out one of them",
    "ladder.keep_layers=[10,8] max_steps=1": "ladder.keep_layers=[10,8] has more rounds than "
    "max_steps=1: set a larger max_steps",
    "ladder.keep_layers=[10,8] depth.protect=[0-9]": "model.keep_layers=8 leaves 8 of 12 layers, "
    "but depth.protect=[0-9] protects 9: keep at least those, or protect fewer",
    "adapter.dropout=1": "adapter.dropout=1.0: use a value from 0 to below 1",
    "lr_scheduler_type=linnear": "lr_scheduler_type=linnear: use linear, cosine, "
    "cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt, "
    "reduce_lr_on_plateau, cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay or "
    "greedy",
    "export.form=gguf": "export.form=gguf: use auto, adapter, merged or both",
    "data.loss_on=everything": "data.loss_on=everything: use auto, assistant, completion or all",
    "data.chat_template=own.jinja": "data.chat_template=own.jinja: no such template; use a file "
    "that ends in .jinja or .j2, chatml, or the name of one of the tokenizer's templates",
    "logger=wandb logger.wandb.mode=sometimes": "logger.wandb.mode=sometimes: use auto, online or "
    "offline",
    "resume=maybe": "resume=maybe: no such folder; use auto, never, or the folder of a run "
    "or of a checkpoint",
    "distributed=0": "distributed=0: use auto for one process per GPU, none, or a number of 1 "
    "or more",
    "distributed=many": "distributed=many: use auto for one process per GPU, none, or a number of "
    "1 or more",
    "parallel=dp": "parallel=dp: use auto, ddp or fsdp",
    # Contradictions.
    "parallel=fsdp": "parallel=fsdp shards trained weights, but adapter=lora trains few: set "
    "parallel=ddp, or adapter=full",
    "parallel=fsdp adapter=partial": "parallel=fsdp shards trained weights, but adapter=partial "
    "trains few: set parallel=ddp, or adapter=full",
    "parallel=fsdp adapter=full distributed=none": "parallel=fsdp needs several processes: leave "
    "out distributed=none, or parallel",
    "parallel=fsdp adapter=full distributed=2": "parallel=fsdp shards the weights over several "
    "GPUs, but there is no GPU: set parallel=auto",
    "save_steps=75": "save_steps=75 is not a multiple of eval_steps=50, but the best checkpoint "
    "must be both saved and evaluated: use a multiple",
    "trainer.args.eval_strategy=no": "trainer.args.eval_strategy=no, but "
    "trainer.args.load_best_model_at_end=true picks the best checkpoint by eval_loss: set it to "
    "false, or evaluate",
    "trainer.args.save_strategy=epoch": "trainer.args.save_strategy=epoch, but "
    "trainer.args.eval_strategy=steps: the best checkpoint must be both saved and evaluated: set "
    "both to the same value",
    "adapter=full export.form=adapter": "export.form=adapter needs adapter=lora: adapter=full has "
    "no adapter",
    "trainer=none export.form=both": "export.form=both: trainer=none trains no adapter: leave it "
    "out",
    "trainer=none data.answers=original dry_run=true": "data.answers=original has no use with "
    "trainer=none: use data.answers=given\n"
    "dry_run=true takes a training step, and trainer=none has none: leave out one of them",
    "trainer=distill trainer.loss=kl": "trainer.loss=kl: use forward_kl or jsd",
    "trainer=distill trainer.temperature=0": "trainer.temperature=0.0: use a value above 0, "
    "at most 20",
    "trainer=distill trainer.temperature=1e6": "trainer.temperature=1000000.0: use a value above "
    "0, at most 20",
    "trainer=distill trainer.cross_entropy=1": "trainer.cross_entropy=1.0: use a value from 0 to "
    "below 1",
    "trainer=distill trainer.args.loss_type=dft": "trainer.args.loss_type=dft has no effect with "
    "trainer=distill: leave it out, or choose trainer=sft",
    "trainer=distill trainer.args.label_smoothing_factor=0.1 trainer.args.loss_type=nll": "trainer."
    "args.loss_type=nll has no effect with trainer=distill: leave it out, or choose trainer=sft\n"
    "trainer.args.label_smoothing_factor=0.1 has no effect with trainer=distill: leave it out, or "
    "choose trainer=sft",
    "trainer=distill torch_compile=true": "torch_compile=true does not work with trainer=distill: "
    "leave it out",
    "trainer=distill adapter=full parallel=fsdp": "parallel=fsdp: trainer=distill does not shard "
    "its teacher: set parallel=ddp, or choose trainer=sft",
    "trainer=distill kernels=liger": "kernels=liger replaces the loss, and trainer=distill has one "
    "of its own: leave it out, or choose trainer=sft\n"
    "kernels=liger needs a GPU with Triton: leave it out",
    "trainer=distill model=scratch": "trainer=distill learns from the original model, and "
    "model=scratch has none: choose trainer=sft",
    "adapter=partial export.form=both": "export.form=both needs adapter=lora: adapter=partial has "
    "no adapter",
    "adapter=partial trainer.args.gradient_checkpointing_kwargs={use_reentrant:true}": "trainer."
    "args.gradient_checkpointing_kwargs.use_reentrant=true: adapter=partial would train no layer, "
    "because what enters them has no gradient: set it to false",
    "adapter=partial adapter.layers=9": "adapter.layers=9, but only 8 layers stay: use 8 or less",
    "adapter=partial adapter.layers=12 model=dropped": "adapter.layers=12, but only 11 layers "
    "stay: use 11 or less",
    "adapter=partial adapter.layers=0": "adapter.layers=0: use 1 or more",
    "adapter=partial adapter.head=tied": "adapter.head=tied: use auto or untied",
    "repair=closedform": "repair=closedform: use none, magnitude or closed_form",
    "repair=magnitude export.form=adapter": "export.form=adapter: repair=magnitude changes the "
    "base, which an adapter alone cannot rebuild: set export.form=merged",
    "repair=magnitude model=original": "repair=magnitude: model=original has no removed layers: "
    "use repair=none",
    "repair=magnitude model=scratch": "repair=magnitude: model=scratch has no removed layers: use "
    "repair=none",
    "repair=closed_form scan.tokens=500": "scan.tokens=500 is less than one window of "
    "max_seq_length=512 tokens: use more tokens or a shorter window",
    "packing=false trainer.args.eval_packing=true": "trainer.args.eval_packing=True needs "
    "packing=true: without it TRL lets packed documents see each other",
    "trainer.args.packing_strategy=wrapped trainer.args.padding_free=true": "trainer.args."
    "packing_strategy=wrapped lets packed documents see each other: use bfd, or packing=false",
    "bf16=true trainer.args.fp16=true": "trainer.args.fp16=true and bf16=true: set only one of "
    "them",
    "max_seq_length=4000 per_device_train_batch_size=16": "per_device_train_batch_size=16 with "
    "packing=true and max_seq_length=4000: sdpa's mask of one batch would take 4.1 GB; use 7 or "
    "less, or packing=false",
    "trainer.args.label_smoothing_factor=0.1": "trainer.args.label_smoothing_factor=0.1 needs "
    "trainer.args.loss_type=nll: TRL's other losses do not smooth labels",
    "trainer.args.max_length=64": "trainer.args.max_length=64, but rows are cut at "
    "max_seq_length=512: set only max_seq_length",
    # What is missing, or not there.
    "data=jsonl": "data.train is missing: set data.train=VALUE",
    "data=csv data.train=a data.on_bad_row=ignore": "data.on_bad_row=ignore: use error or skip",
    "data=csv data.train=a data.format=xls": "data.format=xls: use csv, json, jsonl or parquet; "
    "all but parquet also with .gz, .bz2, .xz, .zst or .lz4",
    "data=csv data.train=a data.columns.promt=a": "data.columns.promt=a: no such key; did you mean "
    "data.columns.prompt?",
    "data=csv data.train=a data.eval_fraction=2": "data.eval_fraction=2.0: use a fraction "
    "of the training rows, above 0 and below 1",
    "data=csv data.train=a data.max_train_samples=0": "data.max_train_samples=0: use 1 or more, "
    "or null for all rows",
    "data=csv data.train=a": "data.train=a: no such file or folder",
    "data=csv data.train=''": "data.train=: no such file or folder",
    "~adapter.r": "adapter.r is missing: set adapter.r=VALUE",
    "~dtype": "dtype is missing: set dtype=VALUE",
    "data=disk data.path=a": "data.path=a: no such folder",
    "data.max_dropped=2": "data.max_dropped=2.0: use a fraction from 0 to 1",
    "experiment": "experiment: not of the form NAME=VALUE; if it belongs to the value before it, "
    "quote both: 'experiment=\"quickstart experiment\"'",
    "model_name=./nowhere": "model_name=./nowhere: no such folder",
    "model_name=${nowhere}": "model_name: refers to nowhere, which does not exist",
    # Foreign code.
    "++model._target_=os.system": f"model._target_=os.system: {OURS}",
    # True, which is neither a path nor a word.
    "output_dir=true logging_dir=false": "output_dir=True: use a folder\nlogging_dir=False: use a "
    "folder",
    "run_dir=true": "run_dir=True: use a folder",
    "data.chat_template=true": "data.chat_template=True: no such template; use a file that ends in "
    ".jinja or .j2, chatml, or the name of one of the tokenizer's templates",
    # Several at once.
    "learnig_rate=1 model=prunned max_step=3 bf16=maybe warmup_ratio=2": "model=prunned: no such "
    f"option; did you mean pruned?\n{VARIANTS}\n"
    "learnig_rate=1: no such key; did you mean learning_rate?\n"
    "max_step=3: no such key; did you mean max_steps?\n"
    "bf16=maybe: expected true or false\n"
    "warmup_ratio=2.0: use a fraction of all steps, 0 to below 1",
    "data=jsonl warmup_ratio=2 save_steps=7 trainer.args.foo=1 adapter.r=0 model_name=./nowhere "
    "++x=1": "data.train is missing: set data.train=VALUE\n"
    "x=1: no such key\n"
    "trainer.args.foo=1: no such key; use a field of trl's SFTConfig\n"
    "warmup_ratio=2.0: use a fraction of all steps, 0 to below 1\n"
    "adapter.r=0: use 1 or more\n"
    "save_steps=7 is not a multiple of eval_steps=50, but the best checkpoint must be both saved "
    "and evaluated: use a multiple\n"
    "model_name=./nowhere: no such folder",
}
"""Arguments beside experiment=quickstart, and the whole message."""

IN_A_FILE = {
    "lerning_rate: 1": "conf file experiment/mine: lerning_rate: no such key; did you mean "
    "learning_rate?",
    "lora: {rank: 4}": "conf file experiment/mine: lora.rank: no such key; use r or alpha",
    "trainer: {callbaks: {a: {b: 3}}}": "conf file experiment/mine: trainer.callbaks: no such key; "
    "use args",
    "max_steps: ten": "conf file experiment/mine: max_steps=ten: expected a whole number",
    "trainer: {args: {optim: sdg, max_grad_nrom: 1}}\nlearning_rate: 0": "trainer.args.optim=sdg: "
    "not one of its 41 choices; did you mean sgd?\n"
    "trainer.args.max_grad_nrom=1: no such key; did you mean max_grad_norm?\n"
    "learning_rate=0.0: use a value above 0",
    "adapter: {use_rslora: maybe}\nmodel: {keep_layers: 99}": "adapter.use_rslora=maybe: expected "
    "true or false\n"
    "model.keep_layers=99, but the model has 12 layers: use 1 to 11",
    "callbacks: {evil: {_target_: builtins.eval}}\nlogger: {evil: {_target_: pickle.load}}": ""
    f"logger.evil._target_=pickle.load: {OURS}\n"
    "callbacks.evil._target_=builtins.eval: not allowed; if you trust this TrainerCallback, set "
    "LAMINA_ALLOW=builtins.eval",
    "lora: 16\nlogger: [wandb]": "conf file experiment/mine: lora=16: a group of keys; set "
    "lora.NAME=VALUE\n"
    "conf file experiment/mine: logger=['wandb']: a group of keys; set logger.NAME=VALUE",
    "callbacks: null": "conf file experiment/mine: callbacks=null: a group of keys; set "
    "callbacks.NAME=VALUE",
    "callbacks: {x: 3}": "callbacks.x=3: expected the settings of an option; choose "
    "callbacks=OPTION",
    "depth: {protect: {a: 1}}\ndistributed: [2]": "conf file experiment/mine: depth.protect.a=1: "
    "no such key; depth.protect takes a list\n"
    "conf file experiment/mine: distributed=[2]: use auto for one process per GPU, none, or a "
    "number of 1 or more",
    "model_name: {a: b}": "conf file experiment/mine: model_name={'a': 'b'}: expected text",
    "logger: false\nlora: 0": "conf file experiment/mine: logger=false: a group of keys; set "
    "logger.NAME=VALUE\nconf file experiment/mine: lora=0: a group of keys; set lora.NAME=VALUE",
    "null: 4": "conf file experiment/mine: Incompatible key type 'NoneType': write keys as text",
    "max_steps: [": "{folder}/experiment/mine.yaml, line 6: not YAML (expected the node content, "
    "but found '<stream end>')",
}
"""Content of an experiment file that builds on the quickstart, and the whole message."""

TELLING = """
import sys
from lamina.commands.train import main

try:
    main()
finally:
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "wandb"} & sys.modules.keys()
    print("heavy:", *sorted(heavy))
"""
"""The command itself; it says at its end what it imported."""


def finished(lines: dict[Path, list[str]]) -> list[Finished]:
    """Run `python -m train` once for each folder, with the arguments given."""
    env, done = environment(), []
    with TemporaryDirectory() as folder, closing(Server(env, "command")) as server:
        script = Path(folder) / "script.py"
        script.write_text(TELLING)
        for cwd, given in lines.items():
            cwd.mkdir()
            ended = server.run([str(script), *given], cwd=cwd, env=env, timeout=120)
            done.append(Finished(ended.returncode, ended.stdout, ended.stderr, cwd))
    return done


def experiment(folder: Path, content: str) -> str:
    """Write an experiment file that builds on the quickstart; return the folder of its group."""
    path = folder / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"# @package _global_\ndefaults:\n  - quickstart\n\n{content}\n")
    return str(folder / "conf")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """Each mistake's outcome."""
    folder = tmp_path_factory.mktemp("mistakes")
    lines = {
        folder / f"line{number}": ["experiment=quickstart", *mistake.split()]
        for number, mistake in enumerate(MISTAKES)
    }
    for number, content in enumerate(IN_A_FILE):
        given = experiment(folder / f"conf{number}", content)
        lines[folder / f"file{number}"] = ["--config-dir", given, "experiment=mine"]
    return dict(zip([*MISTAKES, *IN_A_FILE], finished(lines), strict=True))


@pytest.mark.parametrize("mistake", [*MISTAKES, *IN_A_FILE])
def test_a_mistake_is_named_exactly_and_without_torch(
    mistake: str, answers: dict[str, Finished]
) -> None:
    done = answers[mistake]
    expected = {**MISTAKES, **IN_A_FILE}[mistake]
    place = str(done.folder.parent / done.folder.name.replace("file", "conf") / "conf")
    assert done.refusal == f"error: {expected.replace('{folder}', place)}\n"
    assert done.code == 1
    assert done.output == "heavy:\n"


EVERYTHING_WRONG = """# @package _global_
defaults:
  - quickstart
  - override /model: prund
  - override /selectr: last

max_stps: 4
learning_rate: fast
seed: null
lora: {rr: 3, r: 2.5}
trainer: {args: {max_lenth: 3, optim: sdg}, callbaks: 3}
model: {kep_layers: 3}
data: [a]
"""
NAMED_TOGETHER = f"""error: model=prund: no such option; did you mean pruned?
{VARIANTS}
conf file experiment/mine: override /selectr: no such group; did you mean selector?
conf file experiment/mine: max_stps: no such key; did you mean max_steps?
conf file experiment/mine: learning_rate=fast: expected a number
conf file experiment/mine: seed=null: set a value
conf file experiment/mine: lora.rr: no such key; did you mean lora.r?
conf file experiment/mine: lora.r=2.5: expected a whole number
conf file experiment/mine: trainer.callbaks: no such key; use args
conf file experiment/mine: model.kep_layers: no such key; did you mean model.keep_layers?
conf file experiment/mine: data=['a']: a group of keys; set data.NAME=VALUE
"""
OF_THE_LINE = """maxsteps=3: no such key; did you mean max_steps?
num_threads=x: expected a whole number
trainer.args.optim=sdg: not one of its 41 choices; did you mean sgd?
trainer.args.max_lenth=3: no such key; did you mean max_length?
"""


def test_mistakes_of_a_file_and_of_the_command_line_are_named_together(tmp_path: Path) -> None:
    path = tmp_path / "conf" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(EVERYTHING_WRONG)
    given = ["--config-dir", str(path.parents[1]), "experiment=mine"]
    line = ["maxsteps=3", "num_threads=x"]
    lines = {
        tmp_path / "one": [*given, *line],
        tmp_path / "sweep": ["--multirun", *given, *line, "seed=1,2"],
    }
    one, sweep = finished(lines)
    assert one.refusal == NAMED_TOGETHER + OF_THE_LINE
    assert sweep.refusal == one.refusal
    assert (one.code, sweep.code) == (1, 1)
    assert path.read_text() == EVERYTHING_WRONG


QUOTED = ("a=b", "a#b", "a(1)", "a[1]", "[a]", "it's", "a,b", "a b (1)", 'say "a"', "\\", "'$a`!")


def test_the_quoting_in_a_message_works_in_a_shell() -> None:
    parser = OverridesParser.create()
    for value in QUOTED:
        line = f"printf %s {as_text(f'wandb_project={value}')}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        (given,) = parser.parse_overrides([done.stdout])
        assert given.value() == value
        assert typed(f"a={value}") == as_text(f"a={value}")
    assert typed("hydra.sweep.dir=/a/b-1.c") == "hydra.sweep.dir=/a/b-1.c"


def test_a_refused_run_says_failed_in_its_result(answers: dict[str, Finished]) -> None:
    (path,) = answers["model.keep_layers=99"].folder.glob("outputs/*/*")
    result = Finished(1, "", "", path).result
    assert result["status"] == "failed"
    assert result["error"].startswith("model.keep_layers=99")


def test_showing_a_config_needs_no_torch(tmp_path: Path) -> None:
    given = (["--cfg", "job"], ["--cfg", "job", "--resolve"], ["--help"], ["--info", "defaults"])
    for done in finished({tmp_path / str(number): line for number, line in enumerate(given)}):
        assert done.code == 0
        assert done.output.splitlines()[-1] == "heavy:"
