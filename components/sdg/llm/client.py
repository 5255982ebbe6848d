"""Requests to one OpenAI-compatible endpoint: few at once, again while it is busy or away, never twice in vain."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.core.retry import RETRY_STATUSES, RetryPolicy, parse_retry_after
from components.sdg.llm.throttle import Throttle
from components.sdg.settings.llm_settings import Provider, RequestSettings

Read = TypeVar("Read")
# 52x are those of proxies in front of LLMs, 409 and 529 say that a model is loading or overloaded.
_RETRY_STATUSES = RETRY_STATUSES | {409, 520, 522, 524, 529}
_NEEDS_A_PERSON = {401: "the key is refused", 402: "the quota is used up", 403: "access is refused",
                   404: "there is no such model or path", 407: "a proxy wants credentials"}  # fmt: skip
_QUOTA = ("insufficient_quota", "quota exceeded", "exceeded your current quota", "credit balance")
_LONGEST_BACK_OFF_SECONDS = 60.0
_MAX_ANSWER_BYTES = 32 * 2**20
_NO_OTHER_TIMEOUT = aiohttp.ClientTimeout(total=None)
# Being told to slow down is no fault of the request: it gets more tries than one that fails.
_PUSH_BACKS_PER_TRY = 10


class NoUsableAnswer(StageError):
    """A request has no usable answer; other documents go on.

    ``transient`` is true when the same request may have one later.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class InvalidAnswer(Exception):
    """An answer holds nothing usable, and another try may give a better one."""


@dataclass(frozen=True)
class _Response:
    status: int
    retry_after: str
    content: bytes


class LlmClient:
    """Client of one OpenAI-compatible endpoint.

    The key is read from the environment or a file, sent in a header and nowhere else.

    Args:
        name: Name of the provider in the settings.
        provider: Where the endpoint is.
        settings: How many requests are under way, and how often one is tried.
        counts: Its ``requests`` is the number of requests sent.

    Raises:
        InputError: The URL is not safe, or the key is missing. Nothing has been sent by then.
    """

    def __init__(self, name: str, provider: Provider, settings: RequestSettings, counts: Counter[str]) -> None:
        self.stopped: StageError | None = None
        self.url = _check_url(provider.base_url, "llm_base_url" if name == "nvidia" else f"providers.{name}.base_url")
        self._settings, self._counts = settings, counts
        self._key_name = provider.api_key_file or provider.api_key_env
        self._throttle = Throttle(settings.max_parallel_requests_for_gen)
        self._answered = False
        key = _read_key(provider)
        if self._key_name and not key and not _is_local(self.url):
            raise InputError(
                f"{self._key_name} is not set: export {self._key_name}=... (or sdg.generator=offline)"
                if self._key_name == provider.api_key_env
                else f"{self._key_name} is empty: put the key into it"
            )
        headers = {"Content-Type": "application/json", **provider.headers}
        headers |= {"Authorization": f"Bearer {key.strip()}"} if key else {}
        for header, value in headers.items():
            if not (header + value).isascii() or not (header + value).isprintable():
                what = self._key_name if header == "Authorization" else f"providers.{name}.headers.{header}"
                raise InputError(f"{what} is not one line of plain ASCII text: correct it")
        self._headers = headers
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: str, *, model: str, timeout: float, read: Callable[[Any], Read]) -> Read:
        """Send a request, again after faults that pass, and return what ``read`` makes of the JSON answer.

        Args:
            path: Path below the endpoint's URL.
            body: JSON to send.
            model: The model that the body names, for error messages.
            timeout: Seconds that one answer may take.
            read: Parses the answer; raises InvalidAnswer for one that is worth another try.

        Raises:
            NoUsableAnswer: The endpoint refuses the request, or no try has a usable answer.
            ActionNeeded: A person must act: the key, the quota, the address.
            Transient: The endpoint asks to wait longer than ``max_retry_wait``.
        """
        problem, tries, push_backs, reached, content = "", 0, 0, False, body.encode()
        while tries < self._settings.max_attempts and push_backs < _PUSH_BACKS_PER_TRY * self._settings.max_attempts:
            try:
                response = await self._send(path, content, timeout)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if isinstance(error, aiohttp.ClientConnectorCertificateError):
                    raise ActionNeeded(f"{self.url}: its certificate is not trusted ({error})") from None
                problem, tries = type(error).__name__, tries + 1
                reached = reached or not isinstance(error, aiohttp.ClientConnectorError)
                await asyncio.sleep(_back_off(tries))
                continue
            reached = True
            if 200 <= response.status < 300:
                try:
                    answer = read(json.loads(response.content))
                except (InvalidAnswer, ValueError, RecursionError) as error:
                    problem = str(error) if isinstance(error, InvalidAnswer) else "the answer is not JSON"
                    tries += 1
                    await asyncio.sleep(_back_off(tries))
                    continue
                self._answered = True
                self._throttle.record_success()
                return answer
            problem = self._explain_refusal(response, path, model)
            wait = self._parse_wait(response)
            if response.status == 429:
                push_backs += 1
                self._throttle.record_push_back(_back_off(push_backs) if wait is None else wait)
            else:
                tries += 1
                await asyncio.sleep(max(_back_off(tries), wait or 0.0))
        if not reached and not self._answered:
            raise ActionNeeded(f"{self.url} cannot be reached ({problem}): check the address and the network")
        raise NoUsableAnswer(
            f"{self.url}{path} did not answer {tries + push_backs} times (last: {problem})", transient=True
        )

    async def _send(self, path: str, body: bytes, timeout: float) -> _Response:
        async with self._throttle:
            if self.stopped is not None:
                raise self.stopped
            self._counts["requests"] += 1
            if self._session is None:
                # The throttle bounds the connections. trust_env would read proxies and .netrc anew for each request.
                unlimited = aiohttp.TCPConnector(limit=0)
                proxy, credentials = _find_proxy(self.url)
                self._session = aiohttp.ClientSession(
                    connector=unlimited, headers=self._headers, proxy=proxy, proxy_auth=credentials
                )
            async with (
                asyncio.timeout(timeout),
                self._session.post(
                    self.url + path, data=body, allow_redirects=False, timeout=_NO_OTHER_TIMEOUT
                ) as response,
            ):
                content = bytearray()
                async for part in response.content.iter_any():
                    content += part
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise aiohttp.ClientPayloadError(f"more than {_MAX_ANSWER_BYTES} bytes")
                return _Response(response.status, response.headers.get("retry-after", ""), bytes(content))

    def _explain_refusal(self, response: _Response, path: str, model: str) -> str:
        """Return what a status that may pass means. Raise for one that will not."""
        status = response.status
        reason = _NEEDS_A_PERSON.get(status)
        if status == 429 and any(word.encode() in response.content.lower() for word in _QUOTA):
            reason = "the quota is used up"
        if 300 <= status < 400:
            reason = "it wants to send the request elsewhere"
        if reason:
            raise ActionNeeded(
                f"{self.url}{path} answers {status} for {model} ({reason}): "
                f"check {self._key_name or 'the address'}, the quota and the model's name"
            )
        if status not in _RETRY_STATUSES:
            raise NoUsableAnswer(f"{self.url}{path} refuses the request (HTTP {status})")
        return f"HTTP {status}"

    def _parse_wait(self, response: _Response) -> float | None:
        """Return the seconds that the endpoint asks to wait, or None when it names none."""
        seconds = parse_retry_after(response.retry_after)
        if seconds is not None and seconds > self._settings.max_retry_wait:
            raise Transient(
                f"{self.url} asks to wait {seconds:.0f} s, longer than max_retry_wait "
                f"({self._settings.max_retry_wait:g}): run again later"
            )
        return seconds


