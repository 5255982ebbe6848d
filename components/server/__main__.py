"""python -m components.server: serve an exported model."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from components.core import log
from components.core.errors import StageError
from components.server.app import build_app
from components.server.model import OnnxModel

_log = logging.getLogger("components.server")


class _DrainingServer(uvicorn.Server):
    """Server that turns unready on SIGTERM before it stops taking requests, so that load balancers look elsewhere."""

    def __init__(self, app: FastAPI, config: uvicorn.Config, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._app, self._drain_seconds = app, drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Turn unready; stop at once, or after the drain time when the signal is the first SIGTERM."""
        self._app.state.draining = True
        if sig == signal.SIGTERM and self._drain_seconds and not self.should_exit:
            stop = partial(super().handle_exit, sig, frame)
            asyncio.get_running_loop().call_later(self._drain_seconds, stop)
        else:
            super().handle_exit(sig, frame)


def main() -> int:
    """Serve until SIGTERM or SIGINT; requests in flight are finished. Return 0, or 2 when there is no valid model."""
    args = _parser().parse_args()
    log.configure("server", verbose=args.verbose)
    try:
        model = OnnxModel(args.model, threads=args.threads)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    _log.info("serving %s as '%s' on %s:%d", model.digest[:12], args.name, args.host, args.port)
    app = build_app(model, args.name, max_texts=args.max_batch_size)
    config = uvicorn.Config(
        app, host=args.host, port=args.port, log_config=None, access_log=False, timeout_graceful_shutdown=30
    )
    _DrainingServer(app, config, drain_seconds=args.drain_seconds).run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.server", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="directory of an exported model")
    parser.add_argument("--name", required=True, help="name that clients give as `model`")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--threads", type=int, help="CPU threads of the model (default: all that it may use)")
    parser.add_argument("--max-batch-size", type=int, default=64, help="texts in a batch (default: 64)")
    parser.add_argument("--drain-seconds", type=float, default=0.0, help="unready before stopping (default: 0)")
    parser.add_argument("--verbose", action="store_true", help="debug lines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
