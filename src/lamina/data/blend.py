"""A blend: rows drawn from several sources by weight, the same ones on every machine."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lamina.data.cache import cached_map
from lamina.data.files import row_features
from lamina.data.splits import Split
from lamina.errors import DataError, did_you_mean, in_yaml
from lamina.units import format_count

MOST_WEIGHT = 1e9
"""Largest weight; far larger ones have no finite sum."""

KEYS = {"train": "FILE", "weight": "NUMBER"}
"""A source's settings, and what stands for their values in advice."""


def source_problems(sources: Mapping[str, Any]) -> Iterator[str]:
    """Name what is wrong with data.sources."""
    if not sources:
        yield "data.sources is empty: set 'data.sources={NAME: {train: FILE, weight: NUMBER}, ...}'"
    for name, given in sources.items():
        key = f"data.sources.{name}"
        if not isinstance(given, dict):
            yield f"{key}={in_yaml(given)}: expected train and weight"
            continue
        for unknown in given.keys() - KEYS.keys():
            advice = did_you_mean(str(unknown), KEYS) or "; use train and weight"
            yield f"{key}.{unknown}={given[unknown]}: no such key{advice}"
        for each in KEYS.keys() - given.keys():
            yield f"{key}.{each} is missing: set {key}.{each}={KEYS[each]}"
        file = given.get("train", "FILE")
        if not isinstance(file, str) or not file:
            yield f"{key}.train={in_yaml(file)}: expected a file or folder"
        weight = given.get("weight", 1)
        if type(weight) not in (int, float) or not 0 < weight <= MOST_WEIGHT:
            yield (
                f"{key}.weight={in_yaml(weight)}: use a number above 0 and at most "
                f"{format_count(MOST_WEIGHT)}"
            )


def blended(parts: Mapping[str, Split], weights: Mapping[str, float], seed: int) -> Split:
    """Draw rows without repetition: as many as the weights allow, in a random order.

    Raises DataError if the sources have other columns than one another, or a weight draws no row.
    """
    from datasets import concatenate_datasets

    total, names = sum(weights.values()), sorted(parts)
    first = names[0]
    for name in names:
        if parts[name].conversion != parts[first].conversion:
            raise DataError(
                f"data.sources.{name} has {parts[name].conversion.description}, data.sources."
                f"{first} {parts[first].conversion.description}: give all the same columns"
            )
    most = min(len(parts[name].rows) * total / weights[name] for name in names)
    drawn, files, sources = [], tuple[str, ...](), tuple[str, ...]()
    for name in names:
        part = parts[name]
        count, size = round(most * weights[name] / total), len(part.rows)
        if count == 0:
            raise DataError(
                f"data.sources.{name}.weight={weights[name]} draws no row: raise it, or add rows "
                "to the other sources"
            )
        chosen = random.Random(f"{seed} {name}").sample(range(size), count)
        moved = cached_map(
            part.rows,
            _moved,
            features=row_features(),
            desc=f"reading data.sources.{name}",
            offset=len(files),
        )
        drawn.append(moved.select(chosen))
        files, sources = files + part.files, sources + (name,) * len(part.files)
    rows = concatenate_datasets(drawn)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return replace(
        parts[first], rows=rows.select(order), origin="data.sources", files=files, sources=sources
    )


def _moved(row: dict[str, Any], index: int, offset: int) -> dict[str, Any]:
    """Number a row's file among those of all sources."""
    return {**row, "file": row["file"] + offset}
