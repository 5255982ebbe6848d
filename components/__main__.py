"""python -m components: one stage, the whole chain on one machine, or what there is to set."""

from __future__ import annotations

import logging
import os
import sys

from components.command_line.cli import parse
from components.core import log
from components.core.errors import InputError, StageError, Transient


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 done, 2 bad input, 3 a person must act, 75 try again, 1 our bug."""
    # Without it tokenizers warns where a process forks; the stages start processes anew.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
        log.configure(command.name, verbose=command.verbose)
        return command.run() or 0
    except StageError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail(Transient("interrupted: run the same command again"))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("components"):
            raise
        return _fail(InputError(f"the package '{error.name}' is not installed: pip install '.[local]' has all"))


def _fail(error: StageError) -> int:
    logging.getLogger("components").debug("", exc_info=error)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
