"""The libraries' process-wide state at the start of a run: seeds, quiet consoles."""

import logging
import os


def prepare(seed: int) -> None:
    """Seed all random generators and keep the libraries' notices in the run's log file.

    Their progress bars for loading and saving go: ours say what happens. Tokenizers warn about
    every fork unless they are told.
    """
    import transformers
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.disable_progress_bar()
    logging.captureWarnings(True)
    transformers.set_seed(seed)
