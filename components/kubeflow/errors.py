"""What a Kubeflow Pipelines server refuses, and what keeps it from answering, as this project's errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import kfp_server_api as api
import urllib3

from components.core.errors import ActionNeeded, InputError, StageError, Transient


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """Errors of the SDK as ours; ``what`` is asked for."""
    try:
        yield
    except StageError:
        raise
    except api.ApiException as error:
        raise _refused(what, error) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Transient(f"{what}: the server cannot be reached ({error}): check --host, then run again") from None
    except (ValueError, TypeError, AttributeError) as error:
        # A login page instead of an answer, for instance.
        raise ActionNeeded(
            f"{what}: what answers is no Kubeflow Pipelines API ({error}): check --host, KFP_TOKEN and KFP_COOKIES"
        ) from None


def _refused(what: str, error: Any) -> StageError:
    try:
        body = json.loads(error.body)
        said = body.get("error") or body.get("message") or ""
    except (ValueError, TypeError, AttributeError):
        said = error.reason or ""
    problem = f"{what}: the server answers {error.status} {' '.join(str(said).split())[:300]}".rstrip()
    if error.status in (401, 403):
        return ActionNeeded(f"{problem}: check KFP_TOKEN or KFP_COOKIES and your rights in the namespace")
    if not error.status or error.status in (408, 425, 429) or error.status >= 500:
        return Transient(f"{problem}: run again later")
    return InputError(f"{problem}: check the names and parameters")
