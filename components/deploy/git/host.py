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
from components.core.retry import RetryPolicy, TryAgain, parse_retry_after
from components.deploy.kubernetes.diagnosis import redact

TOKEN_VARIABLE = "GIT_TOKEN"
RETRIES = RetryPolicy(attempts=5, first_wait=1.0, longest_wait=60.0)
_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
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
    def read_head(self, branch: str) -> str | None:
        """Return the commit that ``branch`` is at; None when there is no such branch."""

    @abstractmethod
    def list_files(self, commit: str, directory: str) -> dict[str, str]:
        """Return the hash of every file below ``directory``, by its path from the repository's root."""

    @abstractmethod
    def read_file(self, commit: str, path: str) -> str:
        """Return the text of a file."""

    @abstractmethod
    def commit(self, branch: str, parent: str, changes: Changes, message: str, *, new: bool) -> str:
        """Put one commit on ``parent``, which ``branch`` is at, or which the ``new`` branch shall start from.

        Return its id. Raises BranchMoved when the branch has moved or been made meanwhile.
        """

    @abstractmethod
    def propose(self, branch: str, base: str, title: str, text: str) -> str:
        """Return the address of the open pull request from ``branch`` to ``base``; open one when there is none."""

    def request_json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        known: tuple[int, ...] = (),
    ) -> Any:
        """Return the answer's JSON. Raises Refused for the statuses ``known``."""
        return self.request(method, path, query=query, body=body, known=known).json()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        known: tuple[int, ...] = (),
    ) -> httpx.Response:
        """Return the answer; send the request again while the host is busy or limits requests."""
        try:
            response = RETRIES.retrying(log=_log)(self._request_once, method, path, query, body)
        except TryAgain as error:
            raise Transient(f"{self._api} does not answer ({error}): run again later") from None
        return self._check_status(response, path, known)

    def _request_once(self, method: str, path: str, query: Mapping[str, str] | None, body: object) -> httpx.Response:
        try:
            response = self._client.request(method, f"{self._api}{path}", params=query, json=body)
        except httpx.HTTPError as error:
            raise TryAgain(redact(f"{type(error).__name__} {error}".strip())) from None
        limit = _read_rate_limit(response)
        if limit is None and response.status_code not in _RETRY_STATUSES:
            return response
        problem = redact(f"{response.status_code} {_read_message(response)}")
        if limit is not None and limit > RETRIES.longest_wait:
            raise Transient(f"{self._api} does not answer ({problem}): run again later")
        raise TryAgain(problem, wait_seconds=limit)

    def _check_status(self, response: httpx.Response, path: str, known: tuple[int, ...]) -> httpx.Response:
        """Return the answer of a request that succeeded; raise the error that says what to change."""
        status, message = response.status_code, redact(_read_message(response))
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
    """Somebody else changed or made the branch first: read it again."""


def read_token() -> str:
    """Return the token for the repository. Raises ActionNeeded when there is none."""
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return token
    raise ActionNeeded(
        f"git_repository needs a token: put it into the Secret git-token, key {TOKEN_VARIABLE}, or into the "
        f"environment variable {TOKEN_VARIABLE}"
    )


def compute_blob_hash(text: str) -> str:
    """Return Git's object id of a file: the SHA-1 of a header and its bytes."""
    content = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def split_address(repository: str) -> tuple[str, str]:
    """Return host and path of a repository's address.

    Raises InputError for an address that is not https://HOST/OWNER/NAME.
    """
    parts = urlsplit(repository)
    path = parts.path.strip("/").removesuffix(".git")
    if parts.scheme != "https" or not parts.hostname or "/" not in path or parts.query or parts.username:
        raise InputError(f"git_repository {repository}: expected https://HOST/OWNER/NAME")
    return parts.netloc, path


def quote_segment(text: str) -> str:
    """Return ``text`` escaped as one segment of a path."""
    return quote(text, safe="")


def _read_rate_limit(response: httpx.Response) -> float | None:
    """Return the seconds until the host answers again; None when it does not limit requests or does not say.

    GitHub limits with 403 or 429, both with retry-after or x-ratelimit-reset; GitLab with 429 and the same headers.
    """
    headers = response.headers
    if response.status_code == 403 and "retry-after" not in headers and headers.get("x-ratelimit-remaining") != "0":
        return None
    if response.status_code not in (403, 429):
        return None
    if "retry-after" in headers:
        return parse_retry_after(headers["retry-after"])
    try:
        reset = float(headers.get("x-ratelimit-reset") or headers.get("ratelimit-reset") or "")
    except ValueError:
        return None
    return max(0.0, reset - time.time())


def _read_message(response: httpx.Response) -> str:
    """Return the host's message on one line: GitHub's message and errors, GitLab's message or error."""
    try:
        body = response.json()
    except ValueError:
        return " ".join(response.text.split())[:200]
    if not isinstance(body, dict):
        return str(body)[:200]
    parts = [body.get("message") or body.get("error") or "", *(body.get("errors") or [])]
    texts = [str(part.get("message") or part) if isinstance(part, dict) else str(part) for part in parts]
    return " ".join(" ".join(texts).split())[:300]
