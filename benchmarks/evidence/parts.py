"""The parts of the evidence: which sweeps, and how many hours they take on one thread."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from record import EXPERIMENT, ranked

from lamina.measure.tasks.files import ORIGINAL
from lamina.report.runs import Report
from lamina.units import parse_tokens

Reports = Mapping[str, Report]
Earlier = Callable[[str], Reports | None]
"""Returns the reports of another part; None before it has run with these settings."""

SAME = ("overrides", "documents", "rows", "texts", "tasks", "depths")
DECIDES = {
    "which": ("scan_tokens", "scan_sets", "selectors", "task_items"),
    "curve": ("far",),
    "heal": ("methods", "budget", "seeds"),
    "tasks": ("best",),
    "far": ("far", "budget", "seeds", "task_items"),
    "predict": ("predict_budget", "predict_runs"),
}
"""Settings on which a part's result depends, beside the model and those of `SAME`."""

MIDDLE = "middle depth"
"""The group of runs at depths[1], which also answer tasks."""

UNTEMPLATED = "evaluation.task_settings.template=none"
"""Choices and last words continue a text, as in the part tasks; only questions are a chat."""

ITEMS_ALONE = ("evaluation.agreement=false", "evaluation.speed.batch_sizes=[]")

TRAIN, SCAN, EVALUATE = "train", "scan", "evaluate"
"""Commands of lamina."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep, a scan or an evaluation; started again in its folder, it continues."""

    group: str
    """Sweeps of one group are reported together."""
    name: str
    command: str
    arguments: Sequence[str]
    runs: int
    seconds: float
    """Expected for all runs."""
    evaluates: Path | None = None
    """The run whose final model it evaluates."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings, the model's layers and what earlier parts found."""

    settings: Any
    layers: int
    earlier: Earlier

    def depth(self, share: float) -> int:
        """Return how many layers a share of them is."""
        return max(1, round(share * self.layers))

    def sweeps(self, part: str) -> list[Sweep]:
        """Return the sweeps of a part."""
        return [*PARTS[part](self)]

    def kept(self) -> str:
        """Return the override with the layers that the best selector keeps at the middle depth."""
        found = self.earlier("which")
        if found is None:  # only the hours are of interest
            return "model.keep=[0]"
        name = best_selector(found, self.settings.texts)
        kept = next(row.kept_layers for row in found[MIDDLE].rows if row.selector == name)
        return f"model.keep={layers(kept)}"

    def healed(self, name: str, runs: int) -> float:
        """Return the seconds of runs of a healing."""
        rate = self.settings.tokens_per_second["distill" if "distill" in name else "sft"]
        spent, trains = self.settings.seconds, name != "nothing"
        trained = trains * parse_tokens("", self.settings.budget) / rate
        # The final model's rows and texts, there also with the original; in training three times.
        return runs * (trained + spent.job + (3 + 3 * trains) * spent.losses + spent.questions)


def layers(kept: Sequence[int] | None) -> str:
    """Return layers as a value of model.keep."""
    return f"[{','.join(map(str, kept or ()))}]"


def best_selector(which: Reports, texts: Sequence[str]) -> str:
    """Return the selector with the least mean loss over the texts at the middle depth.

    Within noise of the least loss on all of them together, greedy.
    """
    rows = which[MIDDLE].ranked
    near = {row.selector for row in rows if row.is_best or row.within_noise_of_best}
    best = min(rows, key=lambda row: fmean(row.figure(text, "loss")["value"] for text in texts))
    return "greedy" if "greedy" in near else str(best.selector)


def _which(plan: Plan) -> Iterator[Sweep]:
    s, spent = plan.settings, plan.settings.seconds
    for text in s.texts:
        yield Sweep(
            group="scans",
            name=text,
            command=SCAN,
            arguments=[
                "experiment=evidence_nothing",
                "model=original",
                f"data.train=texts/scan/{text}.jsonl",
                f"scan.tokens={s.scan_tokens}",
                f"scan.sets={s.scan_sets}",
            ],
            runs=1,
            seconds=s.scan_sets * parse_tokens("", s.scan_tokens) * spent.scan_token,
        )
    scan = 4000 * spent.scan_token
    middle = plan.depth(s.depths[1])
    for share in sorted(s.depths, key=lambda share: share != s.depths[1]):
        count, names = plan.depth(share), ",".join(s.selectors)
        tasks = _first_items(plan) if count == middle else []
        items = s.task_items * len(s.tasks) * spent.item if tasks else 0
        searched = scan * (1 + spent.greedy) / len(s.depths)
        seconds = len(s.selectors) * (spent.job + 2 * spent.losses + items) + searched
        yield Sweep(
            group=MIDDLE if tasks else f"{count}",
            name=f"keep-{count}",
            command=TRAIN,
            arguments=[
                "experiment=evidence_removed",
                f"model.keep_layers={count}",
                f"selector={names}",
                *tasks,
            ],
            runs=len(s.selectors),
            seconds=seconds,
        )


def _tasks(plan: Plan, texts: Sequence[str]) -> str:
    files = [f"texts/heldout/{name}.jsonl" for name in texts]
    files += [f"texts/tasks/{name}.jsonl" for name in plan.settings.tasks]
    return f"evaluation.tasks=[{','.join(files)}]"


def _first_items(plan: Plan) -> list[str]:
    """Return the overrides that ask the texts, and the first items of each task."""
    limit = f"evaluation.task_settings.limit={plan.settings.task_items}"
    return [_tasks(plan, plan.settings.texts), limit, UNTEMPLATED]


