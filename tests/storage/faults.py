"""Twenty-odd kinds of fault of an object store, and what a user must get when each strikes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from components.core.errors import ActionNeeded, InputError, StageError, Transient
from tests.storage.proxy import Exchange, Fault, stall


def _reads(method: str, path: str) -> bool:
    return method == "GET" and "list-type" not in path


def _writes(method: str, _: str) -> bool:
    return method in ("PUT", "POST")


def _puts(method: str, path: str) -> bool:
    return method == "PUT" and "uploadId" not in path


def _lists(method: str, path: str) -> bool:
    return method == "GET" and "list-type" in path


def _parts(method: str, path: str) -> bool:
    return method == "PUT" and "partNumber" in path


def _completes(method: str, path: str) -> bool:
    return method == "POST" and "uploadId" in path


def _refuse(status: int, code: str, more: str = "", **headers: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.refuse(status, code, more, **headers)


def _drop(exchange: Exchange) -> None:
    exchange.drop()


def _done_but_unsaid(exchange: Exchange) -> None:
    exchange.forward()
    exchange.drop()


def _done_but_an_error_said(exchange: Exchange) -> None:
    exchange.forward()
    exchange.refuse(503, "ServiceUnavailable")


def _done_twice(exchange: Exchange) -> None:
    exchange.forward()
    exchange.reply(exchange.forward())


def _cut_short(exchange: Exchange) -> None:
    answer = exchange.forward()
    exchange.reply(replace(answer, body=answer.body[: len(answer.body) // 2]), promised=len(answer.body))
    exchange.wfile.flush()
    exchange.drop()


def _flipped_answer(exchange: Exchange) -> None:
    answer = exchange.forward()
    exchange.reply(replace(answer, body=_flip(answer.body)))


def _shorter_answer(exchange: Exchange) -> None:
    """A proxy's cache that holds half of the object, and says so."""
    answer = exchange.forward()
    exchange.reply(replace(answer, body=answer.body[: len(answer.body) // 2]))


def _empty_answer(exchange: Exchange) -> None:
    exchange.reply(replace(exchange.forward(), body=b""))


def _flipped_upload(exchange: Exchange) -> None:
    exchange.reply(exchange.forward(_flip(exchange.sent)))


def _range_ignored(exchange: Exchange) -> None:
    answer = exchange.forward()
    exchange.reply(replace(answer, status=200 if answer.status == 206 else answer.status))


def _error_in_a_200(exchange: Exchange) -> None:
    exchange.refuse(200, "InternalError")


def _flip(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 8]) + body[middle + 1 :] if body else body


def _skewed(exchange: Exchange) -> None:
    server = datetime.now(UTC) - timedelta(hours=1)
    exchange.refuse(403, "RequestTimeTooSkewed", f"<ServerTime>{server:%Y-%m-%dT%H:%M:%SZ}</ServerTime>")


# What passes: the work ends as if nothing had happened.
PASSING: list[Callable[[], Fault]] = [
    lambda: Fault("connection reset before the answer", _drop, times=3),
    lambda: Fault("500 InternalError", _refuse(500, "InternalError"), times=3),
    lambda: Fault("503 SlowDown", _refuse(503, "SlowDown"), times=3),
    lambda: Fault("429 TooManyRequests", _refuse(429, "TooManyRequests"), times=2),
    lambda: Fault("download cut short", _cut_short, _reads, times=2),
    lambda: Fault("download changed on the way", _flipped_answer, _reads),
    lambda: Fault("download shorter than the object", _shorter_answer, _reads),
    lambda: Fault("download empty", _empty_answer, _reads),
    lambda: Fault("download stalls", stall(3.0), _reads),
    lambda: Fault("upload changed on the way", _flipped_upload, _puts),
    lambda: Fault("part of an upload changed on the way", _flipped_upload, _parts),
    lambda: Fault("upload times out at the server", _refuse(400, "RequestTimeout"), _writes),
    lambda: Fault("upload done, answer lost", _done_but_unsaid, _writes),
    lambda: Fault("upload done, 503 said", _done_but_an_error_said, _writes),
    lambda: Fault("upload done twice", _done_twice, _puts),
    lambda: Fault("200 with an error inside, at the end of an upload in parts", _error_in_a_200, _completes),
    lambda: Fault("listing fails", _refuse(500, "InternalError"), _lists, times=2),
    lambda: Fault("listing cut short", _cut_short, _lists),
]
# What stays: the work ends with the error that says what to do; nothing half is taken for whole, then or later.
LASTING: list[tuple[Callable[[], Fault], type[StageError], str]] = [
    (lambda: Fault("no rights to read", _refuse(403, "AccessDenied"), _reads, None), ActionNeeded, "access is refused"),
    (lambda: Fault("no rights to write", _refuse(403, "AccessDenied"), _writes, None), ActionNeeded, "access is refus"),
    (lambda: Fault("no rights to list", _refuse(403, "AccessDenied"), _lists, None), ActionNeeded, "access is refused"),
    (
        lambda: Fault("credentials ran out", _refuse(400, "ExpiredToken"), times=None),
        ActionNeeded,
        "access is refused .*ExpiredToken",
    ),
    (
        lambda: Fault("wrong region", _refuse(301, "PermanentRedirect", "<Region>eu-west-1</Region>"), times=None),
        InputError,
        "set AWS_REGION",
    ),
    (lambda: Fault("clock off", _skewed, times=None), ActionNeeded, r"clock of this node is (3\d\d\d|\w+)"),
    (lambda: Fault("no such bucket", _refuse(404, "NoSuchBucket"), times=None), InputError, "no such bucket"),
    (lambda: Fault("down", _refuse(503, "ServiceUnavailable"), times=None), Transient, "run again"),
    (lambda: Fault("unreachable", _drop, times=None), Transient, "run again"),
    (lambda: Fault("every download changed", _flipped_answer, _reads, None), StageError, "sha256|cannot be read"),
    (lambda: Fault("ranges ignored", _range_ignored, _reads, None), StageError, ""),
]
