"""A Git repository behind the REST API of its host: files of a branch, one commit, one pull request.

No clone: the images need no git, and a token needs no more rights than the API's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.deploy.kubernetes.diagnosis import redact

TOKEN_VARIABLE = "GIT_TOKEN"
_ATTEMPTS = 5
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}
_log = logging.getLogger(__name__)
# Path to content; None removes the file.
Changes = Mapping[str, str | None]


class Refused(Exception):
    """The host refused a request for a reason that the caller knows: its status and what it says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status, self.message = status, message


class GitHost(ABC):
    """One repository. Every method raises ActionNeeded when the token is refused or lacks a right, InputError for a
    repository that does not exist or has moved, Transient when the host stays away or limits requests for long."""

    def __init__(self, repository: str, api: str, headers: Mapping[str, str], *, timeout: float = 30.0) -> None:
        self.repository, self._api = repository, api.rstrip("/")
        # A redirect could hand the token to another host.
        self._client = httpx.Client(timeout=timeout, headers=dict(headers), follow_redirects=False)

    def __enter__(self) -> GitHost:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @abstractmethod
    def head(self, branch: str) -> str | None:
        """The commit that ``branch`` is at; None when there is no such branch."""

    @abstractmethod
    def files(self, commit: str, directory: str) -> dict[str, str]:
        """Paths of all files below ``directory``, from the repository's root, with the hash of their content."""

    @abstractmethod
    def read(self, commit: str, path: str) -> str:
        """The text of a file."""

    @abstractmethod
    def commit(self, branch: str, parent: str, changes: Changes, message: str, *, new: bool) -> str:
        """Put one commit on ``parent``, which ``branch`` is at, or which the ``new`` branch shall start from.

        Return its id. Raises BranchMoved when the branch has moved or been made meanwhile.
        """

    @abstractmethod
    def propose(self, branch: str, base: str, title: str, text: str) -> str:
        """The address of the open pull request from ``branch`` to ``base``, made when there is none."""

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        known: tuple[int, ...] = (),
    ) -> Any:
        """The answer as JSON. Raises Refused for the statuses ``known``."""
        return self.send(method, path, query=query, body=body, known=known).json()

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        known: tuple[int, ...] = (),
    ) -> httpx.Response:
        """The answer, asked for again while the host is busy or limits requests."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            wait = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
            try:
                response = self._client.request(method, f"{self._api}{path}", params=query, json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__} {error}".strip()
            else:
                problem = f"{response.status_code} {_message(response)}"
                limited = _wait_of_limit(response)
                if limited is None and response.status_code not in _TRY_AGAIN:
                    return self._checked(response, path, known)
                wait = wait if limited is None else limited
                if wait > _LONGEST_WAIT_SECONDS:
                    break
            if attempt + 1 < _ATTEMPTS:
                _log.info("%s %s: %s; again in %.0f s", method, path, redact(problem), wait)
                time.sleep(wait)
        raise Transient(f"{self._api} does not answer ({redact(problem)}): run again later")

    def _checked(self, response: httpx.Response, path: str, known: tuple[int, ...]) -> httpx.Response:
        status, message = response.status_code, redact(_message(response))
        if response.is_success:
            return response
        if status in known:
            raise Refused(status, message)
        if response.is_redirect:
            raise InputError(
                f"{self._api}{path} has moved to {response.headers.get('location', 'elsewhere')}: give the new address "
                f"as git_repository, or git_api_url"
            )
        if status in (401, 403):
            raise ActionNeeded(
                f"{self.repository} refuses the token ({status} {message}): it needs the right to write contents and "
                f"pull requests; put it into the Secret git-token, key {TOKEN_VARIABLE}"
            )
        if status == 404:
            raise InputError(
                f"{self.repository}: the host knows no {path} ({message}): check git_repository and git_branch, and "
                f"that the token may see it"
            )
        raise StageError(f"{self.repository}: {status} {message} for {path}")


class BranchMoved(Exception):
    """Somebody else was faster: look again."""


def token() -> str:
    """The token for the repository. Raises ActionNeeded when there is none."""
    if found := os.environ.get(TOKEN_VARIABLE, "").strip():
        return found
    raise ActionNeeded(
        f"git_repository needs a token: put it into the Secret git-token, key {TOKEN_VARIABLE}, or into the "
        f"environment variable {TOKEN_VARIABLE}"
    )


def blob_hash(text: str) -> str:
    """What Git calls the content: sha1 of its header and its bytes."""
    content = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def parts_of(repository: str) -> tuple[str, str]:
    """Host and path of a repository's address. Raises InputError for one that is no https://HOST/OWNER/NAME."""
    parts = urlsplit(repository)
    path = parts.path.strip("/").removesuffix(".git")
    if parts.scheme != "https" or not parts.hostname or "/" not in path or parts.query or parts.username:
        raise InputError(f"git_repository {repository}: expected https://HOST/OWNER/NAME")
    return parts.netloc, path


def quoted(text: str) -> str:
    """``text`` as one segment of a path."""
    return quote(text, safe="")


def _wait_of_limit(response: httpx.Response) -> float | None:
    """Seconds until the host answers again; None when it does not limit requests.

    GitHub says so with 403 or 429, both with retry-after or x-ratelimit-reset; GitLab with 429 and the same headers.
    """
    headers = response.headers
    if response.status_code == 403 and "retry-after" not in headers and headers.get("x-ratelimit-remaining") != "0":
        return None
    if response.status_code not in (403, 429):
        return None
    with_date = headers.get("x-ratelimit-reset") or headers.get("ratelimit-reset")
    try:
        if "retry-after" in headers:
            return max(0.0, float(headers["retry-after"]))
        return max(0.0, float(with_date) - time.time()) if with_date else None
    except ValueError:
        return None


def _message(response: httpx.Response) -> str:
    """What the host says, on one line: GitHub's message and errors, GitLab's message or error."""
    try:
        body = response.json()
    except ValueError:
        return " ".join(response.text.split())[:200]
    if not isinstance(body, dict):
        return str(body)[:200]
    said = [body.get("message") or body.get("error") or "", *(body.get("errors") or [])]
    texts = [
        one if isinstance(one, str) else str(one.get("message") or one) if isinstance(one, dict) else str(one)
        for one in said
    ]
    return " ".join(" ".join(texts).split())[:300]
