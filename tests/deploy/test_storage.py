"""A release is copied whole to a place of its own, or not at all; every byte is checked on its way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from components.core.artifacts import seal
from components.core.errors import ActionNeeded, InputError
from components.core.serving.bundle import BUNDLE_FILES, read_bundle
from components.core.serving.model_manifest import ModelManifest, compute_digest, hash_files, read_model_manifest
from components.deploy.backends.images import select_contract
from components.deploy.component import DeployConfig
from components.deploy.publishing.publish import ModelUris, publish_checkpoint, publish_export, publish_model
from components.deploy.publishing.storage import load_bundle, to_served_uri
from components.deploy.targets import kserve
from tests.deploy.bundles import write_bundle
from tests.deploy.conftest import Team
from tests.deploy.service import Service
from tests.storage.s3_server import S3Server, s3_server

PREFIX = "s3://models/embed"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with real files, the bundle's among them."""
    directory = write_bundle(tmp_path / "model", 1)
    (directory / "onnx").mkdir()
    (directory / "onnx" / "model.onnx").write_bytes(b"graph" * 1000)
    (directory / "onnx" / "model.onnx.data").write_bytes(bytes(range(256)) * 40_000)
    files = hash_files(directory, ["onnx/model.onnx", "onnx/model.onnx.data", "encoder.json"])
    manifest = json.loads((directory / "model-manifest.json").read_text())
    described = {name: file.model_dump() for name, file in files.items()}
    ModelManifest(**manifest | {"files": described, "digest": compute_digest(files)}).write(directory)
    return directory


def uploaded(bucket: S3Server) -> dict[str, bytes]:
    return {key.removeprefix("models/"): body for key, body in bucket.objects.items()}


def test_a_directory_is_copied_under_its_digest(model: Path, bucket: S3Server) -> None:
    manifest = read_model_manifest(model)
    uri = publish_export(str(model), manifest, PREFIX)
    assert uri == f"s3://models/embed/sha256-{manifest.digest}"
    names = {*manifest.files, *BUNDLE_FILES}
    expected = {f"embed/sha256-{manifest.digest}/{name}": (model / name).read_bytes() for name in names}
    assert uploaded(bucket) == expected
    # The manifest last: what has one is whole.
    assert list(bucket.objects)[-1].endswith("model-manifest.json")


def test_a_release_is_copied_from_the_runs_own_storage_and_once(model: Path, bucket: S3Server) -> None:
    manifest = read_model_manifest(model)
    for path in model.rglob("*"):
        if path.is_file():
            bucket.objects[f"mlpipeline/v2/m/{path.relative_to(model).as_posix()}"] = path.read_bytes()
    uri = publish_export("minio://mlpipeline/v2/m", manifest, "s3://models/embed/")
    copied = {key: body for key, body in bucket.objects.items() if key.startswith("models/")}
    assert len(copied) == len({*manifest.files, *BUNDLE_FILES})
    bucket.put_status = 500
    assert publish_export("minio://mlpipeline/v2/m", manifest, PREFIX) == uri


def test_a_changed_byte_publishes_nothing(model: Path, bucket: S3Server) -> None:
    manifest = read_model_manifest(model)
    body = bytearray((model / "onnx/model.onnx.data").read_bytes())
    body[5000] ^= 1
    (model / "onnx/model.onnx.data").write_bytes(body)
    with pytest.raises(InputError, match=r"onnx/model.onnx.data does not have the sha256"):
        publish_export(str(model), manifest, PREFIX)
    assert not any(key.endswith(("model-manifest.json", "model.onnx.data")) for key in bucket.objects)
    assert bucket.parts == {}


def test_another_model_is_refused(model: Path, bucket: S3Server, tmp_path: Path) -> None:
    other = read_model_manifest(write_bundle(tmp_path / "other", 2))
    with pytest.raises(InputError, match="is not the model of deploy_bundle"):
        publish_export(str(model), other, PREFIX)
    with pytest.raises(InputError, match="is not whole"):
        publish_export("s3://models/nothing/here", other, PREFIX)
    assert bucket.objects == {}


def test_a_bucket_that_refuses_is_named(model: Path, bucket: S3Server) -> None:
    bucket.put_status = 403
    with pytest.raises(ActionNeeded, match=r"copy of .* to s3://models/embed/sha256-.*models-s3.*access is refused"):
        publish_export(str(model), read_model_manifest(model), PREFIX)


