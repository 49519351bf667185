"""Which packages training arguments need."""

from lamina.heal.kernels import OPTIMIZERS


def test_the_optimizers_are_those_of_transformers() -> None:
    from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS
    from transformers.training_args import OptimizerNames

    names = {each.value for each in OptimizerNames}
    assert set(OPTIMIZERS) <= names
    ours = {name for name, package in OPTIMIZERS.items() if package == "bitsandbytes"}
    theirs = {
        each.value
        for each, handler in _OPTIMIZER_HANDLERS.items()
        if "bitsandbytes" in handler.__name__ or "bnb" in handler.__name__
    }
    assert ours == theirs
