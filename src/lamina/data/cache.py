"""The cache of prepared rows, which all jobs share: files of `datasets` in HF_DATASETS_CACHE."""

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.runtime.console import stage
from lamina.runtime.files import disk_errors, refuse_unwritable

if TYPE_CHECKING:
    from datasets import Dataset, Features

PROTOCOL = 5
"""Version of the cached rows: raise it when code changes how they are generated or tokenized.

The library identifies code by name alone; without a new number it would return the old rows.
"""

LAST_BYTES = b"\xff\xff\xff\xff\0\0\0\0"
"""The end of a whole Arrow stream; without it PyArrow reads the batches before a cut."""

LIBRARIES = ("datasets", "jinja2", "tokenizers", "transformers", "trl")
"""Read, render, tokenize and pack rows; a new version of one makes new rows."""


def cached_rows(
    generate: Callable[..., Iterator[dict[str, Any]]], features: "Features", **arguments: Any
) -> "Dataset":
    """Return the rows that a generator yields, from the cache if its arguments are the same.

    The library writes to a temporary name, renames, and locks the file against other processes.
    `generate`, a module-level function, is called with `arguments`, which identify the rows, and
    `protocol`; its errors are raised here.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.fingerprint import Hasher

    refuse_unwritable_cache()
    given = {**arguments, "protocol": _protocol(PROTOCOL)}
    folder = _datasets_cache() / "lamina" / Hasher.hash((generate, given))
    with cache_errors(), stage("reading rows"):
        if not all(map(is_whole, folder.glob("*/*/*[!e]/*.*"))):  # not in *.incomplete/
            shutil.rmtree(folder)
        try:
            return Dataset.from_generator(
                generate, features=features, gen_kwargs=given, cache_dir=str(folder)
            )
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

    Without a writable HF_DATASETS_CACHE the result stays in memory. It is identified by the rows,
    by `make` with all objects that it refers to, and by `arguments`, which `make` receives.
    """
    from datasets.fingerprint import update_fingerprint

    identity = {**arguments, "protocol": _protocol(PROTOCOL)}
    fingerprint = update_fingerprint(rows._fingerprint, make, identity)
    # The default place is the folder of the rows: with data=disk, the user's. TRL's packs of the
    # new rows are cached beside them.
    folder = _datasets_cache() / "lamina" / fingerprint
    place = {"cache_file_name": str(folder / "rows.arrow")}
    with cache_errors(), stage(desc, len(rows), "rows") as shown:
        if not all(map(is_whole, folder.glob("*.arrow"))):
            shutil.rmtree(folder)
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)

        def counted(*row: Any, **given: Any) -> dict[str, Any]:
            shown.advance()
            return make(*row, **given)

        return rows.map(
            counted,
            with_indices=True,
            fn_kwargs=arguments,
            remove_columns=rows.column_names,
            features=features,
            new_fingerprint=fingerprint,
            **(place if os.access(folder, os.W_OK) else {"keep_in_memory": True}),
        )


def is_whole(path: Path) -> bool:
    """Whether a file of the library, Arrow or JSON, can be read to its end."""
    from pyarrow import ArrowException, ipc, memory_map

    try:
        if path.suffix == ".json":
            return isinstance(json.loads(path.read_text()), dict)
        with memory_map(str(path)) as file, ipc.open_stream(file) as batches:
            batches.read_all().validate()
        with path.open("rb") as file:
            file.seek(-len(LAST_BYTES), os.SEEK_END)
            return file.read() == LAST_BYTES
    except (ArrowException, ValueError, OSError) as error:
        if getattr(error, "errno", None):  # PyArrow raises an OSError without one for a cut
            raise
        return False


def refuse_unwritable_cache() -> None:
    """Refuse an HF_DATASETS_CACHE that cannot be written, before the library fails on it."""
    refuse_unwritable(_datasets_cache(), "HF_DATASETS_CACHE")


def cache_errors() -> AbstractContextManager[None]:
    """Report a failed write of the library as an OutputError that names HF_DATASETS_CACHE."""
    return disk_errors(_datasets_cache(), "HF_DATASETS_CACHE")


def _datasets_cache() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE)


@cache
def _protocol(number: int) -> str:
    libraries = (f"{name} {version(name)}" for name in LIBRARIES)
    return ", ".join((str(number), f"python {platform.python_version()}", *libraries))
