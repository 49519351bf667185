"""Schemas of every group's options, derived from the settings classes that they instantiate.

Settings classes declare fields and types; conf/ holds every default. A schema has the fields of its
class, all values missing, and a `_target_`. A YAML file includes its schema with
`- /schema/GROUP/OPTION@_here_`, so that a wrong key or type fails at composition.
"""

from dataclasses import Field, field, fields, is_dataclass, make_dataclass
from functools import cache, partial
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from lamina.config.parameters import EvaluationParameters, Parameters
from lamina.data import sources
from lamina.depth import selection, variants
from lamina.depth.plan import option_name
from lamina.export.reduced import Cut
from lamina.heal import adapters, sft, untrained
from lamina.heal.backends import transformers, unsloth
from lamina.heal.callbacks import loggers, settings
from lamina.heal.distillation import settings as distillation
from lamina.measure.evaluate import Evaluation
from lamina.runtime.paths import asset


def _by_name(*options: type) -> dict[str, type]:
    return {option_name(option.__name__): option for option in options}


OPTIONS: dict[str, dict[str, type]] = {
    "model": _by_name(*variants.Variant.__subclasses__()),
    "selector": _by_name(*selection.Selector.__subclasses__()),
    "adapter": _by_name(
        adapters.Lora, adapters.Dora, adapters.QLora, adapters.Full, adapters.Partial
    ),
    "backend": _by_name(unsloth.Auto, transformers.Transformers, unsloth.Unsloth),
    "data": _by_name(sources.Files, sources.Blend, sources.Hub, sources.Disk, sources.Synthetic),
    "trainer": {"sft": sft.SFT, "distill": distillation.Distill, "none": untrained.NoTraining},
    "logger": {"tensorboard": loggers.TensorBoard, "wandb": loggers.WandB},
    "callbacks": _by_name(
        settings.Progress, settings.FiniteLoss, settings.History, settings.EarlyStopping
    ),
}
"""Every group's options and their settings classes."""

GROUPS = ("model", "selector", "adapter", "backend", "data", "trainer", "evaluation")
"""Keys that hold one option each."""


def schema_of(settings: type) -> type:
    """Derive the schema of a settings class; its target is the class's `of`, if it has one.

    It is a new class, because OmegaConf makes nodes of frozen dataclasses read-only.
    """
    target = ("_target_", str, field(default=_name(settings)))
    return make_dataclass(settings.__name__, [target, *map(_entry, own_fields(settings))])


def own_fields(settings: Any) -> list[Field[Any]]:
    """Return the fields that a config sets by name, without the mapping of an open class."""
    own = [each for each in fields(settings) if each.metadata.get("is_setting", True)]
    return [each for each in own if not is_open(settings) or get_origin(each.type) is not dict]


def _name(settings: type) -> str:
    return f"{settings.__module__}.{settings.__qualname__}{'.of' if is_open(settings) else ''}"


@cache
def registered() -> dict[str, Any]:
    """Return all that a config may name as its target: the settings classes of the schemas."""
    found: dict[str, Any] = {}
    left: list[Any] = [Parameters, EvaluationParameters, Cut]
    left += [option for group in OPTIONS.values() for option in group.values()]
    for kind in left:  # grows by the settings within settings
        found[_name(kind)] = kind
        left += [each.type for each in fields(kind) if is_dataclass(each.type)]
    del found[_name(Parameters)]  # the Experiment derives from it
    return found


def is_open(settings: type) -> bool:
    """Whether a settings class accepts keys beyond its fields, which its one mapping collects."""
    return hasattr(settings, "of")


def register() -> None:
    """Register every schema with Hydra, and conf/'s `asset` resolver with OmegaConf."""
    store = ConfigStore.instance()
    # Hydra 1.3.8 copies the whole store for each of the 141 options that --help lists (a second in
    # all), although it copies every node again on access.
    ConfigStore.__deepcopy__ = lambda store, memo: store
    for group, options in OPTIONS.items():
        for name, option in options.items():
            node = OmegaConf.structured(schema_of(option))
            if is_open(option):  # preflight checks the other keys
                OmegaConf.set_struct(node, False)
            store.store(group=f"schema/{group}", name=name, node=node)
    store.store(group="schema", name="evaluation", node=schema_of(Evaluation))
    store.store(group="schema", name="run", node=_root("Run", Parameters))
    store.store(group="schema", name="evaluate", node=_root("Evaluate", EvaluationParameters))
    store.store(group="schema", name="cut", node=_root("Cut", Cut))
    if not OmegaConf.has_resolver("asset"):
        OmegaConf.register_new_resolver("asset", asset)


def _root(name: str, settings: Any) -> type:
    """Derive the schema of a primary config: Hydra's own keys, and the settings' fields."""
    how = [(key, str, field(default=MISSING)) for key in ("_target_", "_convert_")]
    return make_dataclass(name, [*how, *map(_entry, fields(settings))])


def _entry(settings_field: Field[Any]) -> tuple[str, Any, Any]:
    """Return name, type and default of a schema field; the type is Any for a group's option."""
    name, annotation = settings_field.name, settings_field.type
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is dict:
        # dict[str, Any] accepts a library's keys; the YAML file lists those of any other mapping.
        open_dict = partial(OmegaConf.create, {}, flags={"struct": False})
        factory = open_dict if get_args(annotation)[1] is Any else dict
        return name, dict[str, Any], field(default_factory=factory)
    if isinstance(annotation, type) and is_dataclass(annotation) and name not in GROUPS:
        nested = schema_of(annotation)
        return name, nested, field(default_factory=nested)
    parts = get_args(annotation) or (annotation,)
    known = all(part in (bool, int, float, str, NoneType) for part in parts)
    return name, annotation if known else Any, field(default=MISSING)
