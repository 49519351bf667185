"""Checks configs before Hydra acts on them; docs/security.md says what is trusted.

Hydra creates folders, writes the config and instantiates its launcher, callbacks and log handlers
before a command sees the config.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf

from lamina.errors import ConfigError
from lamina.runtime.paths import conf_dir

ALLOW = "LAMINA_ALLOW"
"""Environment variable: comma-separated keys and classes that config files may use."""

SECRET_NAMES = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSWORD", re.IGNORECASE)
"""Names of environment variables whose values must never reach a file or a folder name."""

SHORTEST_SECRET = 8
"""Characters; shorter values occur in innocent texts and are not searched for."""

SECRET_ADVICE = "keys stay in the environment or in .env, and are never written"

INSTALLED = ("structured://", "pkg://hydra.", "pkg://hydra_plugins.")
"""Beginnings of the places of configs that come with installed packages."""

HARMLESS = re.compile(
    r"hydra\.(mode|verbose|output_subdir|job\.chdir|(run|sweep)\.\w+"
    r"|launcher\.(?!(setup|srun_args|additional_parameters)$)[a-z]\w*"
    r"|sweeper\.(max_batch_size|params(\.(?!\W*hydra).+)?)"
    r"|(job|hydra)_logging\.(root|loggers\..+)\.level)"
)
"""The keys below hydra that any config file may set."""

ONLY_BY_USER = re.compile(
    r"^\+*(trainer\.args\.push_to_hub|logger\.\w+\.mode|data\.answer_settings\.vllm)="
)
"""Overrides of what only the user may set: what sends a run to a server, and a program."""

NODES = re.compile(r"\$\{(?!\s*(hydra[.:]|now:|oc\.env:|asset:))")
"""An interpolation that could put a node of another place below hydra."""

NODES_IN_FOLDERS = re.compile(rf"{NODES.pattern}(?![\w.]+\}})")
"""The same for a folder, which is text whatever a plain reference leads to."""


def install(arguments: Sequence[str] = ()) -> None:
    """Check every config that Hydra composes, and let `${oc.env:NAME}` refuse secrets.

    What the command line names is trusted, in the processes that this one starts, too.
    """
    named = [os.environ.get(ALLOW, "")]
    for argument in arguments:
        named += re.findall(r"_target_['\"]?\s*[=:]\s*['\"]?([\w.,]+)", argument)
        named += re.findall(ONLY_BY_USER, argument)
    os.environ[ALLOW] = ",".join(dict.fromkeys(filter(None, named)))
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
    watched = {
        "load_configuration": _checking_config,
        "_load_single_config": _checking_file,
        "_process_config_searchpath": _checking_primary,
    }
    for name, watch in watched.items():
        method = getattr(ConfigLoaderImpl, name)
        if not hasattr(method, "__wrapped__"):
            setattr(ConfigLoaderImpl, name, wraps(method)(watch(method)))


def allowed() -> list[str]:
    """Return what the command line and the environment name."""
    return [name.strip() for name in os.environ.get(ALLOW, "").split(",") if name.strip()]


def _checking_config(load: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    def _load(self: ConfigLoaderImpl, **options: Any) -> DictConfig:
        try:
            config = load(self, **options)
        except (HydraException, ConfigError):
            raise
        # Hydra 1.3.8 raises these for an option that is not a name, such as adapter=null.
        except (TypeError, ValueError) as error:
            raise ConfigCompositionException(str(error)) from error
        refuse_unsafe(config)
        _expand_home(config)
        return config

    return _load


def _checking_file(load: Callable[..., ConfigResult]) -> Callable[..., ConfigResult]:
    def _load(self: ConfigLoaderImpl, default: Any, repo: Any) -> ConfigResult:
        found = load(self, default=default, repo=repo)
        _refuse_foreign(found, default.config_path)
        return found

    return _load


def _checking_primary(search: Callable[..., None]) -> Callable[..., None]:
    def _search(self: ConfigLoaderImpl, name: str | None, overrides: Any, repo: Any) -> None:
        # Hydra imports the packages that a primary config's searchpath names.
        if name is not None and (found := repo.load_config(config_path=name)) is not None:
            _refuse_foreign(found, name)
        search(self, name, overrides, repo)

    return _search


def _refuse_foreign(found: ConfigResult, name: str) -> None:
    """Refuse keys below hydra that can run code, unless the file is Lamina's or Hydra's own."""
    path = PurePosixPath(name)
    is_inside = not path.is_absolute() and ".." not in path.parts
    if is_inside and (found.path.startswith(INSTALLED) or found.path == f"file://{conf_dir()}"):
        return
    content, problems = OmegaConf.to_container(found.config, resolve=False), list[str]()
    for key, value in _leaves(content.get("hydra", {}), "hydra"):
        nodes = NODES_IN_FOLDERS if key.startswith(("hydra.run.", "hydra.sweep.")) else NODES
        is_harmless = value == "{}" or (HARMLESS.fullmatch(key) and not nodes.search(value))
        if not is_harmless and not any(f"{key}.".startswith(f"{each}.") for each in allowed()):
            shown = ".".join(part for part in key.split(".")[:3] if not part.isdigit())
            advice = f"a config file must not set this; {ALLOW}={shown} allows it"
            problems.append(f"conf file {name}: {shown}: {advice}")
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _expand_home(node: DictConfig | ListConfig) -> None:
    """Expand ~ in every value, in place: Hydra and other libraries would create a folder ~."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, (DictConfig, ListConfig)):
            _expand_home(value)
        elif isinstance(value, str) and (value == "~" or value.startswith("~/")):
            node[key] = str(Path(value).expanduser())


def refuse_unsafe(config: DictConfig) -> None:
    """Raise a ConfigError if a config holds a secret, or its hydra.verbose is a mapping."""
    content = OmegaConf.to_container(config, resolve=False)
    hydra = content.pop("hydra", None) or {}
    problems = list(_secret_problems({**content, "hydra": hydra}).values())
    if isinstance(verbose := hydra.get("verbose"), dict):
        problems.append(f"hydra.verbose={verbose}: use true, false, or a list of loggers' names")
    if problems:
        raise ConfigError("\n".join(problems))


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the text of each value, and of each empty container."""
    if not isinstance(node, dict | list) or not node:
        yield path, str(node)
        return
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _secret_problems(content: dict[str, Any]) -> dict[str, str]:
    """Return for each secret the first place that holds or names it."""
    known = {n: v for n, v in os.environ.items() if len(v) >= SHORTEST_SECRET and _is_secret(n)}
    problems: dict[str, str] = {}
    for path, value in _leaves(content, ""):
        shown = "a key of the config" if any(v in path for v in known.values()) else path
        for name in [name for name, secret in known.items() if secret in f"{path} {value}"]:
            problems.setdefault(name, f"{shown}: holds the value of {name}; {SECRET_ADVICE}")
        for name in filter(_is_secret, re.findall(r"oc\.env:[\s\"']*([\w.-]+)", value)):
            problems.setdefault(name, f"{shown}: refers to the secret {name}; {SECRET_ADVICE}")
    return problems


def _is_secret(name: str) -> bool:
    return SECRET_NAMES.search(name) is not None


def _environment(name: str, default: str | None = "???") -> str | None:
    """Resolve `${oc.env:NAME}`, where NAME may itself be interpolated; refuse secrets."""
    if _is_secret(name):
        raise ConfigError(f"refers to the secret {name}; {SECRET_ADVICE}")
    if name not in os.environ and default == "???":
        raise ConfigError(f"the environment variable {name} is not set")
    return os.environ.get(name, default)
