"""Where the project's own files are, in a checkout and in an installed wheel."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """Return the folder of the YAML configs: lamina/conf in a wheel, conf/ in a checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf"


def asset(name: str) -> str:
    """Return the absolute path of something that ships with the package.

    It is the `${asset:NAME}` of the YAML configs.
    """
    return str(PACKAGE / "assets" / name)


def load_environment() -> None:
    """Read .env of the working directory into the environment, without replacing what is set.

    The libraries' usage reports are off unless the environment turns them on.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if Path(".env").is_file():
        from dotenv import dotenv_values

        for key, value in dotenv_values(".env").items():
            if value is not None:
                os.environ.setdefault(key, value)
