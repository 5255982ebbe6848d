"""A release in a Git repository: one branch and one pull request for each, whatever happens on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.core.serving.bundle import read_bundle
from components.deploy.component import DeployConfig
from components.deploy.git import host as git_host
from components.deploy.publishing.publish import ModelUris
from components.deploy.result import DeployResult
from components.deploy.targets import gitops
from tests.deploy.bundles import write_bundle
from tests.deploy.git.github import GitHubApi
from tests.deploy.git.gitlab import GitLabApi
from tests.deploy.git.server import TOKEN, GitServer, running

APIS = {"github": GitHubApi, "gitlab": GitLabApi}
LIVE = "clusters/a/embed/live/service-embed-live.yaml"


class GitTeam:
    """A repository on one of the hosts, and models to deploy to it."""

    def __init__(self, server: GitServer, kind: str, directory: Path) -> None:
        self.server, self.kind, self.directory = server, kind, directory
        self.repository = server.repository

    def deploy(self, seed: int, **changes: Any) -> DeployResult:
        where = self.directory / f"bundle-{seed}"
        bundle = read_bundle(where if where.exists() else write_bundle(where, seed))
        settings: dict[str, Any] = {
            "target": "gitops", "serving_namespace": "team-a", "service_name": "embed", "git_path": "clusters/a/embed",
            "git_repository": self.server.address, "git_host": self.kind,
        }  # fmt: skip
        return gitops.deploy(DeployConfig(**settings | changes), bundle, ModelUris(f"s3://models/{seed}"))

    def live(self) -> str:
        service = yaml.safe_load(self.repository.files()[LIVE])
        return service["metadata"]["annotations"]["nemotron-embed.kubeflow.org/release"]

    def releases(self) -> set[str]:
        below = "clusters/a/embed/releases/"
        return {path.removeprefix(below).split("/")[0] for path in self.repository.files() if path.startswith(below)}


@pytest.fixture(params=APIS)
def team(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitTeam]:
    server = GitServer(APIS[request.param])
    monkeypatch.setenv("GIT_TOKEN", f"{TOKEN}\n")
    monkeypatch.setattr(git_host, "RETRIES", replace(git_host.RETRIES, first_wait=0.01))
    with running(server, tmp_path) as authority:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        yield GitTeam(server, request.param, tmp_path)


def test_a_release_is_one_branch_with_one_commit_and_one_pull_request(team: GitTeam) -> None:
    before = team.repository.files()
    deployed = team.deploy(1)
    (proposed,) = team.repository.pull_requests
    assert deployed.about["pull_request"].endswith(f"/{proposed.number}")
    assert proposed.source == f"nemotron-embed/{deployed.about['release']}"
    assert deployed.digest in proposed.text
    assert len(team.repository.log(proposed.source)) == 2
    assert team.repository.files() == before
    new = team.repository.files(proposed.source)
    assert before.items() <= new.items()
    assert all(path.startswith("clusters/a/embed/") for path in new.keys() - before.keys())
    # What kustomize builds from the root is what was rendered.
    assert _built(new, "clusters/a/embed") == sorted(_key(item) for item in deployed.objects)


def _built(files: dict[str, str], directory: str) -> list[tuple[str, str]]:
    found = []
    for resource in yaml.safe_load(files[f"{directory}/kustomization.yaml"])["resources"]:
        path = f"{directory}/{resource}"
        found += [_key(yaml.safe_load(files[path]))] if path in files else _built(files, path)
    return sorted(found)


def _key(item: dict[str, Any]) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def test_the_same_again_changes_nothing(team: GitTeam) -> None:
    first = team.deploy(1)
    commits, writes = dict(team.repository.commits), len(team.server.writes())
    again = team.deploy(1)
    assert again.about["pull_request"] == first.about["pull_request"]
    assert again.about["commit"] == ""
    assert (team.repository.commits, len(team.server.writes())) == (commits, writes)
    team.repository.merge(1)
    merged = team.deploy(1)
    assert (merged.about["pull_request"], len(team.server.writes())) == ("", writes)
    assert team.live() == first.about["release"]
    assert merged.reindex_required is False


def test_another_model_keeps_the_one_before_for_a_roll_back(team: GitTeam) -> None:
    names = []
    for number in (1, 2, 3):
        deployed = team.deploy(number)
        names.append(deployed.about["release"])
        assert deployed.reindex_required is True
        assert bool(deployed.previous_endpoint) == (number > 1)
        team.repository.merge(number)
        assert team.live() == names[-1]
    assert team.releases() == set(names[1:])
    assert _built(team.repository.files(), "clusters/a/embed")
    # Back again: a release that is still there is only made live.
    team.deploy(2)
    changed = {
        path
        for path, text in team.repository.files("nemotron-embed/" + names[1]).items()
        if team.repository.files().get(path) != text
    }
    assert changed == {LIVE}


def test_none_is_kept_when_none_is_wanted(team: GitTeam) -> None:
    team.deploy(1)
    team.repository.merge(1)
    second = team.deploy(2, keep_releases=0)
    team.repository.merge(2)
    assert team.releases() == {second.about["release"]}
    assert second.previous_endpoint == ""


def test_committed_to_the_branch_itself(team: GitTeam) -> None:
    deployed = team.deploy(1, git_pull_request=False)
    assert team.repository.log()[0] == deployed.about["commit"]
    assert len(team.repository.log()) == 2
    assert team.repository.pull_requests == []
    assert team.live() == deployed.about["release"]
    assert team.deploy(1, git_pull_request=False).about["commit"] == ""
    assert len(team.repository.log()) == 2


def test_somebody_commits_at_the_same_time(team: GitTeam) -> None:
    """Nothing of theirs is lost: the commit is made again on top of theirs."""
    others = iter(range(2))

    def meanwhile(method: str, path: str) -> None:
        if method == "GET" or not path.endswith(("/git/refs/heads/main", "/repository/commits")):
            return
        if (number := next(others, None)) is not None and team.kind == "github":
            files = team.repository.files() | {f"theirs-{number}": "x"}
            team.repository.branches["main"] = team.repository.add(files, (team.repository.branches["main"],), "theirs")

    team.server.fault = meanwhile
    deployed = team.deploy(1, git_pull_request=False)
    assert team.live() == deployed.about["release"]
    if team.kind == "github":
        assert {"theirs-0", "theirs-1"} <= team.repository.files().keys()


def test_a_branch_that_somebody_made_meanwhile_is_used(team: GitTeam) -> None:
    made: list[str] = []

    def meanwhile(method: str, path: str) -> None:
        if method == "POST" and path.endswith(("/git/refs", "/repository/commits")) and not made:
            made.append("")
            team.server.fault = lambda *_: None
            team.deploy(1)

    team.server.fault = meanwhile
    team.deploy(1)
    (proposed,) = team.repository.pull_requests
    assert len(team.repository.log(proposed.source)) == 2


def answers(status: int, body: Any, headers: dict[str, str] | None = None, *, times: int = 10**6) -> Any:
    left = [times]

    def fault(*_: str) -> tuple[int, Any, dict[str, str]] | None:
        left[0] -= 1
        return (status, body, headers or {}) if left[0] >= 0 else None

    return fault


REFUSALS: dict[str, tuple[Any, type[StageError], str]] = {
    "forbidden": (
        answers(403, {"message": "Resource not accessible by personal access token"}),
        ActionNeeded,
        "refuses the token .403 Resource not accessible.*right to write contents",
    ),
    "not found": (answers(404, {"message": "Not Found"}), InputError, "check git_repository and git_branch"),
    "moved": (
        answers(301, {}, {"Location": "https://evil.example.com/"}),
        InputError,
        "has moved to https://evil.example.com/: give the new address",
    ),
    "down": (answers(503, "<html>no</html>"), Transient, "does not answer .503 <html>no"),
    "limited for an hour": (
        answers(403, {"message": "API rate limit exceeded"}, {"x-ratelimit-remaining": "0", "retry-after": "3600"}),
        Transient,
        "rate limit exceeded.*run again later",
    ),
    "too many requests": (
        answers(429, {"message": "slow down"}, {"retry-after": "0.01"}), Transient, "429 slow down",
    ),
    "unexpected": (answers(418, {"error": "teapot"}), StageError, "418 teapot"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_what_the_host_refuses_is_said_in_one_line(
    team: GitTeam, case: tuple[Any, type[StageError], str], caplog: pytest.LogCaptureFixture
) -> None:
    team.server.fault, kind, message = case
    with pytest.raises(kind, match=message) as raised:
        team.deploy(1)
    assert "\n" not in str(raised.value)
    assert TOKEN not in f"{raised.value}{caplog.text}"
    assert team.server.writes() == []


@pytest.mark.parametrize(
    "fault",
    [
        answers(502, "bad gateway", times=2),
        answers(429, {}, {"retry-after": "0.01"}, times=3),
        answers(403, {"message": "secondary rate limit"}, {"retry-after": "0.01"}, times=2),
        answers(403, {}, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()))}, times=2),
    ],
    ids=["5xx", "429", "secondary limit", "primary limit"],
)
def test_a_host_that_is_busy_is_asked_again(team: GitTeam, fault: Any) -> None:
    team.server.fault = fault
    team.deploy(1)
    assert len(team.repository.pull_requests) == 1


def test_a_wrong_token_and_none(team: GitTeam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TOKEN", "glpat-wrong-wrong")
    with pytest.raises(ActionNeeded, match=r"refuses the token \(401") as raised:
        team.deploy(1)
    assert "glpat" not in str(raised.value)
    monkeypatch.delenv("GIT_TOKEN")
    with pytest.raises(ActionNeeded, match="needs a token: put it into the Secret git-token"):
        team.deploy(1)


def test_a_branch_that_is_not_there(team: GitTeam) -> None:
    with pytest.raises(InputError, match="has no branch prod: correct git_branch"):
        team.deploy(1, git_branch="prod")
    with pytest.raises(InputError, match="check git_repository"):
        team.deploy(1, git_repository=f"{team.server.url}/team/other")


def test_a_host_of_ones_own_is_asked_where_it_is_said(team: GitTeam) -> None:
    with pytest.raises(InputError, match=r"set git_host to the API that 127\.0\.0\.1"):
        team.deploy(1, git_host=None)
    team.deploy(
        1,
        git_repository="https://git.example.com/team/gitops",
        git_api_url=f"{team.server.url}{team.server.api.prefix}",
    )
    assert len(team.repository.pull_requests) == 1


@pytest.mark.parametrize(
    "url", ["http://github.com/a/b", "git@github.com:a/b", "https://u:p@github.com/a/b", "https://h/"]
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises((InputError, ValueError)):
        git_host.split_address(DeployConfig(target="gitops", git_repository=url).git_repository)


def test_two_at_the_same_time_leave_one_of_each(team: GitTeam) -> None:
    ended: list[BaseException | None] = []

    def deploy() -> None:
        try:
            team.deploy(1)
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    write_bundle(team.directory / "bundle-1", 1)
    threads = [threading.Thread(target=deploy) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [None] * 3
    (proposed,) = team.repository.pull_requests
    assert len(team.repository.log(proposed.source)) == 2


def test_a_job_verifies_after_each_sync(team: GitTeam) -> None:
    deployed = team.deploy(
        1,
        gitops_verify_image="registry.example.com/cpu:1",
        release_prefix="s3://models/embed",
        model_uri="s3://models/embed/x",
    )
    files = team.repository.files(team.repository.pull_requests[0].source)
    (job,) = [yaml.safe_load(text) for path, text in files.items() if "/live/job-" in path]
    assert job["metadata"]["annotations"]["argocd.argoproj.io/hook"] == "PostSync"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][:4] == ["--url", deployed.endpoint, "--model", "nemotron-embed"]
    assert container["args"][4:6] == ["--bundle", "s3://models/embed/x"]
