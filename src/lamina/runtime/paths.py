"""Lamina's own files, in a checkout or an installed wheel."""

import os
from pathlib import Path

from lamina.errors import ConfigError

ENDPOINTS = {
    "HF_ENDPOINT": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
    "WANDB_BASE_URL": ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"),
}
"""Variables that name a server, and the keys that are sent to it."""

FROM_FILE = (
    *("HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE"),
    *("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "LAMINA_CACHE"),
)
"""The variables that .env may set."""

DISABLED = ("HUB_DISABLE_TELEMETRY", "HUB_DISABLE_PROGRESS_BARS", "DATASETS_DISABLE_PROGRESS_BARS")
"""The hub client's reports, and bars beside ours."""

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
    """Add the keys and folders of ./.env to the environment, which takes precedence.

    The file may be someone else's: it sets nothing that makes a program run code, and an endpoint
    in it gets no key but its own. What `DISABLED` names is off unless the environment turns it on.
    Raises ConfigError if it is not text, or a key of the environment would go to an endpoint in it.
    """
    for name in DISABLED:
        os.environ.setdefault(f"HF_{name}", "1")
    if not Path(".env").is_file():
        return
    from dotenv import dotenv_values

    try:
        content = dotenv_values(".env", interpolate=False)  # it could name a secret
    except ValueError as error:
        raise ConfigError(f".env: {error}; write it in UTF-8") from error
    found = {key: value for key, value in content.items() if key in FROM_FILE}
    given = {key: value for key, value in found.items() if value and key not in os.environ}
    for endpoint, keys in ENDPOINTS.items():
        if endpoint in given and (sent := next(filter(os.environ.get, keys), None)):
            raise ConfigError(
                f".env: its {endpoint} would get the environment's {sent}: set {endpoint} in the "
                f"environment, or {keys[0]} in .env alone"
            )
    if "HF_ENDPOINT" in given:
        os.environ["HF_TOKEN_PATH"] = os.devnull  # the key of `hf auth login`
    for key, value in given.items():
        if "\0" in value:
            raise ConfigError(f".env: {key} holds a NUL: leave it out")
        # Only some of the libraries expand ~ themselves.
        os.environ[key] = str(Path(value).expanduser()) if value.startswith("~/") else value
