"""``python -m components`` in processes that are forked from one which has imported the stages' libraries.

Most of a small stage's time is spent on importing torch and transformers. A forked process has an environment, output
and exit code of its own all the same. tests/cli and tests/finetune start some commands as users do.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from components.__main__ import main
from components.command_line import local_runs
from components.recipe.stages import NAMES

_LIBRARIES = ("transformers.models.bert.modeling_bert", "torch.onnx", "torch.export", "torch._dynamo", "onnxscript")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([*(f"components.{name}.program" for name in NAMES), *_LIBRARIES])


class ForkedCommand:
    """A command that has started; ``arguments`` are those of ``python -m components``."""

    def __init__(self, arguments: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._stdout, self._stderr = (Path(self._folder.name, name) for name in ("stdout", "stderr"))
        given = ([str(argument) for argument in arguments], dict(environment), self._stdout, self._stderr)
        self._process = _CONTEXT.Process(target=_run, args=given)
        self._process.start()

    def wait(self) -> tuple[int, str, str]:
        """Return the exit code, stdout and stderr once it has ended."""
        self._process.join()
        output = [path.read_text(encoding="utf-8") for path in (self._stdout, self._stderr)]
        self._folder.cleanup()
        assert self._process.exitcode is not None
        return self._process.exitcode, *output


def _run(arguments: list[str], environment: dict[str, str], stdout: Path, stderr: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    local_runs.subprocess = _ForkingSubprocess  # type: ignore[assignment]
    sys.exit(_main(arguments))


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["export"]:
        # How fast a model is matters to no test; the shapes of real exports take a minute.
        sessions = importlib.import_module("components.export.sessions")
        sessions.SHAPES = ((1, 8), (2, 16))  # type: ignore[attr-defined]
    sys.argv = ["components", *arguments]
    return main(arguments)


class _ForkingSubprocess:
    """Stands for the module ``subprocess`` where ``components run`` starts its stages."""

    @staticmethod
    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "components"] and not check
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                code = _main(command[3:])
            finally:
                sys.stdout.flush()
                os._exit(code)
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
