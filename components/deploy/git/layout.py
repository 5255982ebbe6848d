"""Files of deploy in a Git repository, below ``git_path``:

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
from components.deploy.git.host import GitHost, compute_blob_hash
from components.deploy.labels import CHECKPOINT_DIGEST, PREVIOUS, RELEASE, live_name
from components.deploy.objects.render import Release, as_files, kustomization

_RELEASES, _LIVE, _ROOT = "releases", "live", "kustomization.yaml"


@dataclass(frozen=True)
class Layout:
    """Content of a branch: ``files`` are hashes by path, ``previous`` the releases that were live, newest first."""

    head: str
    files: Mapping[str, str]
    live: str = ""
    checkpoint_digest: str = ""
    previous: tuple[str, ...] = ()


def read_layout(host: GitHost, config: DeployConfig, branch: str = "") -> Layout:
    """Return the layout of ``branch``, by default the one that Argo CD or Flux follows.

    Raises InputError for a branch that does not exist, and for a live Service that cannot be read.
    """
    head = host.read_head(branch or config.git_branch)
    if head is None:
        raise InputError(f"{config.git_repository} has no branch {branch or config.git_branch}: correct git_branch")
    files = host.list_files(head, config.git_path)
    path = f"{config.git_path}/{_LIVE}/service-{live_name(config.service_name)}.yaml"
    if path not in files:
        return Layout(head, files)
    try:
        annotations = yaml.safe_load(host.read_file(head, path))["metadata"]["annotations"]
        previous = tuple(name for name in annotations.get(PREVIOUS, "").split(",") if name)
        return Layout(head, files, annotations[RELEASE], annotations[CHECKPOINT_DIGEST], previous)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise InputError(f"{config.git_repository}: {path} is not what deploy wrote: restore or remove it") from None


def plan_changes(config: DeployConfig, release: Release, layout: Layout, live: list[Object]) -> dict[str, str | None]:
    """Return the changes after which ``release`` is in the branch, and live when ``live`` has objects.

    Releases that are neither live, nor kept for a roll-back, nor this one are removed.

    Returns:
        The new content of each file to change, by path; None removes the file. Empty when nothing is to change.
    """
    earlier = [name for name in (layout.live, *layout.previous) if name and name != release.name]
    # Until this release is live, what clients reach stays, whatever keep_releases says.
    kept = earlier[: config.keep_releases] if live else earlier[: max(config.keep_releases, 1)]
    content = _as_files_in(f"{config.git_path}/{_RELEASES}/{release.name}", list(release.objects))
    if live:
        service = {**live[0], "metadata": {**live[0]["metadata"]}}
        service["metadata"]["annotations"] = live[0]["metadata"]["annotations"] | {PREVIOUS: ",".join(kept)}
        content |= _as_files_in(f"{config.git_path}/{_LIVE}", [service, *live[1:]])
    names = [f"{_RELEASES}/{name}" for name in sorted({release.name, *kept})]
    has_live = bool(live or layout.live)
    content[f"{config.git_path}/{_ROOT}"] = kustomization([*names, *([_LIVE] if has_live else [])])
    changes: dict[str, str | None] = {
        path: text for path, text in content.items() if layout.files.get(path) != compute_blob_hash(text)
    }
    kept_directories = tuple(f"{config.git_path}/{name}/" for name in names)
    for path in layout.files:
        in_old_release = path.startswith(f"{config.git_path}/{_RELEASES}/") and not path.startswith(kept_directories)
        is_old_live = bool(live) and path.startswith(f"{config.git_path}/{_LIVE}/") and path not in content
        if in_old_release or is_old_live:
            changes[path] = None
    return changes


def _as_files_in(directory: str, objects: list[Object]) -> dict[str, str]:
    return {f"{directory}/{name}": text for name, text in as_files(objects).items()}
