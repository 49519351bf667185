"""Lamina's own files, in a checkout or an installed wheel."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """Return the folder of YAML configs: lamina/conf in a wheel, conf/ in a checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf"


def asset(name: str) -> str:
    """Return an asset's absolute path; the YAML configs call this as `${asset:NAME}`."""
    return str(PACKAGE / "assets" / name)


def short_path(folder: Path) -> Path:
    """Return a folder relative to the current one if it is inside it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def load_environment() -> None:
    """Add the variables of ./.env to the environment, which takes precedence.

    The hub client's usage reports are off unless the environment turns them on.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if Path(".env").is_file():
        from dotenv import dotenv_values

        for key, value in dotenv_values(".env").items():
            if value is not None:
                # Only some of the libraries expand ~ themselves.
                path = str(Path(value).expanduser()) if value.startswith("~/") else value
                os.environ.setdefault(key, path)
