"""Settings that cannot go together."""

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import get_object

from lamina.config.ranges import at
from lamina.config.targets import ALLOWED_TARGETS, refusal
from lamina.errors import ConfigError, LaminaError
from lamina.heal.kernels import may_need_mask
from lamina.heal.resume import origin
from lamina.heal.sft import NO_COMPILED_SHARES
from lamina.units import count

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of adapter.init_lora_weights that change the base's weights, too."""

NEEDS_DATA = {"eva": "eva", "corda": "corda", "lora_ga": "lora_ga"}
"""Values of adapter.init_lora_weights that need a pass over data before the training."""

MASK_BYTES = 10**9
"""Bytes of one attention mask above which a batch of several rows is refused."""


def problems(content: Mapping[str, Any]) -> Iterator[str]:
    """Name each pair of settings of which one has to go.

    Args:
        content: The resolved config.
    """
    yield from _best_checkpoint(content)
    yield from _precision(content)
    yield from _loss(content)
    yield from _packing(content)
    yield from _liger(content)
    yield from _adapter(content)
    yield from _selection(content)
    yield from _resume(content)
    yield from _processes(content)
    for node in ("model", "backend", "adapter"):
        yield from _own_check(at(content, f"{node}._target_"))


def _best_checkpoint(content: Mapping[str, Any]) -> Iterator[str]:
    arguments = content["trainer"]["args"]
    save, evaluate = (arguments.get(f"{name}_strategy") for name in ("save", "eval"))
    if not arguments.get("load_best_model_at_end"):
        return
    if evaluate == "no":
        yield (
            "trainer.args.eval_strategy=no, but trainer.args.load_best_model_at_end=true chooses "
            "by eval_loss: set it to false, too, or evaluate"
        )
    elif save not in (evaluate, "best"):
        yield (
            f"trainer.args.save_strategy={save}, but trainer.args.eval_strategy={evaluate}: the "
            "best checkpoint could not be chosen; give both the same"
        )
    elif save == evaluate == "steps":
        saved, evaluated = arguments.get("save_steps"), arguments.get("eval_steps")
        if _numbers(saved, evaluated) and saved % evaluated:
            yield (
                f"save_steps={saved} is not a multiple of eval_steps={evaluated}: the best "
                "checkpoint could not be chosen; make it one"
            )


def _precision(content: Mapping[str, Any]) -> Iterator[str]:
    arguments = content["trainer"]["args"]
    for half, other in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval")):
        if arguments.get(half) is True and arguments.get(other) is True:
            # bf16 is a shared parameter, the others are not.
            key = other if other in content else f"trainer.args.{other}"
            yield f"trainer.args.{half}=true and {key}=true: give only one of them"


def _loss(content: Mapping[str, Any]) -> Iterator[str]:
    arguments = content["trainer"]["args"]
    smoothing, kind = arguments.get("label_smoothing_factor"), arguments.get("loss_type")
    if _numbers(smoothing) and kind != "nll":
        yield (
            f"trainer.args.label_smoothing_factor={smoothing} needs trainer.args.loss_type=nll: "
            "TRL's other losses do not smooth labels"
        )
    if "dataloader_prefetch_factor" in arguments and not arguments.get("dataloader_num_workers"):
        yield (
            f"trainer.args.dataloader_prefetch_factor={arguments['dataloader_prefetch_factor']} "
            "needs trainer.args.dataloader_num_workers of 1 or more"
        )


