"""What goes wrong between a stage and its storage, in one line, with the exit code that says what to do next."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from components.core.errors import ActionNeeded, InputError, StageError, Transient

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_DAMAGED_ON_THE_WAY = ("BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "InvalidDigest", "RequestTimeout")
_OTHER_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint", "TemporaryRedirect")
_CREDENTIALS = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")
_OBSTORE_KNOWS_A_REGION_IS_WRONG = "incorrectly configured region"
_METADATA_SERVERS = ("169.254.169.254", "169.254.170.", "metadata.google.internal")


class CorruptObject(OSError):
    """An object does not have the sha256 that it was written with."""


def summarize_error(error: BaseException) -> str:
    """Return the error in one line, without what obstore adds for its own developers."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:300] or type(error).__name__


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed at once, although obstore did not repeat it."""
    if isinstance(error, CorruptObject) or _parse_code(error) in _DAMAGED_ON_THE_WAY:
        return True
    repeated = re.search(r"after \d+ retries", str(error))
    return not repeated and isinstance(to_stage_error(error, ""), Transient)


def is_missing_bucket(error: BaseException) -> bool:
    """Return whether the whole bucket is missing, not only an object in it."""
    return _parse_code(error) == "NoSuchBucket"


def to_stage_error(error: BaseException, where: str) -> StageError:
    """Return ``error`` of a store as what the user can do about it.

    Args:
        error: what the store raised; a StageError is returned as it is.
        where: the setting and its URI, for the message.

    Returns:
        InputError for a place that does not exist or another region, ActionNeeded for credentials, rights, clocks and
        damaged objects, Transient for what may pass.
    """
    if isinstance(error, StageError):
        return error
    text, code, problem = str(error), _parse_code(error), summarize_error(error)
    if code in _OTHER_REGION or _OBSTORE_KNOWS_A_REGION_IS_WRONG in text:
        region = re.search(r"<Region>([\w-]+)</Region>", text) or re.search(r"expecting '([\w-]+)'", text)
        target = f"to {region[1]}" if region else "to the bucket's own"
        return InputError(f"{where}: the bucket is in another region: set AWS_REGION {target}")
    if code == "RequestTimeTooSkewed":
        skew = _describe_clock_skew(text)
        return ActionNeeded(f"{where}: the clock of this node is {skew}: synchronise it (NTP), then run again")
    if any(server in text for server in _METADATA_SERVERS):
        return ActionNeeded(
            f"{where}: no credentials were found: give the service account an identity of the cloud, or set "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3://), GOOGLE_APPLICATION_CREDENTIALS (gs://)"
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or code in _CREDENTIALS:
        return ActionNeeded(f"{where}: access is refused ({problem}): check credentials and rights")
    if isinstance(error, CorruptObject):
        return ActionNeeded(f"{where}: {error}: remove it, or copy it again from its source")
    if is_missing_bucket(error):
        return InputError(f"{where}: there is no such bucket: create it, or correct the address")
    if isinstance(error, FileNotFoundError):
        return InputError(f"{where}: it is not there, or no longer ({problem}): check the address and expiry rules")
    if isinstance(error, OSError):
        return ActionNeeded(f"{where}: {problem}: check that the directory can be read and written, and has space")
    if re.search(r"status code: 4(?!08|29)\d\d", text) or isinstance(error, ValueError):
        return InputError(f"{where}: the storage takes no such request ({problem}): check the address")
    return Transient(
        f"{where}: the storage does not answer ({problem}): run again, which continues from where this run stopped"
    )


@contextlib.contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """Raise every error inside as the StageError that ``to_stage_error`` makes of it."""
    try:
        yield
    except Exception as error:
        raise to_stage_error(error, where) from None


def _parse_code(error: BaseException) -> str:
    """Return the code of S3's error document; empty when there is none."""
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    return code[1] if code else ""


def _describe_clock_skew(text: str) -> str:
    server_time = re.search(r"<ServerTime>([\dT:.-]+)Z?</ServerTime>", text)
    if not server_time:
        return "too far off the storage's"
    server = datetime.fromisoformat(server_time[1]).replace(tzinfo=UTC)
    seconds = round((datetime.now(UTC) - server).total_seconds())
    return f"{abs(seconds)} seconds {'ahead of' if seconds > 0 else 'behind'} the storage's"
