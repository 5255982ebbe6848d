"""python -m components.deploy.local: status of the service that target=local left running, and its end."""

from __future__ import annotations

import argparse
import sys

from components.core import log
from components.core.errors import StageError
from components.deploy.component import STAGE, STATE_DIR
from components.deploy.local.releases_on_disk import StateDirectory, stop_service

NOT_RUNNING = 3


def main(argv: list[str] | None = None) -> int:
    """Stop the local service or print its status. Return 0; 3 when `status` finds none running."""
    parser = argparse.ArgumentParser(prog="python -m components.deploy.local", description=__doc__)
    parser.add_argument("command", choices=("stop", "status"))
    default = STAGE.config.model_fields["served_model_name"].default
    parser.add_argument("--name", default=default, help=f"served_model_name of the service (default: {default})")
    parser.add_argument("--state-dir", default=STATE_DIR, help=f"its state_dir (default: {STATE_DIR})")
    args = parser.parse_args(argv)
    log.configure(STAGE.name)
    try:
        if args.command == "stop":
            stopped = stop_service(args.state_dir, args.name)
            print(f"{args.name} is stopped" if stopped else f"{args.name} was not running")
            return 0
        service = StateDirectory(args.state_dir, args.name).read().live
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if service is None or not service.is_running():
        print(f"{args.name} is not running")
        return NOT_RUNNING
    print(f"{args.name} serves {service.digest[:12]} at {service.url}, process {service.pid}, log {service.log}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
