"""Run a function in several processes, one per GPU, with torch's elastic launcher, on which torchrun is built.

The calling process remains the one that a pod's launcher sees: it waits, passes SIGTERM on, and raises the error of a
rank as if it had happened here, in one line and with its exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from components.core import log
from components.core.distributed.process_group import destroy_process_group, init_process_group
from components.core.errors import InputError, StageError, Transient, error_from_exit_code

_REQUEST, _RESULT, _ERROR = "request.json", "result.json", "error-{}.json"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def count_processes(num_processes: int | None) -> int:
    """Return how many processes to start: ``num_processes``, by default one per visible GPU, and one without GPUs.

    Raises:
        InputError: If there are GPUs, but fewer than ``num_processes``. Without any GPU all processes run on the CPU.
    """
    visible = torch.cuda.device_count()
    if num_processes is not None and 0 < visible < num_processes:
        raise InputError(
            f"num_processes = {num_processes}: {visible} GPUs are visible: ask for more GPUs or fewer processes"
        )
    return num_processes or max(1, visible)


def launch(function: str, arguments: Mapping[str, Any], count: int) -> Any:
    """Run ``function`` in ``count`` processes and return what rank 0 returned.

    Args:
        function: "module:name" of a function whose first parameter is the ``ProcessGroup``.
        arguments: Its keyword arguments, as JSON values; what it returns is a JSON value, too.
        count: Number of processes.

    Raises:
        StageError: The error that a rank raised; Transient when a rank was killed or made no progress. All other ranks
            are ended.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name, _silence_launcher(), _restore_signals():
        folder = Path(name)
        level = logging.getLogger("components").level
        request = {"function": function, "arguments": dict(arguments), "format": _log_format(), "level": level}
        (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        try:
            elastic_launch(_config(count, folder), sys.executable)(
                "-m", "components.core.distributed.launch", str(folder)
            )
        except ChildFailedError as failed:
            raise _select_error(folder, [failure.exitcode for failure in failed.failures.values()]) from None
        except SignalException:
            raise _select_error(folder, [], interrupted=True) from None
        return json.loads((folder / _RESULT).read_text(encoding="utf-8"))


def rank_main(folder: Path) -> int:
    """Carry out the request in ``folder`` as one rank; return the exit code."""
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    rank = int(os.environ["RANK"])
    _configure_log(request, rank)
    _exit_with_parent()
    _share_cores()
    module, _, name = request["function"].partition(":")
    try:
        returned = getattr(importlib.import_module(module), name)(init_process_group(), **request["arguments"])
        if rank == 0:
            (folder / _RESULT).write_text(json.dumps(returned), encoding="utf-8")
    except (Exception, KeyboardInterrupt) as error:
        stage_error, follows = explain_failure(error)
        return _report_error(folder, rank, stage_error, follows=follows)
    destroy_process_group()
    return 0


def explain_failure(error: BaseException) -> tuple[StageError, bool]:
    """Return the error to show the user, and whether it only follows from the failure of another rank.

    The traceback of a bug is printed to stderr.
    """
    if isinstance(error, StageError):
        return error, False
    if isinstance(error, KeyboardInterrupt):
        return Transient("interrupted: run the same command again"), False
    if _is_lost_connection(error):
        return Transient(f"lost contact with another process ({_first_line(error)}): run again"), True
    traceback.print_exception(error)
    return StageError(f"{_first_line(error)}: this is a bug; its traceback stands above"), False


def _config(count: int, folder: Path) -> LaunchConfig:
    # All ranks are on this machine: nothing may depend on how its host name resolves.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
    )


def _select_error(folder: Path, codes: list[int], *, interrupted: bool = False) -> StageError:
    """Return the error to show; that a rank lost contact to another one is shown only where nothing else is known."""
    reported = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(_ERROR.format("*"))]
    reported.sort(key=lambda error: (error["follows"], error["rank"]))
    killed = [signal.Signals(-code).name for code in codes if code < 0]
    if killed and all(error["follows"] for error in reported):
        return Transient(f"a process was killed by {killed[0]}, perhaps because the node is out of memory: run again")
    if interrupted and all(error["follows"] for error in reported):
        return Transient("interrupted, and killed before everything was written: run again to continue from what was")
    if reported:
        return error_from_exit_code(reported[0]["exit_code"], reported[0]["message"])
    return Transient("a process was interrupted or made no progress: run again")


def _report_error(folder: Path, rank: int, error: StageError, *, follows: bool) -> int:
    """Write the error for the launching process; ``follows``: it only follows from another rank's failure."""
    body = {"rank": rank, "exit_code": error.exit_code, "message": str(error), "follows": follows}
    path = folder / _ERROR.format(rank)
    # The launcher ends all ranks as soon as one has exited: the file must be complete before that.
    path.with_suffix(".partial").write_text(json.dumps(body), encoding="utf-8")
    path.with_suffix(".partial").rename(path)
    logging.getLogger("components").debug("", exc_info=error)
    return error.exit_code


def _is_lost_connection(error: BaseException) -> bool:
    """Return whether ``error`` only says that another process is gone; gloo has no exception class for that."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _log_format() -> str:
    handlers = logging.getLogger().handlers
    formatter = handlers[0].formatter if handlers else None
    return formatter._fmt if formatter and formatter._fmt else "%(asctime)s %(message)s"


def _configure_log(request: Mapping[str, Any], rank: int) -> None:
    """Let rank 0 log as its parent does, and the others only warnings, with their rank."""
    prefix = "" if rank == 0 else f"rank {rank}: "
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format=request["format"].replace("%(message)s", f"{prefix}%(message)s"),
        datefmt=log.TIME,
        force=True,
    )
    level = request["level"] or logging.INFO
    logging.getLogger("components").setLevel(level if rank == 0 or level < logging.INFO else logging.WARNING)


def _exit_with_parent() -> None:
    """Exit when the launcher is gone: ranks that outlive it would run beside those of the next attempt."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(Transient.exit_code)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _share_cores() -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))


@contextlib.contextmanager
def _silence_launcher() -> Iterator[None]:
    """Silence the launcher's long reports of failed ranks: a user needs one line."""
    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _restore_signals() -> Iterator[None]:
    """Restore the signal handlers, which the launcher replaces and does not restore."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(rank_main(Path(sys.argv[1])))