def _heal(plan: Plan) -> Iterator[Sweep]:
    s = plan.settings
    count = plan.depth(s.depths[1])
    for name in s.methods:
        own = [plan.kept()]
        if name == "ladder":
            own = [f"depth.keep_layers={count}"]
            own += [f"ladder.keep_layers=[{plan.depth(s.depths[0])},{count}]"]
        if name.startswith("original"):
            own = []
        budget = [] if name == "nothing" else [f"budget.tokens={s.budget}"]
        seeds = s.seeds[:1] if name == "nothing" else s.seeds
        once = s.seconds.answers if name == "answers" else 0
        yield Sweep(
            group="reference" if name.startswith("original") else "runs",
            name=name,
            command=TRAIN,
            arguments=[
                f"experiment={EXPERIMENT}{name}",
                *own,
                *budget,
                f"seed={','.join(map(str, seeds))}",
            ],
            runs=len(seeds),
            seconds=plan.healed(name, len(seeds)) + once,
        )


def _curve(plan: Plan) -> Iterator[Sweep]:
    """The best selector at each depth of the part far, not healed."""
    s, which = plan.settings, plan.earlier("which")
    counts = ",".join(str(plan.depth(share)) for share in s.far)
    yield Sweep(
        group="curve",
        name="curve",
        command=TRAIN,
        arguments=[
            "experiment=evidence_removed",
            f"model.keep_layers={counts}",
            f"selector={best_selector(which, s.texts) if which else 'auto'}",
        ],
        runs=len(s.far),
        seconds=len(s.far) * (s.seconds.job + 2 * s.seconds.losses)
        + 4096 * s.seconds.scan_token * s.seconds.greedy / 2,
    )


def _all_items(plan: Plan) -> Iterator[Sweep]:
    """The best healings, the first seed of each, the reference and the original: all items."""
    s = plan.settings
    found = plan.earlier("heal")
    best = (
        [name for name, _ in ranked(found["runs"].rows)][: s.best]
        if found
        else [*map(str, range(s.best))]
    )
    reference = [name for name in s.methods if name.startswith("original")]
    heal = Path(s.output).absolute() / "heal"
    runs = {name: heal / name / "0" for name in [*best, *reference]}
    for name, model in {**runs, ORIGINAL: s.model_name}.items():
        yield Sweep(
            group="reference" if name in reference else "all items",
            name=name,
            command=EVALUATE,
            arguments=[f"model_name={model}", f"dtype={s.dtype}", _tasks(plan, ()), *ITEMS_ALONE],
            runs=1,
            seconds=900 * len(s.tasks) * s.seconds.item,
            evaluates=runs.get(name),
        )


def _far(plan: Plan) -> Iterator[Sweep]:
    s, found, curve = plan.settings, plan.earlier("heal"), plan.earlier("curve")
    # A ladder scores and cuts by itself: how far one cut goes is asked of the best other healing.
    names = [n for n, _ in ranked(found["runs"].rows) if n != "ladder"] if found else ["sft_lora"]
    kept = [layers(row.kept_layers) for row in curve["curve"].rows] if curve else ["[0]"]
    items = s.task_items * len(s.tasks) * s.seconds.item
    measured = [
        *_first_items(plan),
        "evaluation.speed.batch_sizes=[1]",
        "export.form=merged",  # an adapter beside the weights would cost speed and bytes
    ]
    yield Sweep(
        group="runs",
        name=ORIGINAL,
        command=TRAIN,
        arguments=[f"experiment={EXPERIMENT}nothing", "model=original", *measured],
        runs=1,
        seconds=2 * (items + 3 * s.seconds.losses),
    )
    yield Sweep(
        group="runs",
        name="healed",
        command=TRAIN,
        arguments=[
            f"experiment={EXPERIMENT}{names[0]}",
            f"model.keep={','.join(kept)}",
            f"budget.tokens={s.budget}",
            f"seed={s.seeds[0]}",
            *measured,
        ],
        runs=len(s.far),
        seconds=plan.healed(names[0], len(s.far)) + len(s.far) * items,
    )


def _predict(plan: Plan) -> Iterator[Sweep]:
    s, spent = plan.settings, plan.settings.seconds
    trained = parse_tokens("", s.predict_budget) / s.tokens_per_second.sft
    stride = plan.layers / s.predict_runs
    single = sorted({int(stride * (number + 0.5)) for number in range(s.predict_runs)})
    seeds = ",".join(str(1 + number) for number in range(s.predict_runs))
    sets = [f"model.keep_layers={plan.depth(s.depths[1])}", "selector=random"]
    for name, own, runs in (
        ("single", ["model=dropped", f"model.layer_to_drop={','.join(map(str, single))}"], single),
        ("sets", ["model=pruned", *sets, f"selector.seed={seeds}"], seeds.split(",")),
    ):
        yield Sweep(
            group=name,
            name=name,
            command=TRAIN,
            arguments=["experiment=evidence_predict", *own, f"budget.tokens={s.predict_budget}"],
            runs=len(runs),
            seconds=len(runs) * (trained + spent.job + 5 * spent.losses),
        )


PARTS = {
    "which": _which,
    "curve": _curve,
    "heal": _heal,
    "tasks": _all_items,
    "far": _far,
    "predict": _predict,
}
NEEDS = {"curve": ("which",), "heal": ("which",), "tasks": ("heal",), "far": ("curve", "heal")}
"""Parts whose runs depend on the results of others."""
ALONE = ("far",)
"""Parts that measure speed: one sweep at a time."""
COMPARES = ("heal",)
"""Parts worth reading before all of their sweeps have ended."""
PASSING = ("which", "curve", "predict")
"""Parts whose models nobody needs once they are measured."""
