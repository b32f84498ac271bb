"""Errors of remote storage: which pass when one asks again, which mean that access is denied, and how long to wait."""

from __future__ import annotations

import asyncio
import errno
import http.client
import random
import time
from collections.abc import Callable
from typing import TypeVar

from plait.errors import PlaitError, UnreachableError

__all__ = ["ShortReadError", "retrying"]

T = TypeVar("T")

ATTEMPTS = 5
FIRST_PAUSE = 0.25  # seconds, doubled from attempt to attempt
LONGEST_PAUSE = 8.0

_PASSING = {
    getattr(errno, name)
    for name in (
        "EIO",
        "EREMOTEIO",
        "ETIMEDOUT",
        "ECONNRESET",
        "ECONNREFUSED",
        "ECONNABORTED",
        "EPIPE",
        "ENETUNREACH",
        "EHOSTUNREACH",
        "EAGAIN",
        "EBUSY",
        "ESTALE",
    )
    if hasattr(errno, name)
}
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
_NETWORKS = {"aiohttp", "botocore", "aiobotocore", "httpx", "httpcore", "urllib3", "requests", "paramiko", "gcsfs"}
_DENIALS = {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "NoAuthTokenError"}


class ShortReadError(ConnectionError):
    """Fewer bytes came than were asked for."""


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of any of the libraries carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    for owner, key in ((response, "status_code"), (error, "status"), (error, "code")):
        found = getattr(owner, key, None)
        if isinstance(found, int) and 100 <= found < 600:
            return found
    return None


def denied(error: BaseException) -> bool:
    """Whether the storage refuses this user."""
    return isinstance(error, PermissionError) or type(error).__name__ in _DENIALS or _status(error) in (401, 403)


def passing(error: BaseException) -> bool:
    """Whether asking again may help."""
    status = _status(error)
    if status is not None:
        return status in _PASSING_STATUS
    if isinstance(error, TimeoutError | asyncio.TimeoutError | ConnectionError | http.client.IncompleteRead):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    return type(error).__module__.split(".")[0] in _NETWORKS and type(error).__name__ not in _DENIALS


def _foreign(error: BaseException) -> bool:
    """Whether an error is the storage's and not a mistake of ours."""
    known = (OSError, ValueError, NotImplementedError, http.client.HTTPException, EOFError)
    return isinstance(error, known) or type(error).__module__.split(".")[0] in _NETWORKS


def reason_of(error: BaseException) -> str:
    """One line of what went wrong."""
    text = str(error).strip()
    if isinstance(error, NotImplementedError):
        return "this kind of storage cannot do it"
    return text.splitlines()[0][:300] if text else type(error).__name__


def retrying(doing: str, action: Callable[[], T], failure: type[PlaitError]) -> T:
    """Run an action on remote storage; ask again, with growing pauses, where that may help.

    Args:
        doing: what is done, for messages: "reading tensor 'x' from s3://…".
        action: what to do; it may be run several times.
        failure: the error that a lasting refusal becomes.

    Raises:
        FileNotFoundError, IsADirectoryError, NotADirectoryError: as they are; the caller knows what they mean.
        UnreachableError: if every attempt failed in a way that may pass.
        PlaitError: of class `failure`, for what will not pass.
    """
    last: BaseException | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
            time.sleep(pause * (0.75 + 0.5 * random.random()))
        try:
            return action()
        except (PlaitError, FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:
            if not _foreign(error):
                raise
            if denied(error):
                raise failure(
                    f"{doing} was refused ({reason_of(error)}): check the credentials in the environment, and that "
                    "they may list, read or write there."
                ) from None
            if not passing(error):
                raise failure(f"{doing} failed: {reason_of(error)}.") from None
            last = error
    if isinstance(last, ShortReadError):
        raise failure(
            f"{doing}: {last}, {ATTEMPTS} times over. The object was cut short or replaced; upload it again."
        ) from None
    assert last is not None
    raise UnreachableError(
        f"{doing} failed {ATTEMPTS} times ({reason_of(last)}): the storage or the network does not answer. Try again "
        "later; what is finished is kept."
    ) from None
