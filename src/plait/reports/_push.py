"""Put a model folder on the Hub, after it was looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.errors import CheckpointError, MissingModelError, OutputError, PlaitError, RecipeError, UnreachableError
from plait.reports._card import front_matter
from plait.reports._verify import verify

__all__ = ["Pushed", "push"]

#: files that a new repository has by itself, or that every push may replace
_HARMLESS = frozenset({".gitattributes", "README.md"})
_LEFT_HERE = [".*", "*/.*"]


@dataclass(frozen=True)
class Pushed:
    """What was uploaded.

    Attributes:
        url: of the commit.
        files: number of files in the folder.
        nbytes: their size.
        private: whether only the owner sees them.
    """

    url: str
    files: int
    nbytes: int
    private: bool


def push(
    folder: str | Path,
    repository: str,
    *,
    public: bool = False,
    overwrite: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    message: str = "Upload a merged model",
) -> Pushed:
    """Upload a model folder in one commit.

    The folder is read once before: what is damaged, or holds NaN, is not uploaded. A repository that already holds a
    model is left alone unless `overwrite` is given; its history keeps what was there.

    Args:
        folder: a model folder with a card.
        repository: `owner/name` on the Hub.
        public: make a new repository public; private by default.
        overwrite: add a commit to a repository that already holds a model.
        token: access token; by default the one that `hf auth login` has stored.
        endpoint: another Hub than huggingface.co.
        message: message of the commit.

    Raises:
        MissingModelError: there is no model in the folder.
        CheckpointError: the model is damaged, or has no card.
        RecipeError: the repository's name cannot be one.
        OutputError: the repository already holds a model, or may not be written to.
        UnreachableError: the Hub does not answer.
    """
    home = Path(folder)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise RecipeError(f"{repository!r} is no repository of the Hub; write OWNER/NAME.")
    if not home.is_dir():
        raise MissingModelError(f"there is no folder {home}.")
    if not front_matter(home):
        raise CheckpointError(
            f"{home} has no README.md with front matter, which the Hub needs as a card. Write one first."
        )
    found = verify(home, load=False)
    failed = [step for step in found.steps if step.state == "failed"]
    if failed:
        raise CheckpointError(f"{home} is not uploaded: {failed[0].name}: {failed[0].sentence}")
    inside = {p: p.relative_to(home).parts for p in home.rglob("*") if p.is_file()}
    files = [p for p, parts in inside.items() if not any(part.startswith(".") for part in parts)]
    from huggingface_hub import HfApi

    return _upload(home, repository, files, public, overwrite, HfApi(endpoint=endpoint, token=token), message)


def _upload(
    home: Path, repository: str, files: list[Path], public: bool, overwrite: bool, hub: Any, message: str
) -> Pushed:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        try:
            info = hub.model_info(repository)
            present = sorted({s.rfilename for s in info.siblings or ()} - _HARMLESS)
            private = bool(info.private)
        except RepositoryNotFoundError:
            present, private = list[str](), not public
            hub.create_repo(repository, private=private, repo_type="model")
        if present and not overwrite:
            raise OutputError(
                f"{repository} already holds {len(present)} files ({', '.join(present[:3])}); push to another name, or "
                "add a commit that replaces them with --overwrite."
            )
        commit = hub.upload_folder(
            repo_id=repository, folder_path=home, commit_message=message, ignore_patterns=_LEFT_HERE
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise OutputError(
                f"the Hub does not let you write to {repository} ({status}); log in with `hf auth login` as someone "
                "who may, or give --token."
            ) from None
        raise UnreachableError(f"the Hub refused {repository}: {str(error).strip().splitlines()[0]}") from None
    except PlaitError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise UnreachableError(f"the Hub cannot be reached: {error}. Nothing was published.") from None
    return Pushed(str(commit.commit_url), len(files), sum(p.stat().st_size for p in files), private)
