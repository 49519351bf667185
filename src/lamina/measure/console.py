"""What the libraries say on the console of a command that has its own progress bar."""


def quiet_transformers() -> None:
    """Keep transformers' notices and progress bars off the console; errors are raised anyway."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
