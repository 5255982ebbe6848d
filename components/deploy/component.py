"""deploy: serve the exported model and prove that it is the one that answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import model_validator

from components.core.errors import InputError
from components.core.stage import Node, Secret, Stage, s3_secrets
from components.deploy.settings.rollout_settings import STATE_DIR, GitDelivery, LocalService, Rollout, Verification
from components.deploy.settings.serving_settings import ModelService, ServingPods

__all__ = ["STAGE", "STATE_DIR", "DeployConfig"]


class DeployConfig(LocalService, GitDelivery, Verification, Rollout, ServingPods, ModelService):
    """Settings of deploy, listed from the last group to the first. Names and defaults are the recipe's, if it has any.

    Each group checks its own settings; here are the rules that span groups.
    """

    @model_validator(mode="after")
    def _check_scaling_strategy(self) -> Self:
        if self.is_scaled and self.strategy == "recreate":
            raise ValueError("autoscaler needs spare GPUs, strategy=recreate has none")
        return self

    @model_validator(mode="after")
    def _check_verify_job(self) -> Self:
        if self.gitops_verify_image and not self.release_prefix:
            raise ValueError("gitops_verify_image needs release_prefix, where the Job finds the probes")
        return self


def check_on_this_machine(config: DeployConfig) -> None:
    """Raise InputError for a target that a run on this machine cannot reach, before the first stage has cost anything.

    The exported model will be a directory of this machine, which no cluster reads.
    """
    if config.target != "local" and not (config.release_prefix or config.model_uri):
        raise InputError(
            f"target={config.target} serves from storage that the cluster reads, and exported_model will be a "
            f"directory here: set release_prefix, or deploy.target=local to serve on this machine"
        )
    if config.target == "kserve" and not _has_cluster():
        raise InputError(
            "target=kserve needs a cluster, and there is neither a kubeconfig nor a pod's service account: "
            "set deploy.target=local to serve on this machine"
        )


def _has_cluster() -> bool:
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
