"""The libraries' process-wide state during a run: seeds, threads, quiet consoles."""

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module


@cache
def import_heavy() -> None:
    """Import torch and its relatives with the garbage collector off: a second of four.

    Nothing that an import leaves behind is garbage, and the collector looks at all of it again and
    again while it grows. That holds once in a process: later in a sweep, what a job left would be
    kept for ever.
    """
    gc.disable()
    try:
        for name in ("datasets", "peft", "lamina.heal.trainer"):
            import_module(name)
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def prepared(seed: int, num_threads: int | None) -> Iterator[None]:
    """Seed all random generators and keep the libraries' notices in the run's log file.

    Their progress bars for loading and saving go: ours say what happens. Tokenizers warn about
    every fork unless they are told.

    Args:
        seed: Of Python, NumPy and torch.
        num_threads: Of torch on a CPU, until the run ends; None leaves torch's choice. Sums depend
            on it in their last bits.
    """
    import_heavy()
    import torch
    import transformers
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.disable_progress_bar()
    logging.captureWarnings(True)
    transformers.set_seed(seed)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
