"""The typed config: every group's options, derived from the dataclasses that they instantiate.

The fields and their types stand in those classes; the defaults stand in conf/ and nowhere else.
So a schema is its class with `_target_` in front and every value missing. YAML files pull theirs
in with `- /schema/GROUP/OPTION@_here_`; a wrong key or type then fails at composition.
"""

from dataclasses import Field, field, fields, is_dataclass, make_dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from lamina.config import parameters
from lamina.data import sources
from lamina.depth import selection, variants
from lamina.export import final, reduced
from lamina.heal import adapters, sft
from lamina.heal.backends import transformers, unsloth
from lamina.heal.callbacks import loggers, settings
from lamina.measure import evaluate
from lamina.runtime.paths import asset
from lamina.scan import passes
from lamina.units import Tokens

OPTIONS: dict[str, dict[str, type]] = {
    "model": {
        "original": variants.Original,
        "dropped": variants.Dropped,
        "pruned": variants.Pruned,
        "layers": variants.Layers,
        "scratch": variants.Scratch,
    },
    "selector": {
        "first": selection.First,
        "last": selection.Last,
        "uniform": selection.Uniform,
        "random": selection.Random,
        "magnitude": selection.Magnitude,
        "block_influence": selection.BlockInfluence,
        "angular": selection.Angular,
        "leave_one_out": selection.LeaveOneOutLoss,
        "leave_one_out_kl": selection.LeaveOneOutKL,
        "greedy": selection.Greedy,
        "taylor": selection.Taylor,
    },
    "adapter": {
        "lora": adapters.Lora,
        "dora": adapters.Dora,
        "qlora": adapters.QLora,
        "full": adapters.Full,
    },
    "backend": {
        "auto": transformers.Auto,
        "transformers": transformers.Transformers,
        "unsloth": unsloth.Unsloth,
    },
    "data": {
        "files": sources.Files,
        "hub": sources.Hub,
        "disk": sources.Disk,
        "synthetic": sources.Synthetic,
    },
    "trainer": {"sft": sft.SFT},
    "logger": {"tensorboard": loggers.TensorBoard, "wandb": loggers.WandB},
    "callbacks": {
        "progress": settings.Progress,
        "finite_loss": settings.FiniteLoss,
        "history": settings.History,
        "early_stopping": settings.EarlyStopping,
    },
}
"""Every group's options and the settings class that each of them instantiates."""


def schema_of(settings: type) -> type:
    """Derive the schema of a settings dataclass: the same fields, all of them missing.

    A new class, because OmegaConf makes nodes of frozen dataclasses read-only. A class with `of`
    is built by it.
    """
    assert is_dataclass(settings)
    name = f"{settings.__module__}.{settings.__qualname__}{'.of' if is_open(settings) else ''}"
    target = ("_target_", str, field(default=name))
    known = [entry for entry in fields(settings) if not (is_open(settings) and _is_dict(entry))]
    return make_dataclass(settings.__name__, [target, *map(_entry, known)])


def is_open(settings: type) -> bool:
    """Whether a settings class takes more keys than its fields, in its one mapping."""
    return hasattr(settings, "of")


def node_of(settings: type) -> DictConfig:
    """Return the schema as a node; preflight looks at the keys that an open one takes besides."""
    node: DictConfig = OmegaConf.structured(schema_of(settings))
    if is_open(settings):
        OmegaConf.set_struct(node, False)
    return node


def _entry(settings_field: Field[Any]) -> tuple[str, Any, Any]:
    """Name, type and default of one schema field; Any where a group's option will stand."""
    annotation = settings_field.type
    if _is_dict(settings_field):
        # Of one that holds anything, a library knows the keys; of another the YAML lists them.
        factory = _open_dict if get_args(annotation)[1] is Any else dict
        return settings_field.name, dict[str, Any], field(default_factory=factory)
    if annotation is Tokens:  # text, too: 16k; preflight makes a number of it
        return settings_field.name, Any, field(default=MISSING)
    parts = get_args(annotation) or (annotation,)
    known = all(part in (bool, int, float, str, NoneType) for part in parts)
    return settings_field.name, annotation if known else Any, field(default=MISSING)


def _is_dict(settings_field: Field[Any]) -> bool:
    return get_origin(settings_field.type) is dict


def _open_dict() -> DictConfig:
    """A mapping that takes any key, on the command line, too."""
    return OmegaConf.create({}, flags={"struct": False})


def register() -> None:
    """Put every schema into Hydra's ConfigStore, and conf/'s resolvers into OmegaConf."""
    store = ConfigStore.instance()
    # Hydra 1.3.8 copies the whole store for each of the 141 options that --help lists, a second in
    # all, and copies every node again when it hands it out.
    ConfigStore.__deepcopy__ = lambda store, memo: store
    for group, options in OPTIONS.items():
        for name, option in options.items():
            store.store(group=f"schema/{group}", name=name, node=node_of(option))
    store.store(group="schema", name="evaluation", node=schema_of(evaluate.Evaluation))
    store.store(group="schema", name="run", node=_run_schema())
    depth = {"depth": schema_of(variants.DepthDefaults)}
    store.store(group="schema", name="cut", node=make_dataclass("Cut", _root(reduced.Cut, depth)))
    if not OmegaConf.has_resolver("asset"):
        OmegaConf.register_new_resolver("asset", asset)


def _run_schema() -> type:
    """The root of a run: the shared parameters, and one place for each group's option."""
    nested = {
        "lora": schema_of(parameters.LoraParameters),
        "depth": schema_of(variants.DepthDefaults),
        "generator": schema_of(parameters.GeneratorParameters),
        "export": schema_of(final.Export),
    }
    scanned = schema_of(passes.ScanSettings)
    entries = _root(parameters.Parameters, nested)
    entries.append(("scan", scanned, field(default_factory=scanned)))
    for group in ("model", "selector", "adapter", "backend", "data", "trainer", "evaluation"):
        entries.append((group, Any, field(default=MISSING)))
    for group in ("logger", "callbacks"):
        entries.append((group, dict[str, Any], field(default_factory=dict)))
    return make_dataclass("Run", entries)


def _root(settings: Any, nested: dict[str, type]) -> list[Any]:
    """Entries of a primary config: how it is instantiated, and its settings' fields."""
    entries: list[Any] = [(key, str, field(default=MISSING)) for key in ("_target_", "_convert_")]
    for entry in fields(settings):
        node = nested.get(entry.name)
        entries.append((entry.name, node, field(default_factory=node)) if node else _entry(entry))
    return entries
