"""`python -m train`: hands over to `lamina.commands.train`."""

from lamina.runtime.console import prepare_console


def main() -> None:
    """Run the command."""
    prepare_console()
    from lamina.commands.train import main as train

    train()


if __name__ == "__main__":
    main()
