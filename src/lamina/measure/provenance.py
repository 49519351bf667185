"""Where a number comes from: code, versions, device, model and data."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.runtime.device import device_name
from lamina.weights.reading import identity

if TYPE_CHECKING:
    from datasets import Dataset

    from lamina.depth.plan import Plan
    from lamina.weights.source import Source

PACKAGES = [
    "lamina",
    "accelerate",
    "datasets",
    "hydra-core",
    "omegaconf",
    "peft",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "unsloth",
    "unsloth_zoo",
]
"""Packages whose versions are recorded."""


def provenance(plan: "Plan", train: "Dataset", backend: str) -> dict[str, Any]:
    """Collect what someone needs to get the same number again.

    Args:
        plan: Names the base model and its revision.
        train: The tokenized training rows.
        backend: Who provides the model's code.
    """
    return {
        "git": git_state(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "device": device_name(),
        "backend": backend,
        "base_model": plan.source.name if plan.source else None,
        "base_revision": plan.source.revision if plan.source else None,
        "data_fingerprint": fingerprint(train),
    }


def base_identity(source: "Source | None") -> str | None:
    """Tell a base model from others: by its commit, or by a hash of its weights and config."""
    if source is None:
        return None
    if source.revision:
        return f"{source.name}@{source.revision}"
    return hashlib.sha256("\n".join(identity(source)).encode()).hexdigest()[:16]


def git_state() -> dict[str, Any]:
    """Return the commit of the checkout this package runs from, and whether it has changes."""
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"sha": None, "dirty": None}
    return {"sha": commit, "dirty": bool(_git(folder, "status", "--porcelain"))}


def package_versions() -> dict[str, str | None]:
    """Return the installed versions of `PACKAGES`; None for those that are absent."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def fingerprint(rows: "Dataset") -> str:
    """Return the SHA-256 of token ids and labels, in row order."""
    digest = hashlib.sha256()
    for column in ("input_ids", "labels"):
        for chunk in rows.with_format("arrow")[:].column(column).chunks:
            digest.update(chunk.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            digest.update(chunk.flatten().to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
