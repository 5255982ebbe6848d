"""Corpora that sdg reads itself: from buckets, from the hub, several with weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.__main__ import main
from components.core.errors import ActionNeeded, InputError, Transient
from components.sdg.component import SdgConfig
from components.sdg.read.corpus import read_corpus
from components.sdg.read.sources import open_sources
from tests.sdg.hub_server import HubServer, hub_server
from tests.sdg.llm_server import LlmServer, llm_server
from tests.storage.s3_server import S3Server, s3_server

COMMIT = HubServer.commit
HUB = f"hf://team/docs@{COMMIT}"


def prose(name: str, sentences: int = 12) -> str:
    return " ".join(f"Sentence {n} of {name} is about part{n}of{name}." for n in range(sentences))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        # Google's storage, too: it lists and reads as S3 does.
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.environment["AWS_ENDPOINT_URL"])
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmServer]:
    monkeypatch.setenv("NVIDIA_API_KEY", "nvapi-canary-sources")
    with llm_server() as server:
        yield server


def read(*sources: dict[str, Any], corpus: Path | None = None, **settings: Any) -> dict[str, str]:
    config = SdgConfig(sources=list(sources), **settings)
    with open_sources(config, corpus) as places:
        return {document.source_id: document.text for document in read_corpus(places, config).documents}


@pytest.mark.parametrize(
    "uri", ["s3://docs/handbook", "minio://docs/handbook/", "gs://docs/handbook", HUB + "/handbook"]
)
def test_a_corpus_elsewhere_is_read_as_the_same_files_here(
    bucket: S3Server, hub: HubServer, tmp_path: Path, uri: str
) -> None:
    files = {f"{n}.md": prose(f"text{n}") for n in range(3)} | {"deep/er/ü x.txt": prose("deep"), ".hidden/a.txt": "x"}
    files |= {"picture.png": "no text", "short.txt": "short"}
    for name, text in files.items():
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        bucket.objects[f"docs/handbook/{name}"] = hub.files[f"handbook/{name}"] = text.encode()
    bucket.objects["docs/handbook/"] = b""  # what consoles make for a folder
    bucket.objects["docs/handbook-of-others/a.txt"] = hub.files["other/a.txt"] = prose("other").encode()
    work = ["sdg", "generator=offline", "num_pairs=1"]
    assert main([*work, "--work", str(tmp_path / "a"), "--corpus", str(tmp_path / "here")]) == 0
    assert main([*work, "--work", str(tmp_path / "b"), "--corpus", uri]) == 0
    made = [(tmp_path / run / "qa_pairs" / "qa_pairs.jsonl").read_bytes() for run in "ab"]
    assert made[0] == made[1]
    assert made[0].count(b"\n") == 4


def test_run_takes_an_address_for_its_corpus(bucket: S3Server, tmp_path: Path) -> None:
    bucket.objects |= {f"docs/{n}.txt": prose(f"text{n}").encode() for n in range(3)}
    arguments = ["run", "--to", "sdg", "--work", str(tmp_path), "--corpus", "s3://docs", "sdg.generator=offline"]
    assert main(arguments) == 0
    assert (tmp_path / "qa_pairs" / "qa_pairs.jsonl").read_text().count("\n") == 3
    assert main([*arguments, "--dry-run"]) == 0
    assert main([*arguments, "sources=[{uri: 's3://docs'}]"]) == 2


def test_only_what_will_be_read_is_fetched(hub: HubServer, bucket: S3Server) -> None:
    hub.files = {"a.txt": prose("a").encode(), "big.txt": b"x" * 2**21, "b.parquet": b"PAR1", ".gitattributes": b"*"}
    assert list(read({"uri": HUB}, max_file_mib=1)) == ["a.txt"]
    assert hub.fetched == ["a.txt"]
    hub.files |= {f"{n:04}.txt": prose(f"t{n}").encode() for n in range(400)}
    hub.fetched.clear()
    assert list(read({"uri": HUB}, num_files=2)) == ["0000.txt", "0001.txt"]
    assert len(hub.fetched) < 300


@pytest.mark.parametrize("uri", ["s3://docs", HUB])
def test_more_than_the_limit_is_refused_before_anything_is_fetched(bucket: S3Server, hub: HubServer, uri: str) -> None:
    for n in range(3):
        bucket.objects[f"docs/{n}.txt"] = hub.files[f"{n}.txt"] = b"x" * 2**20
    with pytest.raises(InputError, match="max_download_mib"):
        read({"uri": uri}, max_download_mib=2)
    assert not hub.fetched


@pytest.mark.parametrize("uri", ["s3://docs", HUB])
def test_what_was_fetched_is_not_fetched_again_and_what_changed_is(
    bucket: S3Server, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    for n in range(3):
        bucket.objects[f"docs/{n}.txt"] = hub.files[f"{n}.txt"] = prose(f"t{n}").encode()
    keep = {"download_dir": str(tmp_path / "kept")}
    first = read({"uri": uri}, **keep)
    (kept,) = (tmp_path / "kept").rglob("0.txt")
    before = kept.stat().st_ino
    bucket.objects["docs/1.txt"] = (prose("t1") + " More.").encode()
    del bucket.objects["docs/2.txt"]
    hub.fetched.clear()
    again = read({"uri": uri}, **keep)
    assert kept.stat().st_ino == before
    assert not hub.fetched
    if uri.startswith("s3"):
        assert again == {"0.txt": first["0.txt"], "1.txt": prose("t1") + " More."}
    else:
        assert again == first  # a commit does not change


def test_a_file_that_came_in_half_is_asked_for_again(hub: HubServer, tmp_path: Path) -> None:
    hub.files = {"a.txt": prose("a", 4000).encode()}
    hub.torn = {"a.txt"}
    assert read({"uri": HUB}, download_dir=str(tmp_path)) == {"a.txt": prose("a", 4000)}


def test_the_hub_gets_the_token_of_the_environment_and_no_other(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.files = {"a.txt": prose("a").encode()}
    (tmp_path / "token").write_text("hf_of_a_file")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    read({"uri": HUB})
    assert hub.authorizations == {None}
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    read({"uri": HUB})
    assert hub.authorizations == {None, "Bearer hf_canary"}


@pytest.mark.parametrize("name", ["../../escape.txt", "a/../../escape.txt", "/escape.txt", "a//b.txt", "./a.txt"])
def test_names_that_lead_out_of_the_corpus_write_nothing_there(
    bucket: S3Server, hub: HubServer, tmp_path: Path, name: str
) -> None:
    keep = {"download_dir": str(tmp_path / "a" / "b")}
    bucket.objects |= {"docs/a.txt": prose("a").encode(), f"docs/x/{name}": b"out " * 50}
    hub.files = {"a.txt": prose("a").encode(), name: b"out " * 50}
    with pytest.raises(InputError, match=r"s3://docs holds an object whose name is no path"):
        read({"uri": "s3://docs"}, **keep)
    assert list(read({"uri": HUB}, **keep)) == ["a.txt"]
    assert not list(tmp_path.rglob("*escape*"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"uri": "hf://team/docs"}, "40 hex digits"),
        ({"uri": "hf://team/docs@main/sub"}, "40 hex digits"),
        ({"uri": "https://example.com/docs"}, "expected a directory"),
        ({"uri": "s3://"}, "expected a directory"),
        ({"uri": "s3://key:secret@bucket/docs"}, "a password in it"),
        ({"uri": "s3://bucket/docs?X-Amz-Signature=1"}, "expected a directory"),
        ({"uri": ""}, "expected a directory"),
        ({"uri": "s3://b", "weight": 0}, "weight"),
        ({"uri": "s3://b", "name": "../x"}, "name"),
        ({"url": "s3://b"}, "url"),
    ],
)
def test_a_source_that_is_none_is_refused_with_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: dict[str, Any], words: str
) -> None:
    assert main(["sdg", "--work", str(tmp_path), f"sources={json.dumps([source])}", "generator=offline"]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_several_sources_need_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for two in ([{"uri": "s3://a"}, {"uri": "s3://b", "name": "b"}], [{"uri": "s3://a", "name": "b"}] * 2):
        assert main(["sdg", "--work", str(tmp_path), f"sources={json.dumps(two)}"]) == 2
        assert "name of its own" in capsys.readouterr().err


def test_places_that_are_not_there_or_refuse(
    bucket: S3Server, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's client waits between its tries
    with pytest.raises(InputError, match="s3://nothing/here holds no files"):
        read({"uri": "s3://nothing/here"})
    for uri in (f"hf://team/unknown@{COMMIT}", f"hf://team/docs@{'f' * 40}", HUB + "/nowhere"):
        with pytest.raises(InputError, match=uri):
            read({"uri": uri})
    with pytest.raises(InputError, match="no such directory"):
        read({"uri": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="nothing to read"):
        read()
    with pytest.raises(InputError, match="stands for corpus"):
        read({"name": "mine"})
    for status, kind in ((403, ActionNeeded), (503, Transient)):
        hub.status = status
        with pytest.raises(kind, match=HUB):
            read({"uri": HUB})


@pytest.mark.parametrize(
    ("status", "code", "kind"), [(403, "AccessDenied", ActionNeeded), (404, "NoSuchBucket", InputError)]
)
def test_a_bucket_that_refuses_or_is_none(bucket: S3Server, status: int, code: str, kind: type[Exception]) -> None:
    bucket.refusal = (status, code)
    with pytest.raises(kind, match=r"s3://docs: .*(access is refused|no such bucket)"):
        read({"uri": "s3://docs"})


def test_documents_name_their_source_and_no_text_is_read_twice(bucket: S3Server, tmp_path: Path) -> None:
    (tmp_path / "faq").mkdir()
    (tmp_path / "corpus").mkdir()
    for folder in ("faq", "corpus"):
        (tmp_path / folder / "same.txt").write_text(prose("same"))
        (tmp_path / folder / "own.txt").write_text(prose(f"own{folder}"))
    bucket.objects["docs/own.txt"] = prose("bucket").encode()
    more = [{"name": "faq", "uri": str(tmp_path / "faq")}, {"name": "wiki", "uri": "s3://docs"}]
    assert list(read(*more, corpus=tmp_path / "corpus")) == [
        "corpus/own.txt", "corpus/same.txt", "faq/own.txt", "wiki/own.txt",
    ]  # fmt: skip


def test_weights_are_shares_of_the_pairs(llm: LlmServer, tmp_path: Path) -> None:
    for name, documents in (("wiki", 60), ("faq", 12), ("all", 5)):
        folder = tmp_path / name
        folder.mkdir()
        for n in range(documents):
            (folder / f"{n:02}.txt").write_text(prose(f"{name}{n}"))
    sources = [
        {"name": "wiki", "uri": str(tmp_path / "wiki"), "weight": 3},
        {"name": "faq", "uri": str(tmp_path / "faq"), "weight": 1},
        {"name": "all", "uri": str(tmp_path / "all")},
    ]

    def generate(work: Path) -> dict[str, int]:
        arguments = [f"sources={json.dumps(sources)}", f"llm_base_url={llm.url}", "max_parallel_requests_for_gen=16"]
        assert main(["sdg", "--work", str(work), *arguments]) == 0
        result = json.loads((work / "qa_pairs" / "generation_result.json").read_text())
        lines = (work / "qa_pairs" / "qa_pairs.jsonl").read_text().splitlines()
        counts: dict[str, int] = {}
        for record in map(json.loads, lines):
            assert record["source_id"].startswith(record["source"] + "/")
            counts[record["source"]] = counts.get(record["source"], 0) + len(record["deduplicated_qa_pairs"])
        assert {name: found["pairs"] for name, found in result["sources"].items()} == counts
        return counts

    counts = generate(tmp_path / "first")
    assert counts["wiki"] == 3 * counts["faq"] > 0
    assert counts["all"] > 0
    report = (tmp_path / "first" / "generation_report.html").read_text()
    assert "over the weight of its source" in report
    assert "wiki" in report
    # The draw does not depend on what else there is: a new document takes the place of one at most.
    asked = {json.dumps(body) for path, body in llm.requests if "chat" in path}
    (tmp_path / "wiki" / "new.txt").write_text(prose("wikinew"))
    llm.requests.clear()
    generate(tmp_path / "second")
    assert len({json.dumps(body) for path, body in llm.requests if "chat" in path} - asked) <= 3


def test_a_kfp_task_reads_sources_without_a_corpus(hub: HubServer, tmp_path: Path) -> None:
    hub.files = {f"{n}.txt": prose(f"t{n}").encode() for n in range(3)}

    def task(overrides: dict[str, Any]) -> int:
        made = {"qa_pairs": "qa_pairs", "generation_report": "report.html", "past_runs": "runs", "sdg_metrics": "m"}
        artifacts = {name: {"artifacts": [{"name": name, "uri": str(tmp_path / at)}]} for name, at in made.items()}
        outputs = {"artifacts": artifacts, "outputFile": str(tmp_path / "executor_output.json")}
        parameters = {"generator": "offline", "overrides": overrides}
        message = {"inputs": {"parameterValues": parameters}, "outputs": outputs}
        return main(["sdg", "--executor-input", json.dumps(message)])

    assert task({}) == 2
    assert not (tmp_path / "qa_pairs").exists()
    assert task({"sources": [{"uri": HUB}]}) == 0
    assert (tmp_path / "qa_pairs" / "qa_pairs.jsonl").read_text().count("\n") == 3
