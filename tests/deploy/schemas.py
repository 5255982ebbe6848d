"""Objects against the schemas of KServe, KFP and other operators, unknown fields refused as the API server does.

The schemas are theirs: KSERVE_CRDS names the directory that holds KServe's, ``config/crd/full`` of kserve/kserve,
KFP_CRDS that of KFP's, ``manifests/kustomize/base/crds`` of kubeflow/pipelines, and OPERATOR_CRDS one with copies of
the files below. Without them nothing is checked by them, and the tests that need them are skipped.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

DIRECTORY = os.environ.get("KSERVE_CRDS")
KFP_DIRECTORY = os.environ.get("KFP_CRDS")
KFP_FILES = {
    "Pipeline": "pipelines.kubeflow.org_pipelines.yaml",
    "PipelineVersion": "pipelines.kubeflow.org_pipelineversions.yaml",
}
FILES = {
    "InferenceService": "serving.kserve.io_inferenceservices.yaml",
    "ServingRuntime": "serving.kserve.io_servingruntimes.yaml",
    # Of k8s-nim-operator, config/crd/bases; copy it beside the others.
    "NIMService": "apps.nvidia.com_nimservices.yaml",
}
OPERATOR_DIRECTORY = os.environ.get("OPERATOR_CRDS")
OPERATOR_FILES = {
    # prometheus-operator/prometheus-operator, example/prometheus-operator-crd
    "PodMonitor": "monitoring.coreos.com_podmonitors.yaml",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
    # external-secrets/external-secrets, config/crds/bases
    "ExternalSecret": "external-secrets.io_externalsecrets.yaml",
    # kubernetes-sigs/kueue, config/components/crd/bases
    "LocalQueue": "kueue.x-k8s.io_localqueues.yaml",
    # kubeflow/trainer, manifests/base/crds
    "TrainJob": "trainer.kubeflow.org_trainjobs.yaml",
    # argoproj/argo-cd, manifests/crds
    "Application": "application-crd.yaml",
    # fluxcd/kustomize-controller and fluxcd/source-controller, config/crd/bases
    "Kustomization": "kustomize.toolkit.fluxcd.io_kustomizations.yaml",
    "GitRepository": "source.toolkit.fluxcd.io_gitrepositories.yaml",
}
operators_needed = pytest.mark.skipif(not OPERATOR_DIRECTORY, reason="set OPERATOR_CRDS to a folder of operators' CRDs")
kfp_needed = pytest.mark.skipif(not KFP_DIRECTORY, reason="set KFP_CRDS to manifests/kustomize/base/crds of KFP")
needed = pytest.mark.skipif(not DIRECTORY, reason="set KSERVE_CRDS to config/crd/full of kserve/kserve")


def problems(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and message of everything in ``body`` that its schema refuses; nothing for kinds without one."""
    for directory, files in ((DIRECTORY, FILES), (KFP_DIRECTORY, KFP_FILES), (OPERATOR_DIRECTORY, OPERATOR_FILES)):
        path = Path(directory or "") / files.get(body["kind"], "")
        if directory and path.is_file():
            validator = _validators(path).get(body["apiVersion"])
            if validator is None:
                yield ".apiVersion", f"{body['apiVersion']} is not served"
                return
            for error in validator.iter_errors(body):
                yield "".join(f".{part}" for part in error.path), error.message


@functools.cache
def _validators(path: Path) -> dict[str, Draft202012Validator]:
    """A validator for each version that is served, by apiVersion."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["spec"]
    return {
        f"{definition['group']}/{version['name']}": _validator(version["schema"]["openAPIV3Schema"])
        for version in definition["versions"]
        if version["served"]
    }


def _validator(schema: dict[str, Any]) -> Draft202012Validator:
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(_strict(schema) | {"additionalProperties": False})


def _strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as JSON Schema: what it does not name is refused."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: _strict(value) for key, value in schema.items()}
    if "properties" in schema:
        strict["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    return strict
