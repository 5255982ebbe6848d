"""Settings of deploy: how a release replaces another, how it is verified, and where it is written or runs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from components.core.settings import Settings, setting

STATE_DIR = "~/.local/state/nemotron-embed"


class Rollout(Settings):
    """How a release replaces another in the cluster."""

    strategy: Literal["bluegreen", "recreate", "canary"] = setting(
        "bluegreen",
        "`bluegreen` starts a release beside the old one; `recreate` stops the old one first, for clusters without a "
        "spare GPU: until the new one is verified, or the old one runs again, nobody answers; `canary` gives a release "
        "of the same weights a growing share of the requests first",
    )
    canary_steps: list[int] = setting([5, 25, 50], "Percentage of requests that a canary gets, step by step")
    canary_step_seconds: float = setting(60.0, "Seconds for which each step is watched", ge=0)
    gateway: str = setting(
        "",
        "Gateway API's Gateway that splits requests for `canary`: NAMESPACE/NAME",
        pattern=r"^$|^[a-z0-9-]+/[a-z0-9.-]+$",
    )
    gateway_host: str = setting(
        "", "Host name of the service at the gateway; empty accepts every host", pattern=r"^[a-z0-9.-]*$"
    )
    rollout_timeout: float = setting(1800.0, "Seconds until a release must be ready in the cluster", gt=0)
    schedule_timeout: float = setting(600.0, "Seconds that a pod may wait for a node", ge=0)
    failure_patience: float = setting(120.0, "Seconds for which pulling an image or creating a pod may fail", ge=0)
    health_check_interval: float = setting(5.0, "Seconds between two checks of a release that is starting", gt=0)
    soak_seconds: float = setting(60.0, "Seconds for which a release is watched after the switch", ge=0)
    keep_releases: int = setting(1, "Earlier releases that keep running, ready for a roll-back", ge=0)
    kserve_mode: Literal["Standard", "RawDeployment"] = setting(
        "Standard", "KServe's name for plain Deployments: `RawDeployment` before 0.16 and on OpenShift AI"
    )
    cluster_domain: str = setting("cluster.local", "DNS domain of the cluster", min_length=1)

    @model_validator(mode="after")
    def _check_canary(self) -> Self:
        if self.strategy == "canary" and not self.gateway:
            raise ValueError("strategy=canary needs gateway")
        is_rising = self.canary_steps == sorted(self.canary_steps)
        if not is_rising or any(not 0 < percent < 100 for percent in self.canary_steps):
            raise ValueError("canary_steps must rise, between 0 and 100")
        return self


class Verification(Settings):
    """What a release must show beside its vectors."""

    latency_budget_ms: float | None = setting(
        None, "Milliseconds within which 95 % of short queries must be answered; null only measures", gt=0
    )
    eval_max_passages: int = setting(
        5000,
        "Largest test set, in passages, that is searched through the service to compare nDCG@10 with the "
        "checkpoint's; 0 never does",
        ge=0,
    )


class GitDelivery(Settings):
    """Where target=gitops writes."""

    git_repository: str = setting(
        "",
        "Repository to which the objects are committed, as https://HOST/OWNER/NAME; empty only writes them as files",
        pattern=r"^$|^https://[^\s@{}]+$",
    )
    git_host: Literal["github", "gitlab"] | None = setting(
        None, "API of the host; null recognises github.com, and hosts with gitlab in their name"
    )
    git_api_url: str = setting(
        "", "API of a host of your own, if it is not at the usual address", pattern=r"^$|^https://[^\s@{}]+$"
    )
    git_branch: str = setting("main", "Branch that Argo CD or Flux follows", pattern=r"^[\w][\w./-]*$")
    git_path: str = setting(
        "nemotron-embed", "Directory of the service in the repository", pattern=r"^[\w][\w.-]*(/[\w][\w.-]*)*$"
    )
    git_pull_request: bool = setting(True, "Open a pull request; false commits to git_branch itself")
    gitops_wait: Literal["none", "argocd", "flux"] = setting(
        "none", "Wait until the release is merged and synced, then verify it, and only then make it live"
    )
    gitops_timeout: float = setting(3600.0, "Seconds until a change must be merged and synced", gt=0)
    gitops_verify_image: str = setting(
        "",
        "This project's image `cpu`, for a Job that verifies the live service after each sync (Argo CD's "
        "PostSync hook); needs release_prefix. Empty creates no Job",
        pattern=r"^$|^[^\s{}]+$",
    )
    gitops_application: str = setting(
        "",
        "The Application or Kustomization that syncs git_path: NAMESPACE/NAME",
        pattern=r"^$|^[a-z0-9-]+/[a-z0-9.-]+$",
    )

    @model_validator(mode="after")
    def _check_gitops_wait(self) -> Self:
        if self.gitops_wait != "none" and not (self.git_repository and self.gitops_application):
            raise ValueError("gitops_wait needs git_repository and gitops_application")
        return self


class LocalService(Settings):
    """The target local."""

    host: str = setting("127.0.0.1", "Address on which the local server listens")
    host_port: int = setting(8000, "Port of the local service; 0 chooses a free one", ge=0, le=65535)
    health_check_timeout: float = setting(120.0, "Seconds until the local service must be ready", gt=0)
    detach: bool = setting(True, "Leave the local server running when the stage ends")
    state_dir: str = setting(STATE_DIR, "Where the local service keeps its releases, log and process id", min_length=1)
