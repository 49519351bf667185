"""The cache of prepared rows, kept by the `datasets` library for all jobs that share it.

Every file lies in HF_DATASETS_CACHE, never beside the user's own data.
"""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.runtime.files import disk_errors

if TYPE_CHECKING:
    from datasets import Dataset, Features

PROTOCOL = 1
"""What cached rows are: raise it when code changes how rows are generated, read or tokenized.

The library identifies code by name alone; without a new number it would return the old rows.
"""

LIBRARIES = ("datasets", "jinja2", "tokenizers", "transformers", "trl")
"""They read, render, tokenize and pack rows."""


def cached_rows(
    generate: Callable[..., Iterator[dict[str, Any]]], features: "Features", **arguments: Any
) -> "Dataset":
    """Return the rows that a generator yields, from the cache if its arguments are the same.

    The library writes to a temporary name, renames, and locks the file against other processes.

    Args:
        generate: A module's function, called with `arguments` and `protocol`. Its errors are
            raised here.
        features: Types of the columns.
        arguments: Identify the rows.

    Raises:
        OutputError: HF_DATASETS_CACHE cannot be written.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    given = {**arguments, "protocol": _protocol(PROTOCOL)}
    with cache_errors(), _without_progress():
        try:
            return Dataset.from_generator(generate, features=features, gen_kwargs=given)
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None


def cached_map(
    rows: "Dataset",
    make: Callable[..., dict[str, Any]],
    *,
    features: "Features",
    desc: str,
    **arguments: Any,
) -> "Dataset":
    """Map each row and its index to a new row, or return the cached result of the same call.

    Without a writable HF_DATASETS_CACHE the result stays in memory.

    Args:
        rows: Identify the result, with `make`, all objects that it refers to, and `arguments`.
        make: Returns all columns of the new row.
        features: Types of the new columns.
        desc: Label of the progress bar.
        arguments: Passed to `make`.

    Raises:
        OutputError: The disk is full.
    """
    from datasets.fingerprint import update_fingerprint

    folder = _datasets_cache() / "lamina"
    identity = {**arguments, "protocol": _protocol(PROTOCOL)}
    fingerprint = update_fingerprint(rows._fingerprint, make, identity)
    # The default place is the folder of the rows: with data=disk, the user's.
    place = {"cache_file_name": str(folder / f"{fingerprint}.arrow")}
    with cache_errors():
        return rows.map(
            make,
            with_indices=True,
            fn_kwargs=arguments,
            remove_columns=rows.column_names,
            features=features,
            desc=desc,
            new_fingerprint=fingerprint,
            **(place if _is_writable(folder) else {"keep_in_memory": True}),
        )


@contextmanager
def cache_errors() -> Iterator[None]:
    """Report a failed write of the library as one that names HF_DATASETS_CACHE.

    Raises:
        OutputError: The body could not write.
    """
    with disk_errors(_datasets_cache(), "HF_DATASETS_CACHE"):
        yield


def _datasets_cache() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


@cache
def _protocol(number: int) -> str:
    libraries = (f"{name} {version(name)}" for name in LIBRARIES)
    return ", ".join((str(number), f"python {platform.python_version()}", *libraries))


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