@pytest.mark.parametrize(
    ("uri", "served"),
    [
        ("minio://mlpipeline/v2/artifacts/m", "s3://mlpipeline/v2/artifacts/m"),
        ("s3://bucket/m/?region=eu", "s3://bucket/m"),
        ("gs://bucket/m", "gs://bucket/m"),
        ("pvc://claim/m", "pvc://claim/m"),
        ("oci://registry.example.com/m:1", "oci://registry.example.com/m:1"),
        ("hf://team/model", "hf://team/model"),
    ],
)
def test_uris_as_kserve_knows_them(uri: str, served: str) -> None:
    assert to_served_uri(uri) == served


@pytest.mark.parametrize("uri", ["/work/exported_model", "file:///m", "ftp://host/m", "exported_model"])
def test_places_that_a_cluster_cannot_read(uri: str) -> None:
    with pytest.raises(InputError, match="set release_prefix"):
        to_served_uri(uri)


def test_the_copy_is_what_is_served(team: Team, model: Path, bucket: S3Server) -> None:
    bundle = read_bundle(model)
    team.cluster.serves = lambda _: Service(bundle, name="team/embed")
    kserve.deploy(team.config(release_prefix=PREFIX), bundle, ModelUris(str(model)))
    (release,) = team.releases()
    predictor = team.cluster.store.objects["inferenceservices", release]["spec"]["predictor"]
    assert predictor["model"]["storageUri"] == f"s3://models/embed/sha256-{bundle.manifest.digest}"


@pytest.fixture
def checkpoint(tmp_path: Path, model: Path) -> Path:
    """A checkpoint that a stage sealed; ``model``'s bundle proves it."""
    directory = tmp_path / "checkpoint"
    (directory / "1_Pooling").mkdir(parents=True)
    for name, content in (("model.safetensors", b"w" * 5000), ("config.json", b"{}"), ("1_Pooling/config.json", b"{}")):
        (directory / name).write_bytes(content)
    shutil.copy(model / "encoder.json", directory)
    files = hash_files(directory, ["model.safetensors", "config.json", "1_Pooling/config.json", "encoder.json"])
    seal(directory, "checkpoint")
    described = json.loads((model / "model-manifest.json").read_text()) | {"checkpoint_digest": compute_digest(files)}
    ModelManifest(**described).write(model)
    return directory


def test_a_checkpoint_is_copied_with_what_proves_it(model: Path, checkpoint: Path, bucket: S3Server) -> None:
    bundle = read_bundle(model)
    uri = publish_checkpoint(str(checkpoint), bundle, PREFIX)
    assert uri == f"{PREFIX}/sha256-{bundle.manifest.checkpoint_digest}"
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    found = {key.partition("/sha256-")[2].partition("/")[2]: body for key, body in uploaded(bucket).items()}
    assert set(found) == names | set(BUNDLE_FILES)
    assert all(found[name] == (checkpoint / name).read_bytes() for name in names)
    assert list(bucket.objects)[-1].endswith("/manifest.json")
    again = load_bundle(uri)
    assert (again.manifest, again.probes) == (bundle.manifest, bundle.probes)
    np.testing.assert_array_equal(again.tuned, bundle.tuned)
    bucket.put_status = 500
    assert publish_checkpoint(str(checkpoint), bundle, PREFIX) == uri


def test_a_checkpoint_that_is_another_or_changed_is_refused(
    model: Path, checkpoint: Path, bucket: S3Server, tmp_path: Path
) -> None:
    other = read_bundle(write_bundle(tmp_path / "other", 2))
    with pytest.raises(InputError, match="is not the checkpoint of deploy_bundle"):
        publish_checkpoint(str(checkpoint), other, PREFIX)
    (checkpoint / "model.safetensors").write_bytes(b"v" * 5000)
    with pytest.raises(InputError, match=r"model\.safetensors does not have the sha256 of manifest\.json"):
        publish_checkpoint(str(checkpoint), read_bundle(model), PREFIX)
    assert not any(key.endswith("/manifest.json") for key in bucket.objects)


def test_servers_of_checkpoints_are_given_the_checkpoint(model: Path) -> None:
    config = DeployConfig(backend="vllm")
    how, bundle = select_contract(config), read_bundle(model)
    assert (
        publish_model(config, bundle, how, ModelUris("s3://b/exported", "minio://b/checkpoint")) == "s3://b/checkpoint"
    )
    with pytest.raises(InputError, match="vLLM serves the artifact checkpoint: give its URI"):
        publish_model(config, bundle, how, ModelUris("s3://b/exported"))
    elsewhere = config.model_copy(update={"model_uri": "pvc://claim/path"})
    assert publish_model(elsewhere, bundle, how, ModelUris("")) == "pvc://claim/path"
