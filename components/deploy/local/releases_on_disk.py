"""Files of the local service on this machine: its releases, its logs, and which process serves."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from components.core.errors import InputError, Transient
from components.core.serving.model_manifest import MODEL_MANIFEST, ModelManifest, check_files, read_model_manifest
from components.deploy.local.process import ServerProcess, stop_server

KEPT_RELEASES = 2
_STATE = "state.json"


class ServiceState(BaseModel):
    """Server processes of the service and releases that passed.

    ``previous`` is set while the service is switched from it to another; it stays after a switch that was cut short.
    ``good`` holds digests that passed verification, the last one first.
    """

    live: ServerProcess | None = None
    candidate: ServerProcess | None = None
    previous: ServerProcess | None = None
    good: list[str] = []


class StateDirectory:
    """The directory of one service; releases in it are named by digest and never change."""

    def __init__(self, root: str, name: str) -> None:
        self.path = Path(root).expanduser().resolve() / quote(name, safe="")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the service for this deployment. Raises Transient when another deployment has locked it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("w")
        except OSError as error:
            raise InputError(f"state_dir {self.path} cannot be written ({error.strerror}): change state_dir") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Transient(f"another deployment is under way in {self.path}: try again when it is done") from None
            yield

    def read(self) -> ServiceState:
        """Return the state; an empty one when there is none yet."""
        try:
            return ServiceState.model_validate_json((self.path / _STATE).read_bytes())
        except FileNotFoundError:
            return ServiceState()
        except ValidationError:
            raise InputError(f"{self.path / _STATE} cannot be read: stop the service by hand and remove it") from None

    def write(self, state: ServiceState) -> None:
        """Replace the state in one step."""
        partial = self.path / f"{_STATE}.partial"
        partial.write_text(state.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(self.path / _STATE)

    def get_release_directory(self, digest: str) -> Path:
        """Return the directory of a release, which may not exist yet."""
        return self.path / "releases" / digest[:12]

    def get_log_file(self, digest: str, role: str) -> Path:
        """Return the file that a server of the release logs to."""
        return self.path / "logs" / f"{digest[:12]}-{role}.log"

    def install(self, model: Path) -> ModelManifest:
        """Copy the served files of ``model`` to their release directory; a whole release is only checked.

        Nothing that happens to the artifact afterwards reaches a running server. Raises InputError when a file is not
        what the model's manifest says.
        """
        manifest = read_model_manifest(model)
        release = self.get_release_directory(manifest.digest)
        if self._is_whole(release, manifest):
            return manifest
        partial = release.with_name(release.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for name in [MODEL_MANIFEST, *manifest.files]:
                if not (model / name).is_file():
                    raise InputError(f"{model}: {name} is missing: copy the exported model again from its source")
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model / name, partial / name)
            check_files(partial, manifest)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(release, ignore_errors=True)
        partial.rename(release)
        return manifest

    def prune(self, state: ServiceState) -> None:
        """Remove releases and logs other than those last verified or running."""
        running = [service.digest for service in (state.live, state.previous) if service]
        kept = {digest[:12] for digest in (*state.good[:KEPT_RELEASES], *running)}
        for path in (self.path / "releases").glob("*"):
            if path.name not in kept:
                shutil.rmtree(path)
        for path in (self.path / "logs").glob("*.log"):
            if path.name.split("-")[0] not in kept:
                path.unlink()

    @staticmethod
    def _is_whole(release: Path, manifest: ModelManifest) -> bool:
        try:
            check_files(release, manifest)
            return read_model_manifest(release) == manifest
        except InputError:
            return False


def stop_service(state_dir: str, name: str) -> bool:
    """Stop what deploy left running under ``name``. Return False when nothing ran."""
    home = StateDirectory(state_dir, name)
    if not home.path.is_dir():
        return False
    with home.lock():
        state = home.read()
        stopped = [stop_server(service) for service in (state.live, state.candidate) if service]
        home.write(ServiceState(good=state.good))
    return any(stopped)
