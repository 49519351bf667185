"""Rows that are made once: the `datasets` library keeps them, for all jobs on a file system."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.data.versions import version_of
from lamina.runtime.files import disk_errors

if TYPE_CHECKING:
    from datasets import Dataset, Features


def kept_rows(
    generate: Callable[..., Iterator[dict[str, Any]]],
    features: "Features",
    code: tuple[str, ...],
    **arguments: Any,
) -> "Dataset":
    """Return what a generator yields, or yielded before with the same arguments and code.

    The library writes under a temporary name and renames; a lock lets one process do it.

    Args:
        generate: A function of a module: the library knows it by its name. What it raises is
            raised here.
        features: Types of the columns.
        code: Modules of this package that decide what is yielded.
        arguments: Of the generator; it is given the code's version as `code`, too.

    Raises:
        OutputError: The library's cache cannot be written.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    with cache_errors(), _without_progress():
        try:
            return Dataset.from_generator(
                generate, features=features, gen_kwargs={**arguments, "code": version_of(*code)}
            )
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None


def kept_map(
    rows: "Dataset",
    make: Callable[..., dict[str, Any]],
    *,
    features: "Features",
    desc: str,
    **arguments: Any,
) -> "Dataset":
    """Return what a function makes of each row and its index, or made before of the same rows.

    The library keeps it beside the rows; where nothing can be written there, it stays in memory.

    Args:
        rows: What it is found by, with everything that `make` refers to and its arguments.
        make: Returns all columns of the new row.
        features: Types of the new columns.
        desc: Beside the progress bar.
        arguments: Of `make`; the version of its code should be one, for the library knows it by
            its name.

    Raises:
        OutputError: The library's cache cannot be written.
    """
    beside = [Path(file["filename"]).parent for file in rows.cache_files]
    with cache_errors():
        return rows.map(
            make,
            with_indices=True,
            fn_kwargs=arguments,
            remove_columns=rows.column_names,
            features=features,
            desc=desc,
            keep_in_memory=not all(os.access(folder, os.W_OK) for folder in beside),
        )


@contextmanager
def cache_errors() -> Iterator[None]:
    """Say in one line that the library could not write its cache.

    Raises:
        OutputError: The body could not.
    """
    from datasets import config

    with disk_errors(Path(config.HF_DATASETS_CACHE), "HF_DATASETS_CACHE"):
        yield


@contextmanager
def _without_progress() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
