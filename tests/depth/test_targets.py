"""Targets: the most layers whose reduced model has no more than the given parameters or bytes."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamina.depth.loading import load_model
from lamina.depth.plan import Plan, make_plan
from lamina.depth.protection import Protection
from lamina.depth.selection import First, Last, NoScores, Random, Selector, Uniform
from lamina.depth.targets import Sizes, Target
from lamina.depth.variants import Layers, Pruned
from lamina.errors import ConfigError
from lamina.export.reduced import write_cut
from lamina.weights.header import read_header
from lamina.weights.source import resolve
from tests.architectures import ARCHITECTURES, MULTIMODAL, save
from tests.conftest import REFERENCE, no_scores


@pytest.fixture(scope="module", params=["reference", *ARCHITECTURES, *MULTIMODAL])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "reference":
        return REFERENCE
    return save(request.param, tmp_path_factory.mktemp("model") / request.param)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def written(folder: Path) -> dict[str, int]:
    """What the tensors in a folder's files take."""
    tensors = [t for path in folder.glob("*.safetensors") for t in read_header(path).values()]
    return {
        "target_parameters": sum(tensor.size for tensor in tensors),
        "target_bytes": sum(tensor.nbytes for tensor in tensors),
    }


def planned(folder: Path, key: str, limit: int, dtype: str | None) -> Plan:
    given = f"{limit}B" if key == "target_bytes" else limit
    variant = Pruned(keep_layers=99, selector=First(), **{key: given})
    return make_plan(variant, str(folder), no_scores, dtype=dtype)


def saved(folder: Path, kept: range, output: Path, dtype: str | None) -> dict[str, int]:
    """Save a reduced model as a run does, or cut it."""
    if dtype:
        load_model(resolve(str(folder)), kept, dtype=DTYPES[dtype]).save_pretrained(output)
    else:
        plan = make_plan(Layers(keep=list(kept), drop=None), str(folder), no_scores)
        write_cut(plan, output)
    return written(output)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_the_files_meet_the_target_and_with_one_more_layer_would_not(
    model: Path, dtype: str | None, tmp_path: Path
) -> None:
    sizes = [saved(model, range(count), tmp_path / str(count), dtype) for count in (2, 3, 4)]
    for key in ("target_parameters", "target_bytes"):
        two, three, four = (size[key] for size in sizes)
        assert two < three < four
        for limit, count in ((two, 2), (three - 1, 2), (three, 3), (four - 1, 3), (four, 4)):
            plan = planned(model, key, limit, dtype)
            assert plan.kept_layers == tuple(range(count))
            assert plan.selector["keep_layers"] == count


UNEVEN = Sizes(layers=(10, 40, 20, 40, 10, 30), others=5)


@pytest.mark.parametrize("selector", [First(), Last(), Uniform(), Random(seed=1)])
@pytest.mark.parametrize("protect", [(), (1,), (0, 3)])
def test_the_selectors_choice_meets_the_target_and_any_larger_one_does_not(
    selector: Selector, protect: tuple[int, ...]
) -> None:
    protected = Protection(frozenset(protect), "depth.protect=X")

    def choice(count: int) -> tuple[int, ...]:
        return protected.kept(selector, 6, count, NoScores(), "X")

    fewest = max(1, len(protect))
    for limit in range(UNEVEN.of(range(6))):
        met = [n for n in range(fewest, 6) if UNEVEN.of(choice(n)) <= limit]
        target = Target("target_parameters", limit or 1)
        if met:
            kept = target.kept(selector, NoScores(), protected, UNEVEN)
            assert kept == choice(max(met))
        else:
            with pytest.raises(ConfigError, match=r"the fewest .*: use that or more") as refused:
                target.kept(selector, NoScores(), protected, UNEVEN)
            least = int(str(refused.value).split("leaves ")[1].split()[0])
            assert limit < least
            possible = [set(kept) for kept in combinations(range(6), fewest)]
            assert least >= min(UNEVEN.of(kept) for kept in possible if kept >= {*protect})


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        (
            "target_parameters",
            1e4,
            "model.target_parameters=1e4: keeping 1 of 12 layers, the fewest possible, leaves "
            "188,992 parameters: use that or more",
        ),
        (
            "target_bytes",
            "4GB",
            "model.target_bytes=4GB: the whole model has 3,629,056 bytes and meets it: use less, "
            "or choose model=original",
        ),
    ],
)
def test_what_cannot_be_met_and_what_is_met_already_is_refused(
    key: str, given: Any, message: str
) -> None:
    variant = Pruned(keep_layers=99, selector=First(), **{key: given})
    with pytest.raises(ConfigError) as refused:
        make_plan(variant, str(REFERENCE), no_scores, dtype="bfloat16")
    assert str(refused.value) == message


def test_protected_layers_are_the_fewest() -> None:
    variant = Pruned(keep_layers=99, selector=First(), target_parameters=10)
    with pytest.raises(ConfigError) as refused:
        make_plan(variant, str(REFERENCE), no_scores, ["0-3"])
    assert str(refused.value) == (
        "model.target_parameters=10: keeping 3 of 12 layers, the fewest that depth.protect=[0-3] "
        "allows, leaves 484,544 parameters: use that or more"
    )


@pytest.mark.parametrize(
    ("key", "given", "line"),
    [
        ("target_parameters", 1e6, "target_parameters=1e6: keeping 6 of 12 layers, 9.28e5 parame"),
        ("target_parameters", "1M", "target_parameters=1M: keeping 6 of 12 layers, 9.28e5 parame"),
        ("target_bytes", "2MB", "target_bytes=2MB: keeping 6 of 12 layers, 1.86 MB"),
        ("target_bytes", "2.3MiB", "target_bytes=2.3MiB: keeping 7 of 12 layers, 2.15 MB"),
    ],
)
def test_the_plan_says_what_a_target_chose(key: str, given: Any, line: str) -> None:
    variant = Pruned(keep_layers=99, selector=First(), **{key: given})
    plan = make_plan(variant, str(REFERENCE), no_scores)
    assert plan.notes()[0].startswith(f"model.{line}")
    chosen = {"keep_layers": len(plan.kept_layers), key: given, "selector": {"name": "First"}}
    assert plan.selector == chosen
    assert plan.name == f"keep-{len(plan.kept_layers)}-first"


def test_a_head_that_its_files_do_not_tie_counts(tmp_path: Path) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    save("qwen2", source)
    tensors = load_file(source / "model.safetensors")
    head = tensors["model.embed_tokens.weight"]
    for folder, weight in ((source, head.clone()), (other, head + 1)):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text((source / "config.json").read_text())
        all_tensors = {**tensors, "lm_head.weight": weight}
        save_file(all_tensors, folder / "model.safetensors", {"format": "pt"})
    sizes = {
        folder: saved(folder, range(3), tmp_path / f"{folder.name}-3", "float32")
        for folder in (source, other)
    }
    assert sizes[other]["target_bytes"] - sizes[source]["target_bytes"] == 4 * head.numel()
    for folder, size in sizes.items():
        for limit, count in ((size["target_bytes"], 3), (size["target_bytes"] - 1, 2)):
            plan = planned(folder, "target_bytes", limit, "float32")
            assert len(plan.kept_layers) == count
