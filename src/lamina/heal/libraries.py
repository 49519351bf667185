"""Process-wide state of the libraries during a run: imports, seeds, threads and logging."""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module

from lamina.runtime.console import quiet_loggers, stage


@cache
def import_heavy() -> None:
    """Import torch and the libraries on it without garbage collection: one second less of four.

    Imports leave no garbage, yet the collector scans all that they create again and again. Once per
    process: a later freeze would keep what a sweep's earlier job left.
    """
    quiet_loggers()
    gc.disable()
    try:
        for name in ("datasets", "peft", "lamina.heal.trainer"):
            import_module(name)
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def prepared(seed: int, num_threads: int | None) -> Iterator[None]:
    """Seed Python, NumPy and torch, and send the libraries' notices to the run's log only.

    The last bits of sums depend on `num_threads`, torch's threads on a CPU (None: its default).
    """
    with stage("importing torch, transformers and trl"):
        import_heavy()
    import torch
    import transformers
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # they warn at every fork otherwise
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    logging.captureWarnings(True)
    transformers.set_seed(seed)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
