"""The one retry policy of the project's clients, on tenacity: exponential waits with jitter, and Retry-After obeyed."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import tenacity

# Answers that may be another one a moment later (RFC 9110, RFC 6585, RFC 8470).
RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class TryAgain(Exception):
    """A request failed in a way that may pass.

    ``wait_seconds`` is how long the server asked to wait; None leaves it to the policy.
    """

    def __init__(self, problem: str, *, wait_seconds: float | None = None) -> None:
        super().__init__(problem)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is sent, and how long to wait in between.

    The wait is ``first_wait`` seconds, then ``multiplier`` times the wait before, up to ``longest_wait``; of each the
    share ``jitter`` is drawn at random.
    """

    attempts: int
    first_wait: float = 0.5
    longest_wait: float = 30.0
    multiplier: float = 2.0
    jitter: float = 0.5

    def wait_seconds(self, attempt: int, error: BaseException | None = None) -> float:
        """Return the wait after attempt number ``attempt`` (from 1): the server's, or the policy's with jitter.

        Jitter keeps clients that failed together from coming back together.
        """
        asked = error.wait_seconds if isinstance(error, TryAgain) else None
        if asked is not None:
            return min(asked, self.longest_wait)
        longest = min(self.first_wait * self.multiplier ** (attempt - 1), self.longest_wait)
        return random.uniform(longest * (1 - self.jitter), longest)

    def retrying(
        self, *, what: str = "", log: logging.Logger | None = None, on_retry: Callable[[], None] | None = None
    ) -> tenacity.Retrying:
        """Return an iterator of attempts: ``for attempt in policy.retrying(): with attempt: ...``.

        A TryAgain raised inside an attempt is waited out and tried again; after the last attempt it is raised. Every
        other exception is raised at once. Each retry is one line of ``log``, which starts with ``what``, and one call
        of ``on_retry``.
        """

        def before_sleep(state: tenacity.RetryCallState) -> None:
            if on_retry:
                on_retry()
            if log and state.outcome and state.next_action:
                problem = f"{what}: {state.outcome.exception()}" if what else state.outcome.exception()
                log.warning("%s: trying again in %.1f s", problem, state.next_action.sleep)

        def wait(state: tenacity.RetryCallState) -> float:
            return self.wait_seconds(state.attempt_number, state.outcome.exception() if state.outcome else None)

        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=wait,
            retry=tenacity.retry_if_exception_type(TryAgain),
            before_sleep=before_sleep,
            reraise=True,
        )


def parse_retry_after(text: str) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3); None for none or an unreadable one."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None
