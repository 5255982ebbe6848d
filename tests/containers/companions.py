"""A store and an LLM in a network namespace that has nothing but a loopback: stages that join it reach no more.

python -m tests.containers.companions [store] [llm]      what the container runs; needs Python alone
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.sdg.llm_server import llm_server
from tests.storage.s3_server import s3_server

STORE_PORT, LLM_PORT = 9000, 8000
STORE = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{STORE_PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}
LLM_URL = f"http://127.0.0.1:{LLM_PORT}/v1"
_REPOSITORY = Path(__file__).resolve().parents[2]


@contextmanager
def companions(engine: str, image: str, *names: str) -> Iterator[str]:
    """Start them in a container of ``image``; yields the network that joins them. ``engine`` is the client."""
    options = ["--network", "none", "--volume", f"{_REPOSITORY}:/repository:ro", "--workdir", "/repository"]
    options += ["--env", "PYTHONPATH=/repository", "--entrypoint", "python"]
    command = [engine, "run", "--detach", *options, image, "-m", "tests.containers.companions", *names]
    container = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        _wait(engine, container)
        yield f"container:{container}"
    finally:
        subprocess.run([engine, "rm", "--force", container], capture_output=True, check=False)


def _wait(engine: str, container: str) -> None:
    for _ in range(100):
        said = subprocess.run([engine, "logs", container], capture_output=True, text=True, check=False)
        if "ready" in said.stdout:
            return
        time.sleep(0.1)
    raise AssertionError(f"the companions did not start: {said.stderr}")


def main(names: list[str]) -> None:
    """Serve until the container is stopped."""
    with ExitStack() as running:
        if "store" in names:
            running.enter_context(s3_server(port=STORE_PORT))
        if "llm" in names:
            running.enter_context(llm_server(port=LLM_PORT))
        print("ready", flush=True)
        stopped = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        stopped.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
