"""A ladder's rounds: runs with folders of their own, the last of which is the run itself."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from lamina.depth.protection import Protection
from lamina.depth.selection import NoScores, ScoresNeededError
from lamina.experiment import Experiment
from lamina.export.final import FINAL
from lamina.heal.ladder import Round
from lamina.measure.results import LADDER_FOLDER, ROUND, Record, combined_metrics
from lamina.runtime import distributed
from lamina.runtime.lock import locked

logger = logging.getLogger(__name__)


def run_rounds(
    experiment: Experiment, record: Record, run: Callable[[Experiment, Record], None]
) -> None:
    """Run each round of a ladder, or the only one there is.

    A round that an earlier start completed is not run again.
    """
    rounds, current, earlier = experiment.ladder.rounds, None, list[Record]()
    if rounds > 1 and record.previous is None:
        record.write()
    for number in range(1, rounds):
        current = round_of(experiment, number, current, earlier)
        _announce(current.round)
        own, given = Path(current.run_dir), record.content
        with locked(own, "hydra.run.dir") if distributed.is_first() else nullcontext():
            each = Record(own, given["overrides"], given["config"], record.own)
            if before := each.completed_before():
                each.content = before
            else:
                with each.outcome():
                    run(current, each)
        earlier.append(each)
    current = round_of(experiment, rounds, current, earlier)
    if earlier:
        _announce(current.round)
    run(current, record)
    if earlier:
        every = [*earlier, record]
        record.content["rounds"] = [*map(_about, every)]
        record.measured(**combined_metrics([each.content["metrics"] for each in every]))


def round_of(
    experiment: Experiment, number: int, before: Experiment | None, earlier: Sequence[Record]
) -> Experiment:
    """Return the experiment of a ladder's round, 1-based; `earlier` are the records before it.

    All but the last are runs in folders of their own, which are measured by their losses alone.
    """
    rounds = experiment.ladder.rounds
    if rounds == 1:
        return experiment
    own = Round(
        number=number,
        rounds=rounds,
        keep_layers=experiment.ladder.keep_layers[number - 1],
        before=before.plan if before else None,
        base=str(before.folder / FINAL) if before else None,
        trained_tokens=sum(each.content["metrics"]["trained_tokens"] for each in earlier),
    )
    if number == rounds:
        return replace(experiment, round=own)
    run_dir = Path(experiment.run_dir).absolute()
    output, own_dir = Path(experiment.output_dir).expanduser().resolve(), run_dir.resolve()
    below = Path(LADDER_FOLDER, str(number))
    inside = output.is_relative_to(own_dir)
    wanted = experiment.evaluation
    return replace(
        experiment,
        round=own,
        run_dir=str(run_dir / below),
        output_dir=str(run_dir / below / output.relative_to(own_dir) if inside else output / below),
        export=replace(experiment.export, dtype="auto"),  # nothing is rounded between rounds
        evaluation=replace(
            wanted, num_samples=0, tasks=[], speed=replace(wanted.speed, batch_sizes=[])
        ),
    )


def planned_rounds(experiment: Experiment, first: Experiment) -> Iterator[dict[str, Any]]:
    """Yield how many layers the rounds after the `first` keep, and which: None if scores decide."""
    kept: tuple[int, ...] | None = first.plan.kept_layers
    for count in (experiment.ladder.keep_layers or ())[1:]:
        if kept is not None:
            each = Round(keep_layers=count, before=replace(first.plan, kept_layers=kept))
            protected = Protection(frozenset(each.protect(experiment.depth.protect)))
            try:
                places = each.variant(experiment.model).kept_layers(
                    len(kept), NoScores(), protected
                )
                kept = tuple(kept[place] for place in places)
            except ScoresNeededError:
                kept = None
        yield {"layers": count, "kept_layers": kept and [*kept]}


def _announce(each: Round) -> None:
    logger.info("round %d of %d: down to %s layers", each.number, each.rounds, each.keep_layers)


def _about(record: Record) -> dict[str, Any]:
    """Return what the run's result.json says of a round."""
    found = {**record.content["metrics"], **record.content}
    return {name: found[name] for name in ROUND}
