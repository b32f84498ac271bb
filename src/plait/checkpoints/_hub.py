"""Models on the Hugging Face Hub, through its own library and cache."""

from __future__ import annotations

from pathlib import Path

from plait.errors import MissingModelError

__all__ = ["cached", "fetch", "resolve"]

_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*", "README.md", "*/config.json"]


def cached(repository: str, revision: str | None) -> Path | None:
    """The snapshot of a repository that lies in the cache with weights, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    return folder if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) else None


def resolve(repository: str, revision: str | None, text: str) -> str:
    """The commit that a revision means now: what is read by ranges is read of one commit.

    Raises:
        MissingModelError: if the Hub does not tell.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().model_info(repository, revision=revision).sha
    except (OSError, ValueError) as error:
        raise _missing(text, error) from None
    if not commit:
        raise MissingModelError(f"the Hub names no commit of {text!r}; name one: hf://{repository}@COMMIT.")
    return commit


def _missing(text: str, error: Exception) -> MissingModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return MissingModelError(
        f"there is no model {text!r}: no such folder or file here, not in the Hub cache, and the Hub cannot give "
        f"it ({reason}). Check the spelling, log in for gated models, or download it first."
    )


def fetch(repository: str, revision: str | None, text: str) -> tuple[Path, str | None]:
    """Return the local folder of a repository's snapshot, and its commit.

    What is in the cache already is used without a network; otherwise safetensors are downloaded, or PyTorch files
    where a repository has nothing else.

    Raises:
        MissingModelError: if it is neither in the cache nor to be had.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    known = cached(repository, revision)
    if known is not None:
        return known, known.name
    try:
        files = [f.rfilename for f in (HfApi().model_info(repository, revision=revision).siblings or [])]
        weights = "*.safetensors" if any(f.endswith(".safetensors") for f in files) else "*.bin"
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[*_FILES, weights]))
    except (HfHubHTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _missing(text, error) from None
    return folder, folder.name
