"""What goes wrong between a stage and its storage, in one line, with the exit code that says what to do next."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from components.core.errors import ActionNeeded, InputError, StageError, Transient

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_DAMAGED_ON_THE_WAY = ("BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "InvalidDigest", "RequestTimeout")
_OTHER_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint", "TemporaryRedirect")
_CREDENTIALS = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")
# Classes of obstore.exceptions, by name: a directory as a store needs no obstore.
_REFUSALS = ("PermissionDeniedError", "UnauthenticatedError")
_OBSTORE_KNOWS_A_REGION_IS_WRONG = "incorrectly configured region"
_METADATA_SERVERS = ("169.254.169.254", "169.254.170.", "metadata.google.internal")


class CorruptObject(OSError):
    """An object does not have the sha256 that it was written with."""


def summarize_error(error: BaseException) -> str:
    """The error in one line, without what obstore adds for its own developers."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:300] or type(error).__name__


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed at once, although obstore did not repeat it."""
    if isinstance(error, CorruptObject) or _code(error) in _DAMAGED_ON_THE_WAY:
        return True
    repeated = re.search(r"after \d+ retries", str(error))
    return not repeated and isinstance(to_stage_error(error, ""), Transient)


def is_missing_bucket(error: BaseException) -> bool:
    """Whether not the object is missing but all of its bucket."""
    return _code(error) == "NoSuchBucket"


def to_stage_error(error: BaseException, where: str) -> StageError:
    """``error`` of a store as what the user can do about it; ``where`` is the setting and its URI.

    InputError for a place that does not exist or another region, ActionNeeded for credentials, rights and clocks,
    Transient for what may pass.
    """
    if isinstance(error, StageError):
        return error
    text, code = str(error), _code(error)
    if code in _OTHER_REGION or _OBSTORE_KNOWS_A_REGION_IS_WRONG in text:
        region = re.search(r"<Region>([\w-]+)</Region>", text) or re.search(r"expecting '([\w-]+)'", text)
        named = f"to {region[1]}" if region else "to the bucket's own"
        return InputError(f"{where}: the bucket is in another region: set AWS_REGION {named}")
    if code == "RequestTimeTooSkewed":
        return ActionNeeded(f"{where}: the clock of this node is {_skew(text)}: synchronise it (NTP), then run again")
    if any(server in text for server in _METADATA_SERVERS):
        return ActionNeeded(
            f"{where}: no credentials were found: give the service account an identity of the cloud, or set "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3://), GOOGLE_APPLICATION_CREDENTIALS (gs://)"
        )
    if type(error).__name__ in _REFUSALS or code in _CREDENTIALS:
        return ActionNeeded(f"{where}: access is refused ({summarize_error(error)}): check credentials and rights")
    if isinstance(error, CorruptObject):
        return ActionNeeded(f"{where}: {error}: remove it, or copy it again from its source")
    if is_missing_bucket(error):
        return InputError(f"{where}: there is no such bucket: create it, or correct the address")
    if isinstance(error, FileNotFoundError):
        return InputError(
            f"{where}: it is not there, or no longer ({summarize_error(error)}): check the address and expiry rules"
        )
    if isinstance(error, OSError):
        return ActionNeeded(
            f"{where}: {summarize_error(error)}: check that the directory can be read and written, and has space"
        )
    if re.search(r"status code: 4(?!08|29)\d\d", text) or isinstance(error, ValueError):
        return InputError(f"{where}: the storage takes no such request ({summarize_error(error)}): check the address")
    return Transient(
        f"{where}: the storage does not answer ({summarize_error(error)}): run again, it goes on where it stood"
    )


@contextlib.contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Raise every exception of the block as the error that ``to_stage_error`` makes of it."""
    try:
        yield
    except Exception as error:
        raise to_stage_error(error, where) from None


def _code(error: BaseException) -> str:
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return found[1] if found else ""


def _skew(text: str) -> str:
    told = re.search(r"<ServerTime>([\dT:.-]+)Z?</ServerTime>", text)
    if not told:
        return "too far off the storage's"
    server = datetime.fromisoformat(told[1]).replace(tzinfo=UTC)
    seconds = round((datetime.now(UTC) - server).total_seconds())
    return f"{abs(seconds)} seconds {'ahead of' if seconds > 0 else 'behind'} the storage's"
