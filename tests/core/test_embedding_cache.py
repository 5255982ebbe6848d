"""What a cache gives back is what was put in, whole, for the same model and settings; damage costs time, not truth."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from components.core.encoder.checkpoint import load_base, load_checkpoint, save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder
from components.core.errors import InputError, StageError
from components.core.retrieval.embedding_cache import EmbeddingCache, cache_space, model_digest
from components.core.retry import RetryPolicy
from tests.storage.s3_server import s3_server

TEXTS = [f"text {n} \udcff" for n in range(40)]
VECTORS = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)


def fill(uri: str, texts: list[str], space: str = "space") -> tuple[np.ndarray, list[int]]:
    vectors = np.full((len(texts), 8), np.nan, dtype=np.float32)
    return vectors, EmbeddingCache(uri, space).fill(texts, vectors)


def two_segments(uri: str) -> None:
    cache = EmbeddingCache(uri, "space")
    cache.add(TEXTS[:10], VECTORS[:10])
    cache.add(TEXTS[10:30], VECTORS[10:30])


def files(folder: Path, suffix: str = "") -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{suffix}") if path.is_file())


def check(uri: str) -> None:
    found, missing = fill(uri, [TEXTS[35], *TEXTS[5:20]])
    assert missing == [0]
    np.testing.assert_array_equal(found[1:], VECTORS[5:20])
    assert fill(uri, TEXTS, space="other")[1] == list(range(40))


def test_known_texts_are_filled_in_and_the_others_named(tmp_path: Path) -> None:
    two_segments(str(tmp_path))
    check(str(tmp_path))


def test_a_bucket_serves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        two_segments("s3://bucket/vectors")
        check("s3://bucket/vectors")
        assert len(server.objects) == 4
        server.put_status = 403
        EmbeddingCache("s3://bucket/vectors", "space").add(TEXTS[30:], VECTORS[30:])
        assert len(server.objects) == 4


def _flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-5] ^= 1
    path.write_bytes(body)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize("suffix", [".keys", ".vectors"])
@pytest.mark.parametrize("harm", [_flip, _cut, Path.unlink], ids=["a bit", "the end", "the file"])
def test_what_is_damaged_is_not_used(tmp_path: Path, suffix: str, harm: Callable[[Path], None]) -> None:
    two_segments(str(tmp_path))
    harm(files(tmp_path, suffix)[0])
    found, missing = fill(str(tmp_path), TEXTS)
    assert missing in ([*range(10), *range(30, 40)], list(range(10, 40)))
    known = sorted(set(range(40)) - set(missing))
    np.testing.assert_array_equal(found[known], VECTORS[known])


def test_vectors_of_another_dimension_are_not_used(tmp_path: Path) -> None:
    EmbeddingCache(str(tmp_path), "space").add(TEXTS, VECTORS[:, :4])
    assert fill(str(tmp_path), TEXTS)[1] == list(range(40))


def test_readers_writers_and_who_makes_room_do_not_disturb_each_other(tmp_path: Path) -> None:
    wrong: list[str] = []
    seen = [0] * 4
    done = threading.Event()

    def work(number: int) -> None:
        for start in range(60):
            rows = [(start + number + n) % 40 for n in range(12)]
            found, missing = fill(str(tmp_path), [TEXTS[row] for row in rows])
            known = sorted(set(range(12)) - set(missing))
            seen[number] += len(known)
            if not np.array_equal(found[known], VECTORS[[rows[place] for place in known]]):
                wrong.append(f"{number} at {start}")
            lacking = [rows[place] for place in missing]
            EmbeddingCache(str(tmp_path), "space").add([TEXTS[row] for row in lacking], VECTORS[lacking])

    def make_room() -> None:
        while not done.wait(0.003):
            for path in files(tmp_path)[::5]:
                path.unlink(missing_ok=True)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    cleaner = threading.Thread(target=make_room)
    for thread in (*threads, cleaner):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    cleaner.join()
    assert not wrong
    assert min(seen) > 12


def test_an_address_that_is_none_is_one_line() -> None:
    with pytest.raises(InputError, match=r"embedding_cache_uri = ftp://x: expected a directory, s3://") as raised:
        EmbeddingCache("ftp://x", "space")
    assert "\n" not in str(raised.value)


def test_a_bucket_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
    # The server is gone.
    monkeypatch.setattr("components.core.store.bucket._CLIENT_RETRIES", {"max_retries": 0})
    monkeypatch.setattr("components.core.store.bucket._RETRY_POLICY", RetryPolicy(attempts=1))
    with pytest.raises(StageError, match=r"embedding_cache_uri = s3://bucket/x: ") as raised:
        EmbeddingCache("s3://bucket/x", "space")
    assert "\n" not in str(raised.value)


def test_a_place_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no directory", encoding="utf-8")
    EmbeddingCache(str(tmp_path / "file"), "space").add(TEXTS, VECTORS)
    assert "40 vectors could not be kept" in caplog.text


def spaces(encoder: Encoder) -> set[str]:
    digest = model_digest(encoder)
    return {cache_space(encoder, "passage", digest), cache_space(encoder, "query", digest)}


def test_all_that_a_vector_depends_on_is_in_its_key(tmp_path: Path, tiny: EncoderConfig) -> None:
    encoder = load_base(tiny)
    known = spaces(encoder)
    assert len(known) == 2
    changes = {"passage_prefix": "p: ", "passage_max_length": 8, "pooling": "cls", "l2_normalize": False}
    for name, value in changes.items():
        encoder.config = tiny.model_copy(update={name: value})
        assert cache_space(encoder, "passage", model_digest(encoder)) not in known, name
    encoder.config = tiny
    assert spaces(load_base(tiny, dtype=torch.bfloat16)).isdisjoint(known)
    encoder.tokenize(["a text"], "passage")
    assert spaces(encoder) == known
    encoder.tokenizer.add_tokens(["newword"])
    assert spaces(encoder).isdisjoint(known)
    changed = load_base(tiny)
    with torch.no_grad():
        next(changed.backbone.encoder.parameters())[0, 0] += 1e-3
    assert spaces(changed).isdisjoint(known)


def test_a_copy_of_the_model_elsewhere_is_the_same_model(tmp_path: Path, tiny: EncoderConfig) -> None:
    encoder = load_base(tiny)
    save_checkpoint(encoder, tmp_path / "copy")
    assert spaces(load_checkpoint(tmp_path / "copy")) == spaces(encoder)
