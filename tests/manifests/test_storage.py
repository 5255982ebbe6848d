"""Every `kfp-launcher` ConfigMap, in the overlays and in the documentation, says only what KFP's launcher reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# kubeflow/pipelines backend/src/v2/config: s3.go, minio.go, gcs.go. True stands for a value, a dictionary for a struct.
_S3_SECRET = {"secretName": True, "accessKeyKey": True, "secretKeyKey": True}
_S3 = {
    "endpoint": True, "region": True, "disableSSL": True, "forcePathStyle": True,
    "credentials": {"fromEnv": True, "secretRef": _S3_SECRET},
}  # fmt: skip
_GS = {"credentials": {"fromEnv": True, "secretRef": {"secretName": True, "tokenKey": True}}}
_WHICH = {"bucketName": True, "keyPrefix": True}
PROVIDERS = {
    name: {"default": place, "Overrides": [{**_WHICH, **place}]}
    for name, place in (("s3", _S3), ("minio", _S3), ("gs", _GS))
}


def config_maps() -> list[Any]:
    documented = (ROOT / "docs" / "storage.md").read_text(encoding="utf-8")
    texts = {f"docs/storage.md {n}": text for n, text in enumerate(re.findall(r"```yaml\n(.*?)```", documented, re.S))}
    files = sorted((ROOT / "manifests").rglob("kfp-launcher.yaml"))
    texts |= {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    assert len(texts) >= 5
    return [pytest.param(yaml.safe_load(text), id=name) for name, text in texts.items()]


@pytest.mark.parametrize("found", config_maps())
def test_a_launchers_settings_are_ones_that_it_reads(found: dict[str, Any]) -> None:
    assert (found["kind"], found["metadata"]["name"]) == ("ConfigMap", "kfp-launcher")
    providers = yaml.safe_load(found["data"]["providers"])
    _check(providers, PROVIDERS, "providers")
    scheme = found["data"]["defaultPipelineRoot"].partition("://")[0]
    assert scheme in providers
    for provider in providers.values():
        for place in [provider["default"], *provider.get("Overrides", [])]:
            # Either an identity or a Secret, never a key in clear.
            assert place["credentials"]["fromEnv"] is not ("secretRef" in place["credentials"])


def _check(found: Any, known: Any, where: str) -> None:
    if isinstance(known, dict):
        assert set(found) <= set(known), where
        for name, value in found.items():
            _check(value, known[name], f"{where}.{name}")
    elif isinstance(known, list):
        for value in found:
            _check(value, known[0], where)
    else:
        assert isinstance(found, str | bool), where
