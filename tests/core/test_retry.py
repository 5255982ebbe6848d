"""The retry policy: what is tried again, how often, and how long it waits in between."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from components.core.retry import RetryPolicy, TryAgain, parse_retry_after

QUICK = RetryPolicy(attempts=3, first_wait=0.0, longest_wait=0.0)


def call(policy: RetryPolicy, failures: list[Exception], **options: object) -> list[int]:
    """Numbers of the attempts that it took until ``failures`` were used up."""
    attempts: list[int] = []
    for attempt in policy.retrying(**options):
        with attempt:
            attempts.append(len(attempts) + 1)
            if failures:
                raise failures.pop(0)
    return attempts


def test_what_may_pass_is_tried_again() -> None:
    assert call(QUICK, [TryAgain("503"), TryAgain("503")]) == [1, 2, 3]


def test_the_last_failure_is_raised_when_attempts_are_used_up() -> None:
    with pytest.raises(TryAgain, match="third"):
        call(QUICK, [TryAgain("first"), TryAgain("second"), TryAgain("third"), TryAgain("fourth")])


def test_every_other_error_is_raised_at_once() -> None:
    remaining = [KeyError("no retry"), TryAgain("503")]
    with pytest.raises(KeyError):
        call(QUICK, remaining)
    assert len(remaining) == 1


def test_each_retry_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    counted: list[None] = []
    with caplog.at_level(logging.WARNING):
        call(QUICK, [TryAgain("503 busy")], log=logging.getLogger("client"), on_retry=lambda: counted.append(None))
        call(QUICK, [TryAgain("504")], log=logging.getLogger("client"), what="http://server")
    assert len(counted) == 1
    assert caplog.messages == ["503 busy: trying again in 0.0 s", "http://server: 504: trying again in 0.0 s"]


def test_waits_double_with_jitter_and_end_at_the_longest() -> None:
    policy = RetryPolicy(attempts=9, first_wait=1.0, longest_wait=5.0)
    for attempt, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (8, 5.0)):
        waits = [policy.wait_seconds(attempt) for _ in range(200)]
        assert longest / 2 <= min(waits)
        assert max(waits) <= longest
        assert max(waits) - min(waits) > longest / 8


def test_waits_without_jitter_are_exact() -> None:
    policy = RetryPolicy(attempts=4, first_wait=0.5, longest_wait=5.0, multiplier=4.0, jitter=0.0)
    assert [policy.wait_seconds(attempt) for attempt in (1, 2, 3)] == [0.5, 2.0, 5.0]


def test_the_server_decides_how_long_to_wait_up_to_the_longest() -> None:
    policy = RetryPolicy(attempts=9, first_wait=1.0, longest_wait=5.0)
    assert policy.wait_seconds(1, TryAgain("429", wait_seconds=3.0)) == 3.0
    assert policy.wait_seconds(1, TryAgain("429", wait_seconds=300.0)) == 5.0


def test_retry_after_as_seconds_and_as_a_date() -> None:
    assert parse_retry_after("7") == 7.0
    assert parse_retry_after("-7") == 0.0
    assert parse_retry_after("") is None
    assert parse_retry_after("nan") is None
    assert parse_retry_after("soon") is None
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert parse_retry_after(in_a_minute) == pytest.approx(60, abs=30)
