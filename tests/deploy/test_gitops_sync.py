"""A release that Argo CD or Flux applies: merged, synced, verified, and only then made live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.errors import ActionNeeded, InputError, Transient
from components.core.kubernetes.resource_kinds import KINDS
from components.deploy.git import host as git_host
from components.deploy.publishing.publish import ModelUris
from components.deploy.result import DeployResult
from components.deploy.targets import gitops
from components.deploy.verification.verify_endpoint import list_failures
from tests.deploy.cluster.kserve import Fate, waiting
from tests.deploy.conftest import LIVE, Team
from tests.deploy.git.github import GitHubApi
from tests.deploy.git.server import TOKEN, GitServer, running

DIRECTORY = "embed"
WHO = {"argocd": ("applications", "argoproj.io"), "flux": ("kustomizations", "kustomize.toolkit.fluxcd.io")}


class Syncer:
    """Argo CD or Flux: applies the followed branch and says how it went, each time that somebody asks.

    ``merges`` says whether a person merges what is open; ``breaks`` is why it cannot apply.
    """

    def __init__(self, team: Team, server: GitServer, kind: str) -> None:
        self.team, self.server, self.kind = team, server, kind
        self.merges = True
        self.breaks = ""
        plural, group = WHO[kind]
        self.path = f"/{plural}/embed"
        team.cluster.rules = [*team.cluster.rules, {"verbs": ["get"], "apiGroups": [group], "resources": [plural]}]
        team.cluster.fault = self.asked
        self.say()

    def asked(self, method: str, path: str) -> None:
        if not path.endswith(self.path):
            return
        if self.merges:
            for request in self.server.repository.pull_requests:
                if request.state == "open":
                    self.server.repository.merge(request.number)
        if not self.breaks:
            self.apply()
        self.say()

    def apply(self) -> None:
        store = self.team.cluster.store
        wanted = dict(_objects(self.server.repository.files(), DIRECTORY))
        for (plural, name), item in wanted.items():
            store.apply(plural, name, item, manager="argocd-controller", force=True, dry_run=False)
        # Pruned, as the InferenceService's own parts are by its controller.
        for plural, name in [key for key in store.objects if key[1].startswith("embed-r-")]:
            if plural in ("services", "servingruntimes", "poddisruptionbudgets") and (plural, name) not in wanted:
                store.delete(plural, name)
            elif plural == "inferenceservices" and (plural, name) not in wanted:
                self.team.cluster.controller.delete(name)

    def say(self) -> None:
        plural, _ = WHO[self.kind]
        operation = {"phase": "Failed" if self.breaks else "Succeeded", "message": self.breaks}
        argo = {"sync": {"status": "OutOfSync" if self.breaks else "Synced"}, "health": {"status": "Healthy"}}
        ready = {"type": "Ready", "status": "False" if self.breaks else "True", "reason": "ReconciliationFailed"}
        flux = {"observedGeneration": 1, "conditions": [ready | {"message": self.breaks}]}
        status = argo | {"operationState": operation} if self.kind == "argocd" else flux
        self.team.cluster.store.objects[plural, "embed"] = {
            "metadata": {"name": "embed", "generation": 1},
            "status": status,
        }

    def deploy(self, model: str, **changes: Any) -> DeployResult:
        settings = {
            "target": "gitops", "serving_namespace": "team-a", "git_repository": self.server.address,
            "git_host": "github", "git_path": DIRECTORY, "gitops_wait": self.kind, "gitops_timeout": 3.0,
            "gitops_application": "gitops/embed",
        }  # fmt: skip
        config = self.team.config(**settings | changes)
        return gitops.deploy(config, self.team.bundle(model), ModelUris(f"s3://models/{model}"))


def _objects(files: dict[str, str], directory: str) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for resource in yaml.safe_load(files.get(f"{directory}/kustomization.yaml", "resources: []"))["resources"]:
        path = f"{directory}/{resource}"
        if path in files:
            item = yaml.safe_load(files[path])
            yield (KINDS[item["kind"]].plural, item["metadata"]["name"]), item
        else:
            yield from _objects(files, path)


@pytest.fixture(params=WHO)
def syncer(
    request: pytest.FixtureRequest, team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Syncer]:
    server = GitServer(GitHubApi)
    monkeypatch.setenv("GIT_TOKEN", TOKEN)
    monkeypatch.setattr(git_host, "RETRIES", replace(git_host.RETRIES, first_wait=0.01))
    (tmp_path / "git").mkdir()
    with running(server, tmp_path / "git") as authority:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        yield Syncer(team, server, request.param)


def test_verified_before_it_is_live(syncer: Syncer) -> None:
    team = syncer.team
    first = syncer.deploy("a")
    assert team.live() == "a"
    assert list_failures(first.checks) == list_failures(first.live_checks) == []
    # Two changes: the release, and with the figures of its verification the switch.
    added, switched = syncer.server.repository.pull_requests
    assert "not live yet" in added.title
    assert "cosine to fine-tuned" in switched.text
    asked = [service for service, _ in team.cluster.answered]
    assert asked.index(LIVE) > asked.index(f"{first.about['release']}-direct")
    second = syncer.deploy("b")
    assert team.live() == "b"
    assert second.reindex_required is True
    assert second.previous_endpoint == f"http://{first.about['release']}-direct.team-a.svc.cluster.local"
    again = syncer.deploy("b")
    assert len(syncer.server.repository.pull_requests) == 4
    assert list_failures(again.live_checks) == []


def test_a_release_that_does_not_verify_is_never_made_live(syncer: Syncer) -> None:
    syncer.deploy("a")
    syncer.team.faults["b"] = lambda _, __, vectors: -vectors
    with pytest.raises(ActionNeeded, match="is not what was exported"):
        syncer.deploy("b")
    assert syncer.team.live() == "a"
    assert [request.title for request in syncer.server.repository.pull_requests][2:] == [
        f"Add {syncer.server.repository.pull_requests[2].source.removeprefix('nemotron-embed/')}, not live yet"
    ]
    # The next one takes it out of the repository again.
    syncer.deploy("c")
    assert syncer.team.live() == "c"
    assert len(syncer.team.releases()) == 2


def test_a_release_that_does_not_start_is_explained(syncer: Syncer, caplog: pytest.LogCaptureFixture) -> None:
    syncer.deploy("a")
    syncer.team.fate("b", Fate(10**6, pod=waiting("ImagePullBackOff", "unauthorized")))
    with pytest.raises(ActionNeeded, match="cannot be pulled"):
        syncer.deploy("b")
    assert "Diagnosis of embed-r-" in caplog.text
    assert syncer.team.live() == "a"


def test_a_sync_that_fails_is_said(syncer: Syncer) -> None:
    syncer.breaks = "one or more objects failed to apply: quota"
    with pytest.raises(ActionNeeded, match=r"gitops/embed does not sync https://.*failed to apply: quota"):
        syncer.deploy("a")
    syncer.breaks = ""
    syncer.deploy("a")
    assert syncer.team.live() == "a"


def test_what_nobody_merges_is_waited_for_so_long(syncer: Syncer) -> None:
    syncer.merges = False
    with pytest.raises(Transient, match=r"pull/1 was not merged and synced within 0.2 s .*merge it, then run again"):
        syncer.deploy("a", gitops_timeout=0.2)
    syncer.merges = True
    syncer.deploy("a")
    assert len(syncer.server.repository.pull_requests) == 2


def test_committed_without_a_pull_request(syncer: Syncer) -> None:
    syncer.deploy("a", git_pull_request=False)
    assert syncer.team.live() == "a"
    assert len(syncer.server.repository.log()) == 3


def test_an_application_that_is_not_there(syncer: Syncer) -> None:
    with pytest.raises(ActionNeeded, match=r"there is no .* gitops/other"):
        syncer.deploy("a", gitops_application="gitops/other")
    syncer.team.cluster.store.installed -= {WHO[syncer.kind][0]}
    with pytest.raises(InputError, match=r"install (Argo CD|Flux)"):
        syncer.deploy("b")
