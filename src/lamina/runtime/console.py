"""Quieter libraries for commands with their own progress bar."""

import logging


def quiet_libraries() -> None:
    """Silence the libraries' notices and progress bars; errors are still raised."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # It warns that weights are offloaded to disk, which a scan does on purpose.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    # PEFT imports bitsandbytes, which recommends a package on machines without a GPU.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
