"""What deploy keeps in a Git repository, below ``git_path``:

kustomization.yaml            names the directories below
releases/RELEASE/             the objects of a release; it never changes
live/                         the Service that says which release clients reach
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from components.core.errors import InputError
from components.core.kubernetes.resource_kinds import Object
from components.deploy.component import DeployConfig
from components.deploy.git.host import GitHost, blob_hash
from components.deploy.labels import CHECKPOINT_DIGEST, PREVIOUS, RELEASE, live_name
from components.deploy.objects.render import Release, as_files, kustomization

_RELEASES, _LIVE, _ROOT = "releases", "live", "kustomization.yaml"


@dataclass(frozen=True)
class Layout:
    """What a branch has. ``files`` are hashes by path; ``previous`` are releases that were live, newest first."""

    head: str
    files: Mapping[str, str]
    live: str = ""
    checkpoint_digest: str = ""
    previous: tuple[str, ...] = ()


def read_layout(host: GitHost, config: DeployConfig, branch: str = "") -> Layout:
    """Of ``branch``, by default the one that is followed. Raises InputError for one that does not exist, and for a
    live Service that cannot be read."""
    head = host.head(branch or config.git_branch)
    if head is None:
        raise InputError(f"{config.git_repository} has no branch {branch or config.git_branch}: correct git_branch")
    files = host.files(head, config.git_path)
    path = f"{config.git_path}/{_LIVE}/service-{live_name(config.service_name)}.yaml"
    if path not in files:
        return Layout(head, files)
    try:
        said = yaml.safe_load(host.read(head, path))["metadata"]["annotations"]
        previous = tuple(name for name in said.get(PREVIOUS, "").split(",") if name)
        return Layout(head, files, said[RELEASE], said[CHECKPOINT_DIGEST], previous)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise InputError(f"{config.git_repository}: {path} is not what deploy wrote: restore or remove it") from None


def changes(config: DeployConfig, release: Release, found: Layout, live: list[Object]) -> dict[str, str | None]:
    """What a commit must change so that ``release`` is there, and live when ``live`` has objects; empty when it is.

    Releases that are neither live, nor kept for a roll-back, nor this one go.
    """
    earlier = [name for name in (found.live, *found.previous) if name and name != release.name]
    # Until it is live, what clients reach stays, whatever keep_releases says.
    kept = earlier[: config.keep_releases] if live else earlier[: max(config.keep_releases, 1)]
    wanted = _files(f"{config.git_path}/{_RELEASES}/{release.name}", list(release.objects))
    if live:
        service = {**live[0], "metadata": {**live[0]["metadata"]}}
        service["metadata"]["annotations"] = live[0]["metadata"]["annotations"] | {PREVIOUS: ",".join(kept)}
        wanted |= _files(f"{config.git_path}/{_LIVE}", [service, *live[1:]])
    names = [f"{_RELEASES}/{name}" for name in sorted({release.name, *kept})]
    has_live = bool(live or found.live)
    wanted[f"{config.git_path}/{_ROOT}"] = kustomization([*names, *([_LIVE] if has_live else [])])
    changed: dict[str, str | None] = {
        path: text for path, text in wanted.items() if found.files.get(path) != blob_hash(text)
    }
    stays = tuple(f"{config.git_path}/{name}/" for name in names)
    for path in found.files:
        in_release = path.startswith(f"{config.git_path}/{_RELEASES}/") and not path.startswith(stays)
        in_live = bool(live) and path.startswith(f"{config.git_path}/{_LIVE}/") and path not in wanted
        if in_release or in_live:
            changed[path] = None
    return changed


def _files(directory: str, objects: list[Object]) -> dict[str, str]:
    return {f"{directory}/{name}": text for name, text in as_files(objects).items()}
