"""One change of the repository: a commit on the branch that is followed, or a pull request to it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from components.core.errors import InputError, Transient
from components.core.kubernetes.resource_kinds import Object
from components.deploy.component import DeployConfig
from components.deploy.git.github import GitHub
from components.deploy.git.gitlab import GitLab
from components.deploy.git.host import BranchMoved, GitHost, read_token, split_address
from components.deploy.git.layout import plan_changes, read_layout
from components.deploy.objects.render import Release
from components.deploy.settings.rollout_settings import GitDelivery

_PREFIX = "nemotron-embed"
_ATTEMPTS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """``name`` ends the branch's name: the same release is the same branch. ``live`` makes the release live."""

    name: str
    title: str
    text: str
    live: list[Object] = field(default_factory=list)


@dataclass(frozen=True)
class ChangeReference:
    """Where a change went: a commit, a pull request, or neither when the repository had everything."""

    commit: str = ""
    pull_request: str = ""

    def describe(self) -> dict[str, str]:
        """Return the fields of ``deployment.json``."""
        return {"commit": self.commit, "pull_request": self.pull_request}

    def __str__(self) -> str:
        return self.pull_request or (f"commit {self.commit[:12]}" if self.commit else "what the repository has")


def open_repository(config: GitDelivery) -> GitHost:
    """Return the repository that ``config`` names. Raises InputError when it is not clear whose API its host speaks."""
    host, _ = split_address(config.git_repository)
    kind = config.git_host or ("github" if host == "github.com" else "gitlab" if "gitlab" in host else None)
    if kind is None:
        raise InputError(f"git_repository {config.git_repository}: set git_host to the API that {host} speaks")
    return (GitHub if kind == "github" else GitLab)(config.git_repository, config.git_api_url, read_token())


def deliver_change(host: GitHost, config: DeployConfig, release: Release, change: Change) -> ChangeReference:
    """Put ``change`` into the repository, unless it is there.

    Raises Transient when others change the branch again and again meanwhile.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _try_to_deliver(host, config, release, change)
        except BranchMoved as conflict:
            _log.info("%s has changed meanwhile (%s): again", config.git_repository, conflict)
    raise Transient(f"{config.git_repository} changed {_ATTEMPTS} times while deploy wrote to it: run again")


def _try_to_deliver(host: GitHost, config: DeployConfig, release: Release, change: Change) -> ChangeReference:
    base = read_layout(host, config)
    changes = plan_changes(config, release, base, change.live)
    if not changes:
        _log.info("%s has %s already", config.git_branch, release.name)
        return ChangeReference()
    if not config.git_pull_request:
        commit = host.commit(config.git_branch, base.head, changes, _message(change), new=False)
        _log.info("committed %s to %s", commit[:12], config.git_branch)
        return ChangeReference(commit=commit)
    branch = f"{_PREFIX}/{change.name}"
    commit = ""
    if host.read_head(branch) is None:
        commit = host.commit(branch, base.head, changes, _message(change), new=True)
    else:
        proposed = read_layout(host, config, branch)
        if missing := plan_changes(config, release, proposed, change.live):
            commit = host.commit(branch, proposed.head, missing, _message(change), new=False)
    address = host.propose(branch, config.git_branch, change.title, change.text)
    _log.info("%s waits to be merged", address)
    return ChangeReference(commit, address)


def _message(change: Change) -> str:
    return f"{change.title}\n\n{change.text}".rstrip() + "\n"