def _back_off(tries: int) -> float:
    policy = RetryPolicy(tries, first_wait=1.0, longest_wait=_LONGEST_BACK_OFF_SECONDS)
    return policy.wait_seconds(tries)


def _read_key(provider: Provider) -> str | None:
    """Return the key, from the file when there is one. Raises InputError for one that cannot be read."""
    if provider.api_key_file is None:
        return os.environ.get(provider.api_key_env) if provider.api_key_env else None
    try:
        return Path(provider.api_key_file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"api_key_file {provider.api_key_file} cannot be read ({error})") from None


def _find_proxy(url: str) -> tuple[URL | None, aiohttp.BasicAuth | None]:
    """Return the proxy that the environment names for ``url``, and its credentials."""
    parts = urlsplit(url)
    address = getproxies().get(parts.scheme)
    if not address or proxy_bypass(parts.netloc):
        return None, None
    proxy = URL(address if "://" in address else f"http://{address}")
    credentials = aiohttp.BasicAuth(proxy.user, proxy.password or "") if proxy.user else None
    return proxy.with_user(None), credentials


def _check_url(url: str, setting: str) -> str:
    """Return the URL without a trailing slash, when a key may be sent to it."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
        raise InputError(f"{setting} = {url!r}: expected https://host/v1, without a user, a key or a query in it")
    if _is_link_local(host):
        raise InputError(f"{setting} = {url!r} is an address of the cloud's own services: give an LLM's")
    if parts.scheme == "http" and not _is_local(url) and not _is_in_cluster(host):
        raise InputError(f"{setting} = {url!r} would send the key in the clear: use https")
    return url.rstrip("/")


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_link_local(host: str) -> bool:
    """Where clouds answer every pod with its credentials."""
    try:
        return ipaddress.ip_address(host).is_link_local
    except ValueError:
        return host == "metadata.google.internal"


def _is_in_cluster(host: str) -> bool:
    """Names that only resolve inside a Kubernetes cluster."""
    return "." not in host or host.endswith((".svc", ".svc.cluster.local"))
