"""Quieter libraries, for commands with a progress bar of their own."""

import logging


def quiet_libraries() -> None:
    """Silence the libraries' notices and progress bars; errors are raised anyway."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # It warns that weights are offloaded to disk, which is what a scan does on purpose.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    # PEFT imports bitsandbytes if it is installed, which without a GPU recommends a package.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
