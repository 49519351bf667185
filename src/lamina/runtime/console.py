"""What the libraries say on the console of a command that has its own progress bar."""

import logging


def quiet_libraries() -> None:
    """Keep the libraries' notices and progress bars off the console; errors are raised anyway."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # It warns that weights are on disk, which is what was asked for.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    # PEFT imports bitsandbytes wherever it is, which advises a package on a machine without a GPU.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
