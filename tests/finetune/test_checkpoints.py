"""Only a whole state of the same run is continued from, whatever happened to the storage."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch

from components.core.errors import ActionNeeded, InputError
from components.core.store import Store, open_store
from components.finetune.resume.autosave import Autosave
from components.finetune.resume.checkpoints import Checkpoints, Saved
from tests.storage.s3_server import S3Server, s3_server
from tests.waiting import SleepClock

IDENTITY = {"settings": {"learning_rate": 1e-5, "seed": 1}, "training_data": "a" * 64}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "states")
    request.getfixturevalue("bucket")
    return "s3://bucket/team/states"


def checkpoints(storage: Store, keep: int = 2, **changed: Any) -> Checkpoints:
    return Checkpoints(storage, {**IDENTITY, **changed}, keep=keep, where="states")


def tensors(step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {
        "weights.a": torch.randn(3, 4, generator=draw),
        "optimizer.step.a": torch.tensor(float(step)),
        "random.cpu": torch.arange(8, dtype=torch.uint8),
        "weights.none": torch.empty(0, 4),
    }


def save(to: Checkpoints, *steps: int) -> None:
    for step in steps:
        to.save(step, tensors(step), {"done": list(range(step)), "rate": 0.1})


def assert_is(saved: Saved | None, step: int) -> None:
    assert saved is not None and saved.step == step
    assert saved.about == {"done": list(range(step)), "rate": 0.1}
    expected = tensors(step)
    assert set(saved.tensors) == set(expected)
    assert all(torch.equal(saved.tensors[name], expected[name]) for name in expected)


def state_files(storage: Store) -> list[str]:
    return [name for name in storage.list_names() if name.count("/") == 2]


def test_the_newest_state_comes_back_as_it_was_and_the_last_two_are_kept(uri: str) -> None:
    storage = open_store(uri, setting="checkpoint_uri")
    first = checkpoints(storage)
    assert first.newest() is None
    save(first, 3, 9, 12, 100)
    assert_is(checkpoints(open_store(uri, setting="checkpoint_uri")).newest(), 100)
    assert sorted({int(name.split("/")[1].split("-")[1]) for name in state_files(storage)}) == [12, 100]


def test_a_later_attempt_removes_what_earlier_ones_left(uri: str) -> None:
    storage = open_store(uri, setting="checkpoint_uri")
    save(checkpoints(storage), 5, 6)
    run = checkpoints(storage).run
    storage.write(f"{run}/step-00000007-0000abcd/tensors-00000.safetensors", b"never finished")
    again = checkpoints(storage, keep=1)
    assert_is(again.newest(), 6)
    save(again, 8)
    assert {name.split("/")[1].split("-")[1] for name in state_files(storage)} == {"00000008"}


def test_two_attempts_at_once_leave_a_whole_state(uri: str) -> None:
    """As when a node is cut off and its pod is started elsewhere before it is gone."""
    storage = open_store(uri, setting="checkpoint_uri")
    one, other = checkpoints(storage), checkpoints(open_store(uri, setting="checkpoint_uri"), keep=1)
    for step in range(1, 9):
        save(one if step % 3 else other, step)
        if step % 2:
            save(other, step)
        assert_is(checkpoints(storage).newest(), step)


def test_large_objects_are_read_in_parts(bucket: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_store("s3://bucket/states", setting="checkpoint_uri")
    monkeypatch.setattr(storage, "_store", obstore.store.MemoryStore())
    monkeypatch.setattr("components.core.store.bucket._PART_BYTES", 1000)
    body = random.Random(1).randbytes(7321)
    storage.write("run/part", body)
    assert storage.read("run/part") == body
    assert storage.list_names("run/") == ["run/part"]
    storage.delete(["run/part", "run/part"])
    assert storage.list_names() == []


def test_files_are_as_large_as_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.finetune.resume.checkpoints._FILE_BYTES", 40)
    storage = open_store(str(tmp_path), setting="checkpoint_uri")
    save(checkpoints(storage), 4)
    assert len([name for name in state_files(storage) if name.endswith(".safetensors")]) == 2
    assert_is(checkpoints(storage).newest(), 4)


def test_a_flipped_bit_anywhere_in_a_state_is_found(tmp_path: Path) -> None:
    """Whitespace of the manifest is the only thing that may change without a difference."""
    storage = open_store(str(tmp_path), setting="checkpoint_uri")
    mine = checkpoints(storage)
    save(mine, 4, 7)
    draw = random.Random(0)
    newest = [name for name in state_files(storage) if "step-00000007" in name]
    assert len(newest) == 3
    fell_back = 0
    for name in newest:
        body = storage.read(name)
        for _ in range(60):
            place = draw.randrange(len(body))
            flipped = bytes([body[place] ^ 1 << draw.randrange(8)])
            (tmp_path / name).write_bytes(body[:place] + flipped + body[place + 1 :])
            found = mine.newest()
            assert found is not None
            assert_is(found, found.step)
            fell_back += found.step == 4
            if not name.endswith("manifest.json"):
                assert found.step == 4
        storage.write(name, body)
    assert fell_back > 160
    assert_is(checkpoints(storage).newest(), 7)


@pytest.mark.parametrize("kept", ["manifest.json", "state.json", "tensors-00000.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_state_cut_short_is_passed_over(uri: str, kept: str, share: float) -> None:
    storage = open_store(uri, setting="checkpoint_uri")
    save(checkpoints(storage), 4, 7)
    name = next(name for name in state_files(storage) if "step-00000007" in name and name.endswith(kept))
    body = storage.read(name)
    storage.write(name, body[: int(len(body) * share)])
    assert_is(checkpoints(storage).newest(), 4)


@pytest.mark.parametrize("missing", ["manifest.json", "state.json", "tensors-00000.safetensors"])
def test_a_state_that_lacks_a_file_is_passed_over(uri: str, missing: str, caplog: pytest.LogCaptureFixture) -> None:
    storage = open_store(uri, setting="checkpoint_uri")
    save(checkpoints(storage), 4, 7)
    storage.delete([name for name in state_files(storage) if "step-00000007" in name and name.endswith(missing)])
    assert_is(checkpoints(storage).newest(), 4)
    assert "step-00000007" in caplog.text and "not continued from" in caplog.text


def test_a_whole_state_under_another_name_or_run_is_no_state_of_this_run(tmp_path: Path) -> None:
    storage = open_store(str(tmp_path), setting="checkpoint_uri")
    other = checkpoints(storage, training_data="b" * 64)
    save(other, 9)
    mine = checkpoints(storage)
    for name in state_files(storage):
        storage.write(name.replace(other.run, mine.run), storage.read(name))
    assert mine.newest() is None


def test_the_log_says_what_tells_another_run_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "components")
    storage = open_store(str(tmp_path), setting="checkpoint_uri")
    save(checkpoints(storage, settings={"learning_rate": 2e-5, "seed": 1}), 9)
    save(checkpoints(storage, settings={"learning_rate": 2e-5, "seed": 2}, training_data="b" * 64), 9)
    assert checkpoints(storage).newest() is None
    assert "another run (learning_rate was 2e-05, is 1e-05)" in caplog.text
    assert checkpoints(storage, training_data="c" * 64, settings={"learning_rate": 2e-5, "seed": 1}).newest() is None
    assert "another run (other training data)" in caplog.text


def test_a_storage_that_cannot_be_written_is_refused_before_training(
    bucket: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put_status = 403
    with pytest.raises(ActionNeeded, match="checkpoint_uri = states: access is refused"):
        checkpoints(open_store("s3://bucket/states", setting="checkpoint_uri"))
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(ActionNeeded, match=r"checkpoint_uri = states: .*check that the directory"):
        checkpoints(open_store(str(tmp_path / "file"), setting="checkpoint_uri"))
    for uri in ("ftp://host/states", "s3://", "https://bucket"):
        with pytest.raises(InputError, match="checkpoint_uri = "):
            open_store(uri, setting="checkpoint_uri")


def test_a_save_that_fails_leaves_the_earlier_state(bucket: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    storage = open_store("s3://bucket/states", setting="checkpoint_uri")
    autosave = Autosave(mine := checkpoints(storage), seconds=None, steps=1)
    autosave.save(3, lambda: (tensors(3), {"done": [0, 1, 2], "rate": 0.1}))
    assert autosave.wait()
    bucket.put_status = 403
    autosave.save(5, lambda: (tensors(5), {}))
    assert not autosave.wait()
    assert "could not be saved" in caplog.text
    bucket.put_status = None
    assert_is(mine.newest(), 3)
    autosave.save(5, lambda: (tensors(5), {"done": [0, 1, 2, 3, 4], "rate": 0.1}))
    autosave.close()
    assert_is(mine.newest(), 5)


def test_states_are_due_by_time_and_by_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = checkpoints(open_store(str(tmp_path), setting="checkpoint_uri"))
    every = Autosave(mine, seconds=None, steps=3)
    assert [step for step in range(1, 10) if every.due(step)] == [3, 6, 9]
    clock = SleepClock()
    monkeypatch.setattr("components.finetune.resume.autosave.time", clock)
    timed = Autosave(mine, seconds=20.0, steps=None)
    clock.sleep(19.0)
    assert not timed.due(1)
    clock.sleep(2.0)
    assert timed.due(2)
    timed.save(2, lambda: (tensors(2), {}))
    assert not timed.due(3)
    timed.close()
    assert not Autosave(None, seconds=1e-9, steps=1).due(1)
