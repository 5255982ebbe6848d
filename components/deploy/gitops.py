"""The target `gitops`: the objects as files, for Argo CD or Flux to apply. Nothing is applied or verified here."""

from __future__ import annotations

import logging

from components.core.bundle import Bundle
from components.core.errors import InputError
from components.core.model_manifest import CHECKPOINT_FOLDER
from components.deploy.backends import Contract, contract
from components.deploy.component import DeployConfig
from components.deploy.deployed import Deployed
from components.deploy.render import Release, live_name, live_service, render, service_url
from components.deploy.storage import publish, served_uri

_log = logging.getLogger(__name__)


def deploy(config: DeployConfig, bundle: Bundle, source: str) -> Deployed:
    """The objects of the release and the Service that makes it live.

    Raises InputError for settings that contradict each other or the model.
    """
    if not config.serving_namespace:
        raise InputError("target=gitops writes objects for a namespace: set serving_namespace")
    how = contract(config)
    uri = model_uri(config, bundle, how, source)
    release = render(config, bundle, how, model_uri=uri, namespace=config.serving_namespace)
    _log.info("wrote the objects of %s: commit deployment/manifests, then verify the endpoint", release.name)
    return Deployed(
        service_url(live_name(release.service), release.namespace, config.cluster_domain),
        release.model_digest,
        reindex_required=True,
        objects=[*release.objects, live_service(release)],
        about=about(release, uri),
    )


def model_uri(config: DeployConfig, bundle: Bundle, how: Contract, source: str) -> str:
    """Where the cluster reads the model, copied to ``release_prefix`` when there is one.

    Raises InputError for a place that a cluster cannot read, ActionNeeded when the copy fails.
    """
    if config.model_uri:
        return served_uri(config.model_uri)
    form = bundle.manifest.model_format
    if how.serves == "checkpoint" and form != "checkpoint":
        raise InputError(
            f"{config.serving_image} serves a checkpoint, not the exported ONNX model: set export.enabled=false or "
            f"model_uri to the checkpoint's URI, or give a NIM 1.x"
        )
    uri = publish(source, bundle.manifest, config.release_prefix) if config.release_prefix else served_uri(source)
    return f"{uri}/{CHECKPOINT_FOLDER}" if form == "checkpoint" else uri


def about(release: Release, uri: str) -> dict[str, str]:
    """What people want to know of a release in a cluster."""
    return {
        "release": release.name,
        "namespace": release.namespace,
        "model_uri": uri,
        "checkpoint_digest": release.checkpoint_digest,
    }
