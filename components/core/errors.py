"""The failures a user can act on, each with the exit code that says what to do next."""

from __future__ import annotations


class StageError(Exception):
    """One line for the user: what is wrong, what was found, what to change."""

    exit_code = 1


class InputError(StageError):
    """Bad input or configuration; nothing was written and nothing was paid."""

    exit_code = 2


class ActionNeeded(StageError):
    """A person must act: credentials, quota, permissions."""

    exit_code = 3


class Transient(StageError):
    """Interrupted or a transient fault outlasted its budget; running again continues."""

    exit_code = 75


def error_from_exit_code(exit_code: int, message: str) -> StageError:
    """Return the error that another process ended with."""
    kinds = {kind.exit_code: kind for kind in (InputError, ActionNeeded, Transient)}
    return kinds.get(exit_code, StageError)(message)
