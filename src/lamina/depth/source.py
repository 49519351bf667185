"""A model's source: a local folder, or a hub repository at one commit. Imports no torch."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lamina.errors import ModelError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


@dataclass(frozen=True)
class Source:
    """Where a model's files are read from."""

    name: str
    """Hub id, or the absolute path of a local folder: what an adapter records as its base."""

    revision: str | None
    """Commit of the hub repository; None for a local folder."""

    folder: Path
    """Folder with config.json: the local folder, or the snapshot in the hub cache."""

    @property
    def is_local(self) -> bool:
        """Whether the model is a folder of this machine rather than a hub repository."""
        return self.revision is None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            ModelError: The file is not JSON.
        """
        return _read_json(self.folder / "config.json")

    def weight_files(self) -> dict[str, str]:
        """Map every tensor's name to the file that holds it; {"": name} for a single file.

        Raises:
            ModelError: There are no safetensors weights, or the hub cannot be reached.
        """
        # A cache that was filled by other means may not know that there is no index.
        single = (self.folder / SINGLE_FILE).is_file()
        if not single and self.fetch(INDEX_FILE, required=False):
            weight_map: dict[str, str] = _read_json(self.folder / INDEX_FILE)["weight_map"]
            return weight_map
        if single or self.fetch(SINGLE_FILE, required=False):
            return {"": SINGLE_FILE}
        if not self.is_local and _offline():
            raise _unreachable(self.name)
        raise ModelError(
            f"model_name={self.name} has no safetensors weights "
            f"(neither {SINGLE_FILE} nor {INDEX_FILE}): convert it with save_pretrained first"
        )

    def fetch(self, filename: str, *, required: bool = True) -> Path | None:
        """Return the local path of one file, downloading it from the hub where need be.

        Args:
            filename: Name inside the folder or repository.
            required: Whether a missing file is an error; None is returned otherwise. With
                HF_HUB_OFFLINE a file that is not in the cache is a missing one.

        Raises:
            ModelError: The file is required and missing, or the hub cannot be reached.
        """
        path = self.folder / filename
        if path.is_file():
            return path
        if self.is_local:
            if required:
                raise ModelError(f"model_name={self.name}: {filename} is missing in that folder")
            return None
        return _download(self.name, filename, self.revision, required=required)


def resolve(model_name: str) -> Source:
    """Find a model by its hub id or local path, reading no more than its config.json.

    Raises:
        ModelError: The folder or its config.json is missing, or the hub does not know the id or
            cannot be reached.
    """
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        if not (folder / "config.json").is_file():
            raise ModelError(f"model_name={model_name}: no config.json in that folder")
        return Source(name=str(folder), revision=None, folder=folder)
    if model_name.startswith((".", "/", "~")) or model_name.count("/") > 1:
        raise ModelError(f"model_name={model_name}: no such folder")
    path = _download(model_name, "config.json", None, required=True)
    assert path is not None
    # The snapshot's folder is named after the commit that was read.
    return Source(name=model_name, revision=path.parent.name, folder=path.parent)


def hub_is_reachable() -> bool:
    """Say whether the hub answers at all, from one attempt of HF_HUB_ETAG_TIMEOUT seconds.

    The client's own attempts take half a minute, or many minutes where a firewall drops packets.
    """
    import httpx
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (httpx.TransportError, OfflineModeIsEnabled):
        return False
    return True


def _download(repo_id: str, filename: str, revision: str | None, *, required: bool) -> Path | None:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        _look_before(repo_id, filename, revision)
        return Path(hf_hub_download(repo_id, filename, revision=revision))
    except GatedRepoError as error:
        raise ModelError(
            f"model_name={repo_id} is gated: accept its terms on the hub, then set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"model_name={repo_id}: neither a folder nor a repository on the hub "
            "(a private one needs HF_TOKEN)"
        ) from error
    except LocalEntryNotFoundError as error:
        if not required and _offline():
            return None  # the cache is all there is
        raise _unreachable(repo_id) from error
    except EntryNotFoundError as error:
        if not required:
            return None
        raise ModelError(f"model_name={repo_id} has no {filename}") from error
    except (httpx.HTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model_name={repo_id}: {filename} cannot be downloaded ({reason})"
        ) from error


def _look_before(repo_id: str, filename: str, revision: str | None) -> None:
    """Raise what a download would come to, where that is known without its long attempts.

    Raises:
        EntryNotFoundError: The cache knows that this commit has no such file.
        LocalEntryNotFoundError: The model is new to the cache and the hub does not answer.
    """
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(repo_id, filename, revision=revision)
    if revision is not None and cached is _CACHED_NO_EXIST:
        raise EntryNotFoundError(filename)
    if revision is None and cached is None and not hub_is_reachable():
        raise LocalEntryNotFoundError(filename)


def _offline() -> bool:
    """Say whether the user has forbidden any request, with HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _unreachable(repo_id: str) -> ModelError:
    return ModelError(
        f"model_name={repo_id}: the hub cannot be reached and the model is not in the cache; "
        "experiment=quickstart works offline"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    return content
