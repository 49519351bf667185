"""The project's own files, in a checkout and in an installed wheel."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """Return the folder of YAML configs: lamina/conf in a wheel, conf/ in a checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf"


def asset(name: str) -> str:
    """Return the absolute path of an asset: `${asset:NAME}` in the YAML configs."""
    return str(PACKAGE / "assets" / name)


def load_environment() -> None:
    """Add the variables of ./.env to the environment; variables already set win.

    The hub client's usage reports are off unless the environment turns them on.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if Path(".env").is_file():
        from dotenv import dotenv_values

        for key, value in dotenv_values(".env").items():
            if value is not None:
                os.environ.setdefault(key, value)
