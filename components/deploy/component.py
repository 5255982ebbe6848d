"""deploy: serve the exported model and prove that it is the one that answers."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import model_validator

from components.core.errors import InputError
from components.core.stage import Node, Secret, Stage, s3_secrets
from components.deploy.settings.rollout_settings import STATE_DIR, GitDelivery, LocalService, Rollout, Verification
from components.deploy.settings.serving_settings import Service, ServingPods

__all__ = ["STAGE", "STATE_DIR", "DeployConfig"]


class DeployConfig(LocalService, GitDelivery, Verification, Rollout, ServingPods, Service):
    """Settings of deploy. Names and defaults are the recipe's where it has them."""

    @model_validator(mode="after")
    def _agree(self) -> DeployConfig:
        for wrong, what in (
            (self.backend == "nim-operator" and self.target != "gitops", "backend=nim-operator needs target=gitops"),
            (self._scales != bool(self.serving_max_replicas), "autoscaler and serving_max_replicas need each other"),
            (
                self._scales and self.serving_replicas >= (self.serving_max_replicas or 0),
                "serving_max_replicas must be more than serving_replicas",
            ),
            (
                self.autoscaler == "keda" and not (self.keda_prometheus_url and self.keda_query),
                "autoscaler=keda needs keda_prometheus_url and keda_query",
            ),
            (self._scales and self.strategy == "recreate", "autoscaler needs spare GPUs, strategy=recreate has none"),
            (self.strategy == "canary" and not self.gateway, "strategy=canary needs gateway"),
            (
                any(not 0 < percent < 100 for percent in self.canary_steps)
                or self.canary_steps != sorted(self.canary_steps),
                "canary_steps must rise, between 0 and 100",
            ),
            (
                self.gitops_wait != "none" and not (self.git_repository and self.gitops_application),
                "gitops_wait needs git_repository and gitops_application",
            ),
            (
                bool(self.gitops_verify_image and not self.release_prefix),
                "gitops_verify_image needs release_prefix, where the Job finds the probes",
            ),
        ):
            if wrong:
                raise ValueError(what)
        return self

    @property
    def _scales(self) -> bool:
        return self.autoscaler != "none"


def check_on_this_machine(config: DeployConfig) -> None:
    """Raises InputError for a target that a run on this machine cannot reach, before the first stage has cost anything.

    The exported model will be a directory of this machine, which no cluster reads.
    """
    if config.target != "local" and not (config.release_prefix or config.model_uri):
        raise InputError(
            f"target={config.target} serves from storage that the cluster reads, and exported_model will be a "
            f"directory here: set release_prefix, or deploy.target=local to serve on this machine"
        )
    if config.target == "kserve" and not _knows_a_cluster():
        raise InputError(
            "target=kserve needs a cluster, and there is neither a kubeconfig nor a pod's service account: "
            "set deploy.target=local to serve on this machine"
        )


def _knows_a_cluster() -> bool:
    configs = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(Path(path).is_file() for path in configs.split(os.pathsep))


STAGE = Stage(
    name="deploy",
    summary="Serve the exported model and verify it",
    config=DeployConfig,
    inputs=("deploy_bundle",),
    optional_inputs=("eval_data", "eval_results", "past_runs"),
    by_uri=("exported_model", "checkpoint"),
    outputs=("deployment",),
    results={"endpoint": str, "previous_endpoint": str, "reindex_required": bool},
    headline=("served_mean_cosine", "served_min_cosine"),
    image="cpu",
    node=Node(cpu="2", memory="4Gi"),
    # Of release_prefix and the history, where there is no workload identity, and of git_repository.
    secrets=(*s3_secrets("models-s3"), Secret(env="GIT_TOKEN", name="git-token", key="GIT_TOKEN")),
    cache=False,
    retries=0,
    check_on_this_machine=check_on_this_machine,
)
