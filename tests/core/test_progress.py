"""Long work says how far it is, in lines that a pod's log can show."""

from __future__ import annotations

import logging

import pytest

from components.core import progress as module
from components.core.progress import Progress, track


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    caplog.set_level(logging.INFO, logger=module.__name__)
    return clock


def test_a_line_every_ten_seconds_with_rate_and_time_to_go(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("encoding", total=100, unit="passages") as progress:
        for _ in range(25):
            clock.now += 1
            progress.add(2, loss=0.123456)
    assert caplog.messages == [
        "encoding: 20 of 100 passages, 2.0/s, 40 s to go, loss 0.1235",
        "encoding: 40 of 100 passages, 2.0/s, 30 s to go, loss 0.1235",
        "encoding: 50 passages in 25.0 s",
    ]


def test_a_slow_first_piece_does_not_make_the_rest_look_slow(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("training", total=60, unit="steps") as progress:
        clock.now += 20  # compiles
        progress.add(tokens_per_second=85240.0)
        for _ in range(10):
            clock.now += 1
            progress.add(tokens_per_second=85240.0, mfu=0.5123)
    assert caplog.messages == [
        "training: 1 of 60 steps, 0.1/s, 1180 s to go, tokens_per_second 85,240",
        "training: 11 of 60 steps, 1.0/s, 49 s to go, tokens_per_second 85,240, mfu 0.5123",
        "training: 11 steps in 30.0 s",
    ]


def test_without_a_total_nothing_is_foretold(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("reading", total=None, unit="files") as progress:
        clock.now += 10
        progress.add(5)
    assert caplog.messages == ["reading: 5 files, 0.5/s", "reading: 5 files in 10.0 s"]


def test_nothing_done_yet_is_no_error(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("reading", total=5, unit="files") as progress:
        clock.now += 10
        progress.add(0)
    assert caplog.messages[0].startswith("reading: 0 of 5 files")


def test_failed_work_is_not_called_done(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="broken"), Progress("reading", total=5, unit="files"):
        raise ValueError("broken")
    assert caplog.messages == []


def test_track_passes_items_through(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    assert list(track(["a", "b"], "reading", unit="files")) == ["a", "b"]
    assert caplog.messages == ["reading: 2 files in 0.0 s"]
