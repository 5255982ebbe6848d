"""Settings of sdg: the task, the corpora to read, and which of their files become documents."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from components.core.settings import Settings, setting

HUB_URI = re.compile(r"hf://(?P<dataset>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[0-9a-f]{40})(?:/(?P<folder>[^?#]*))?")
Task = Literal["generate", "generate_from_chunks", "answer", "judge", "deduplicate"]


class CorpusSource(Settings):
    """One of several corpora. ``uri`` null is the artifact ``corpus``; ``weight`` null takes all of it."""

    name: str = Field(default="", pattern=r"^([A-Za-z0-9][\w.-]{0,62})?$")
    uri: str | None = None
    weight: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _uri_is_known(self) -> Self:
        scheme, separator, rest = (self.uri or "").partition("://")
        if self.uri is None or (self.uri and not separator):
            return self
        if scheme == "hf" and HUB_URI.fullmatch(self.uri):
            return self
        if scheme == "hf":
            raise ValueError(f"{self.uri}: expected hf://DATASET@COMMIT or hf://DATASET@COMMIT/FOLDER, 40 hex digits")
        bucket = rest.partition("/")[0]
        if scheme in ("s3", "gs", "minio") and bucket and not set(rest) & set("@?#"):
            return self
        raise ValueError(f"{self.uri!r}: expected a directory, s3://, gs://, minio:// or hf://DATASET@COMMIT/FOLDER")


class TaskSettings(Settings):
    """What sdg does, and who does it."""

    generator: Literal["llm", "offline"] = setting(
        "llm", "Who writes the questions: a hosted `llm`, or `offline` heuristics for trials without one", form=True
    )
    task: Task = setting(
        "generate",
        "What to do: everything from documents, or one step of it with the records of `*.jsonl` in the corpus",
    )

    @model_validator(mode="after")
    def _task_has_an_llm(self) -> Self:
        if self.generator == "offline" and self.task != "generate":
            raise ValueError(f"task = {self.task} needs an LLM: set generator=llm")
        return self


class ReadingSettings(TaskSettings):
    """Where documents come from, and which files are left out."""

    sources: list[CorpusSource] = setting(
        [],
        "Corpora that sdg reads itself, instead of `corpus` or in addition to it: `[{name: wiki, uri: "
        "s3://..., weight: 2}, ...]`; a directory, `s3://`, `gs://`, `minio://` or "
        "`hf://DATASET@COMMIT/FOLDER`",
    )
    download_dir: str | None = setting(
        None,
        "Directory that keeps downloads of `sources` for the next run; null is a temporary one",
        affects_result=False,
    )
    max_download_mib: int = setting(
        10240, "Largest download of one source in MiB; larger ones are refused", gt=0, affects_result=False
    )
    file_extensions: str = setting(
        ".txt,.md,.text,", "Files to read, comma separated; an empty entry means files without extension", form=True
    )
    encoding_fallback: str | None = setting(
        None, "Encoding of files that are not UTF-8, for instance `cp1252`; null leaves them out"
    )
    max_file_mib: int = setting(64, "Largest file in MiB; larger ones are left out", gt=0)
    near_duplicate_threshold: float = setting(
        0.9,
        "Documents that share at least this fraction of their five-word phrases count as one; 1 merges only equal ones",
        ge=0.8,
        le=1,
    )
    min_text_length: int = setting(50, "Shortest document in characters", ge=0)
    num_files: int | None = setting(None, "Read at most this many files, in order of their paths", gt=0)

    @model_validator(mode="after")
    def _sources_have_names(self) -> Self:
        names = [source.name for source in self.sources]
        if len(names) > 1 and ("" in names or len(set(names)) < len(names)):
            raise ValueError("sources: give each of several a name of its own")
        if sum(source.uri is None for source in self.sources) > 1:
            raise ValueError("sources: only one can be the artifact corpus, all others need a uri")
        return self

    @model_validator(mode="after")
    def _encoding_exists(self) -> Self:
        try:
            "".encode(self.encoding_fallback or "utf-8")
        except (LookupError, ValueError):
            raise ValueError(f"encoding_fallback = {self.encoding_fallback!r} is no encoding: try cp1252") from None
        return self

    @property
    def extensions(self) -> frozenset[str]:
        """Lower-case extensions with their dot; the empty one stands for files without extension."""
        parts = (part.strip().lower() for part in self.file_extensions.split(","))
        return frozenset(part if not part or part.startswith(".") else f".{part}" for part in parts)
