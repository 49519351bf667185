"""A model's files on the Hugging Face hub, with errors that say what to do.

`huggingface_hub.errors.HTTPError` is that of its HTTP library: httpx, from 2.0 on httpx2.
"""

from pathlib import Path

from lamina.errors import ModelError, reason_of
from lamina.weights.header import BITS, StoredTensor

MALFORMED = (AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What huggingface_hub's parser raises on a header of other types; it checks only its syntax."""


def is_reachable() -> bool:
    """Whether the hub answers within one attempt of HF_HUB_ETAG_TIMEOUT seconds.

    The client's own retries take half a minute, or many minutes if a firewall drops packets.
    """
    from huggingface_hub import constants, errors, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (errors.HTTPError, errors.OfflineModeIsEnabled):
        return False
    return True


def download(repo_id: str, filename: str, revision: str | None, *, required: bool) -> Path | None:
    """Return the local path of a file in OWNER/NAME at a commit, None for the newest.

    Raises ModelError if a required file is missing, the repository is unknown or gated, or the hub
    cannot be reached.
    """
    from huggingface_hub import errors, hf_hub_download

    try:
        _fail_early(repo_id, filename, revision)
        return Path(hf_hub_download(repo_id, filename, revision=revision))
    except (
        errors.EntryNotFoundError,
        errors.HFValidationError,
        errors.HTTPError,
        OSError,
    ) as error:
        # Offline, only the cache counts.
        known = offline() or not isinstance(error, errors.LocalEntryNotFoundError)
        if not required and isinstance(error, errors.EntryNotFoundError) and known:
            return None
        raise _download_error(error, repo_id, filename) from error


def _download_error(error: Exception, repo_id: str, filename: str) -> ModelError:
    from huggingface_hub import errors

    named = f"model_name={repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return ModelError(f"{named} is gated: accept its terms on the hub, then set HF_TOKEN")
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return ModelError(
            f"{named}: neither a folder nor a repository on the hub (a private one needs HF_TOKEN)"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return ModelError(unreachable(named))
    if isinstance(error, errors.EntryNotFoundError):
        return ModelError(f"{named} has no {filename}")
    return ModelError(f"{named}: {filename} cannot be downloaded ({reason_of(error)})")


def read_headers(repo_id: str, revision: str | None) -> dict[str, StoredTensor]:
    """Read the headers of a repository's safetensors files; may raise a ModelError."""
    from huggingface_hub import errors, get_safetensors_metadata

    try:
        found = get_safetensors_metadata(repo_id, revision=revision)
        return {
            name: StoredTensor(info.dtype, tuple(info.shape))
            for file in found.files_metadata.values()
            for name, info in file.tensors.items()
            if BITS[info.dtype]  # a type of unknown size is malformed, too
        }
    except (errors.HTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise ModelError(unreachable(f"model_name={repo_id}")) from error
    except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError, *MALFORMED) as error:
        raise ModelError(f"model_name={repo_id} has no readable safetensors weights") from error


def names_in(repo_id: str, folder: str, suffix: str, revision: str | None) -> list[str]:
    """Return the names of a folder's files with a suffix; those in the cache without a hub."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    if is_reachable():
        try:
            entries = HfApi().list_repo_tree(repo_id, folder, revision=revision)
            return sorted(Path(e.path).name for e in entries if e.path.endswith(suffix))
        except HTTPError:  # there is no such folder
            return []
    config = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    snapshot = Path(config).parent if isinstance(config, str) else Path()
    return sorted(path.name for path in (snapshot / folder).glob(f"*{suffix}"))


def _fail_early(repo_id: str, filename: str, revision: str | None) -> None:
    """Fail early with the error that a download would raise only after its long retries.

    Raises EntryNotFoundError if the cache knows that this commit has no such file, and
    LocalEntryNotFoundError if the model is not cached and the hub does not answer.
    """
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(repo_id, filename, revision=revision)
    if revision is not None and cached is _CACHED_NO_EXIST:
        raise EntryNotFoundError(filename)
    if revision is None and cached is None and not is_reachable():
        raise LocalEntryNotFoundError(filename)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids every request."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def unreachable(setting: str, kind: str = "model") -> str:
    """Say that what KEY=VALUE names is not cached and the hub does not answer."""
    return (
        f"{setting}: the hub cannot be reached and the {kind} is not in the cache; "
        "experiment=quickstart works offline"
    )
