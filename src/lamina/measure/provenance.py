"""Provenance of a run's numbers: code, versions, device, model and data."""

import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.runtime.device import device_name, installed
from lamina.weights.reading import identity

if TYPE_CHECKING:
    from datasets import Dataset

    from lamina.depth.plan import Plan
    from lamina.weights.source import Source

PACKAGES = (
    "lamina accelerate datasets hydra-core omegaconf peft tokenizers torch transformers trl "
    "unsloth unsloth_zoo"
).split()
"""Packages whose versions are recorded."""

LAMINA = Path(__file__).resolve().parents[1]
"""Folder of this package."""


BLOCK = 1000
"""Rows hashed at once. A table's own chunks depend on whether rows before them were left out."""


def provenance(plan: "Plan", train: "Dataset", backend: str) -> dict[str, Any]:
    """Return what reproducing a run requires; `train` are the tokenized training rows."""
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
    """Identify a base model by its commit, or by a hash of its weights and config."""
    if source is None:
        return None
    if source.revision:
        return f"{source.name}@{source.revision}"
    return hashlib.sha256("\n".join(identity(source)).encode()).hexdigest()[:16]


def git_state(package: Path = LAMINA) -> dict[str, Any]:
    """Return the commit of a Lamina checkout and whether it has changes; None for both elsewhere.

    A wheel may be installed inside another repository, whose commit says nothing about Lamina:
    there the package's version identifies the code.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    is_checkout = top is not None and package == Path(top).resolve() / "src" / "lamina"
    if not is_checkout or not _git(package, "ls-files", "--", "measure/provenance.py"):
        return {"sha": None, "dirty": None}
    commit = _git(package, "rev-parse", "HEAD")
    return {"sha": commit, "dirty": bool(_git(package, "status", "--porcelain"))}


def package_versions() -> dict[str, str | None]:
    """Return the installed version of each of `PACKAGES`; None if it is not installed."""
    return {package: version(package) if installed(package) else None for package in PACKAGES}


def fingerprint(rows: "Dataset") -> str:
    """Return the SHA-256 of the rows' token ids and labels, in order."""
    digest, table = hashlib.sha256(), rows.with_format("arrow")
    for column in ("input_ids", "labels"):
        for first in range(0, len(rows), BLOCK):
            chunk = table[first : first + BLOCK].column(column).combine_chunks()
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
