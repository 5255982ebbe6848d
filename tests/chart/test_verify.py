"""`helm test` says whether the model that is served is the one of the bundle: its own command, against real sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.core.serving.bundle import BUNDLE_FILES, read_bundle
from components.deploy.verify import main
from tests.chart.rendering import objects, one
from tests.deploy.bundles import write_bundle
from tests.deploy.service import Service, serving
from tests.storage.s3_server import s3_server


def base_model(service: Service, request: dict[str, Any], _: np.ndarray) -> np.ndarray:
    return np.stack([service.vector(request["input_type"], text, service.base) for text in request["input"]])


@pytest.mark.parametrize(("fault", "code"), [(None, 0), (base_model, 3)])
def test_the_test_pod_reads_the_bundle_from_its_uri(
    fault: Any, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_bundle(tmp_path / "bundle", 1)
    with s3_server() as bucket, serving(Service(read_bundle(directory), fault)) as url:
        bucket.objects = {f"models/embed/{name}": (directory / name).read_bytes() for name in BUNDLE_FILES}
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        pod = one(objects({"verify": {"url": url, "model": "embed", "bundle": "s3://models/embed"}}), "Pod")
        (container,) = pod["spec"]["containers"]
        assert container["command"] == ["python", "-m", "components.deploy.verify"]
        assert {name for name in bucket.environment if name != "AWS_REGION"} <= {i["name"] for i in container["env"]}
        assert main(container["args"]) == code


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("s3://models/nothing", "is no deploy bundle"),
        ("ftp://models/x", "expected a directory"),
        ("no", "model-manifest"),
    ],
)
def test_a_bundle_that_is_not_there_is_one_line(
    where: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with s3_server() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        assert main(["--url", "http://127.0.0.1:9", "--model", "embed", "--bundle", where]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
