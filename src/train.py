"""`python -m train`: hands over to `lamina.commands.train`."""

from lamina.commands.train import main

if __name__ == "__main__":
    main()
