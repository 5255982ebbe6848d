"""Errors of the Kubeflow Pipelines SDK, translated to this project's errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import kfp_server_api as api
import urllib3

from components.core.errors import ActionNeeded, InputError, StageError, Transient


@contextlib.contextmanager
def translate_errors(action: str) -> Iterator[None]:
    """Raise errors of the SDK as StageError; ``action`` begins their message: "uploading NAME"."""
    try:
        yield
    except StageError:
        raise
    except api.ApiException as error:
        raise _translate_refusal(action, error) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Transient(f"{action}: the server cannot be reached ({error}): check --host, then run again") from None
    except (ValueError, TypeError, AttributeError) as error:
        # A login page in place of an answer, for instance.
        raise ActionNeeded(
            f"{action}: what answers is no Kubeflow Pipelines API ({error}): check --host, KFP_TOKEN and KFP_COOKIES"
        ) from None


def _translate_refusal(action: str, error: Any) -> StageError:
    try:
        body = json.loads(error.body)
        reason = body.get("error") or body.get("message") or ""
    except (ValueError, TypeError, AttributeError):
        reason = error.reason or ""
    problem = f"{action}: the server answers {error.status} {' '.join(str(reason).split())[:300]}".rstrip()
    if error.status in (401, 403):
        return ActionNeeded(f"{problem}: check KFP_TOKEN or KFP_COOKIES and your rights in the namespace")
    if not error.status or error.status in (408, 425, 429) or error.status >= 500:
        return Transient(f"{problem}: run again later")
    return InputError(f"{problem}: check the names and parameters")