def _packing(content: Mapping[str, Any]) -> Iterator[str]:
    arguments = content["trainer"]["args"]
    if arguments.get("eval_packing") and not arguments.get("packing"):
        yield (
            "trainer.args.eval_packing=True needs packing=true: without it TRL lets packed "
            "documents see each other"
        )
    try:
        length = count("max_seq_length", content["max_seq_length"])
    except ConfigError:
        return
    given = arguments.get("max_length")
    if given != content["max_seq_length"]:
        yield (
            f"trainer.args.max_length={given}, but rows are cut at max_seq_length={length}: set "
            "max_seq_length alone"
        )
    if arguments.get("packing"):
        for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
            batch = arguments.get(key)
            large = _numbers(batch) and batch > 1 and (batch * length) ** 2 > MASK_BYTES
            if large and may_need_mask(content["attention"]):
                fitting = max(1, int(MASK_BYTES**0.5) // length)
                yield (
                    f"{key}={batch} with packing=true and max_seq_length={length}: sdpa's mask of "
                    f"one batch would take {(batch * length) ** 2 / 10**9:.1f} GB; give {fitting}"
                    f"{' or less' if fitting > 1 else ''}, or packing=false"
                )


def _liger(content: Mapping[str, Any]) -> Iterator[str]:
    """What the loss of liger-kernel does not do."""
    if content.get("kernels") != "liger":
        return
    arguments = content["trainer"]["args"]
    if arguments.get("loss_type") == "chunked_nll":
        yield (
            "trainer.args.loss_type=chunked_nll does not go with kernels=liger, whose loss takes "
            "its place: leave it out"
        )
    if _numbers(smoothing := arguments.get("label_smoothing_factor")):
        yield (
            f"trainer.args.label_smoothing_factor={smoothing} does not go with kernels=liger: its "
            "loss does not smooth labels"
        )


def _adapter(content: Mapping[str, Any]) -> Iterator[str]:
    model = str(at(content, "model._target_"))
    if str(content["adapter"].get("_target_")).endswith(".QLora.of") and model.endswith(".Scratch"):
        yield "adapter=qlora reads weights into 4 bits, and model=scratch has none to read"
    form, adapter = at(content, "export.form"), content["adapter"]
    if str(adapter.get("_target_")).endswith("Full"):
        if form in ("adapter", "both"):
            yield f"export.form={form} needs adapter=lora: adapter=full has none"
        return
    initial = adapter.get("init_lora_weights", True)
    if initial in NEEDS_DATA:
        yield (
            f"adapter.init_lora_weights={initial}: it needs a pass over data before the training, "
            "which is not part of this version"
        )
    elif (str(initial).startswith(CHANGES_BASE) or adapter.get("kasa_config")) and form != "merged":
        yield (
            f"adapter.init_lora_weights={initial} changes the base's weights, which an adapter "
            "alone could not rebuild: give export.form=merged"
        )
    if isinstance(adapter.get("target_modules"), str) and (
        adapter.get("layers_to_transform") is not None
    ):
        yield (
            f"adapter.layers_to_transform={adapter['layers_to_transform']} needs a list in "
            "adapter.target_modules, such as [q_proj,v_proj]"
        )


def _selection(content: Mapping[str, Any]) -> Iterator[str]:
    selector, model = at(content, "selector._target_"), at(content, "model._target_")
    if not str(selector).endswith(".First") and not str(model).endswith(".Pruned"):
        yield "selector chooses the layers of model=pruned: leave it out, or choose model=pruned"


def _resume(content: Mapping[str, Any]) -> Iterator[str]:
    try:
        if (given := at(content, "resume")) is not None:
            origin(given)
    except LaminaError as error:
        yield str(error)


def _processes(content: Mapping[str, Any]) -> Iterator[str]:
    adapter = str(content["adapter"].get("_target_"))
    if content.get("parallel") == "fsdp":
        if not adapter.endswith("Full"):
            name = adapter.removesuffix(".of").rpartition(".")[2].lower()
            yield (
                f"parallel=fsdp spreads weights that are trained, and with adapter={name} most are "
                "not: give parallel=ddp, or adapter=full"
            )
        if content["trainer"]["args"].get("torch_compile"):
            yield NO_COMPILED_SHARES
        if content.get("distributed") in ("none", 1):
            yield (
                "parallel=fsdp needs several processes: leave out "
                f"distributed={content['distributed']}, or parallel"
            )


def _own_check(target: Any) -> Iterator[str]:
    """What an option itself has to say, such as that it is not built yet."""
    if target is None or refusal(target, ALLOWED_TARGETS) is not None:
        return
    try:
        getattr(get_object(target), "check", lambda: None)()
    except LaminaError as error:
        yield str(error)


def _numbers(*values: Any) -> bool:
    return all(type(value) in (int, float) and value > 0 for value in values)
