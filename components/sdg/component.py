"""sdg: questions and answers from documents, by a hosted LLM or offline."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Literal, get_args

from pydantic import Field, model_validator

from components.core.encoder.config import EncoderConfig
from components.core.settings import Settings, setting
from components.core.stage import Node, Secret, Stage, StageGate, s3_secrets

QueryType = Literal["multi_hop", "structural", "contextual"]
ReasoningType = Literal["factual", "relational", "inferential", "temporal", "procedural", "causal", "visual"]
QuestionStyle = Literal["question", "keywords", "problem"]
ChatRole = Literal["artifact_extraction", "qa_generation", "quality_judge"]
Role = Literal["artifact_extraction", "qa_generation", "quality_judge", "embed"]
HUB_URI = re.compile(r"hf://(?P<dataset>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[0-9a-f]{40})(?:/(?P<folder>[^?#]*))?")
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
# Headers that carry credentials: those come from the environment.
_SECRET_HEADERS = {"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"}


class Provider(Settings):
    """An OpenAI-compatible endpoint. Its key is in the variable ``api_key_env`` or in a file, or there is none."""

    base_url: str
    api_key_env: str | None = Field(None, pattern=_VARIABLE)
    api_key_file: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _no_secrets(self) -> Provider:
        for name in self.headers:
            if name.lower() in _SECRET_HEADERS:
                raise ValueError(f"headers.{name} would put a secret into the settings: use api_key_env")
        return self


class RoleParameters(Settings):
    """How one role samples; null is the general setting."""

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, gt=0)
    request_timeout: float | None = Field(None, gt=0)


class Price(Settings):
    """Per million tokens, in any one currency."""

    prompt: float = Field(ge=0)
    completion: float = Field(0.0, ge=0)


class Source(Settings):
    """One of several corpora. ``uri`` null is the artifact ``corpus``; ``weight`` null takes all of it."""

    name: str = Field("", pattern=r"^([A-Za-z0-9][\w.-]{0,62})?$")
    uri: str | None = None
    weight: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _uri_is_known(self) -> Source:
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


class SdgConfig(EncoderConfig):
    """Settings of sdg. Names and defaults are the recipe's where it has them.

    The encoder's settings say how long a passage may be for the model that will be trained.
    """

    generator: Literal["llm", "offline"] = setting(
        "llm", "Who writes the questions: a hosted `llm`, or `offline` heuristics for trials without one", form=True
    )
    task: Literal["generate", "generate_from_chunks", "answer", "judge", "deduplicate"] = setting(
        "generate", "What to do: all of it from documents, or a part of it with the records of `*.jsonl` in the corpus"
    )
    sources: list[Source] = setting(
        [],
        "Corpora that sdg reads itself, in place of or beside `corpus`: `[{name: wiki, uri: s3://..., weight: 2}, "
        "...]`; a directory, `s3://`, `gs://`, `minio://` or `hf://DATASET@COMMIT/FOLDER`",
    )
    download_dir: str | None = setting(
        None,
        "Directory that keeps what is fetched of `sources` for the next run; null is a temporary one",
        affects_result=False,
    )
    max_download_mib: int = setting(
        10240, "A source with more than this to fetch is refused, in MiB", gt=0, affects_result=False
    )
    file_extensions: str = setting(
        ".txt,.md,.text,", "Files to read, comma separated; an empty entry means files without extension", form=True
    )
    encoding_fallback: str | None = setting(
        None, "Encoding of files that are not UTF-8, for instance `cp1252`; null leaves them out"
    )
    max_file_mib: int = setting(64, "Larger files are left out, in MiB", gt=0)
    near_duplicate_threshold: float = setting(
        0.9,
        "Documents that share at least this part of their five-word phrases are one; 1 keeps all but equal ones",
        ge=0.8,
        le=1,
    )
    min_text_length: int = setting(50, "Shortest document in characters", ge=0)
    num_files: int | None = setting(None, "Read at most so many files, in order of their paths", gt=0)
    sentences_per_chunk: int = setting(5, "Sentences in a passage", gt=0)
    chunk_max_words: int = setting(250, "Longest passage in words; longer ones are cut at a word", gt=0)
    chunk_overlap_sentences: int = setting(0, "Sentences that a passage repeats of the one before", ge=0)
    chunk_by_tokens: bool = setting(
        False,
        "Also keep every passage within `passage_max_length` tokens, counted with the base model's tokenizer",
    )
    num_sections: int = setting(1, "Sections into which the LLM gets a document's passages", gt=0)
    num_pairs: int = setting(7, "Questions per document (`llm`), or per passage at most (`offline`)", gt=0)
    num_pairs_per_1000_words: float = setting(
        0.0,
        "Questions asked of the LLM per thousand words of a document, where that is more than `num_pairs`",
        ge=0,
    )
    max_prompt_words: int = setting(
        6000, "Longer documents are asked about in parts of at most so many words, `num_pairs` questions each", gt=0
    )
    query_counts: dict[QueryType, int] = setting(
        {"multi_hop": 3, "structural": 2, "contextual": 2}, "Shares of the kinds of question, scaled to `num_pairs`"
    )
    reasoning_counts: dict[ReasoningType, int] = setting(
        {"factual": 1, "relational": 1, "inferential": 1, "temporal": 1, "procedural": 1, "causal": 1},
        "Shares of the kinds of reasoning, scaled to `num_pairs`; the recipe's `visual` needs pictures",
    )
    question_styles: dict[QuestionStyle, int] = setting(
        {"question": 4, "keywords": 2, "problem": 1},
        "Shares of the forms in which people search: a question, keywords, the statement of a problem",
    )
    language: str | None = setting(None, "Language of questions and answers; null is that of each document")
    prompts: dict[ChatRole, str] = setting(
        {}, "Instructions in place of the built-in ones: text, or `file:PATH`; names like `$num_pairs` are filled in"
    )
    multi_doc: bool = setting(False, "Ask about bundles of documents instead of one document at a time")
    bundle_size: int = setting(2, "Documents in a bundle, in order of their paths", gt=0)
    bundle_strategy: Literal["sequential", "doc_balanced", "interleaved"] = setting(
        "sequential", "How the passages of a bundle are shared out among its sections"
    )
    max_docs_per_bundle: int = setting(3, "Most documents in a bundle; larger ones are an error", gt=0)
    multi_doc_manifest: str | None = setting(
        None, "JSON or YAML file in the corpus that lists bundles: `[[a.txt, b.txt], ...]`; the rest by `bundle_size`"
    )
    seed: int = setting(42, "Seed of everything random")

    offline_method: Literal["keywords", "inverse_cloze", "cropping", "mixed"] = setting(
        "mixed", "How `offline` makes a query of a passage"
    )

    llm_base_url: str = setting(
        "https://integrate.api.nvidia.com/v1", "OpenAI-compatible endpoint of the LLM", form=True
    )
    api_key_env: str = setting(
        "NVIDIA_API_KEY", "Environment variable that holds the endpoint's key", pattern=_VARIABLE, affects_result=False
    )
    api_key_file: str | None = setting(
        None, "File that holds the key instead, a mounted Secret for instance", affects_result=False
    )
    artifact_extraction_model: str = setting(
        "nvidia/nemotron-3-nano-30b-a3b", "LLM that extracts what a document is about", form=True
    )
    qa_generation_model: str = setting("nvidia/nemotron-3-nano-30b-a3b", "LLM that writes the pairs", form=True)
    quality_judge_model: str = setting("nvidia/nemotron-3-nano-30b-a3b", "LLM that scores the pairs", form=True)
    embed_model: str = setting("nvidia/llama-3.2-nv-embedqa-1b-v2", "Embedding model that finds duplicate questions")
    artifact_extraction_provider: str = setting("nvidia", "Where that model is: `nvidia` is `llm_base_url`")
    qa_generation_provider: str = setting("nvidia", "The same for the model that writes the pairs")
    quality_judge_provider: str = setting("nvidia", "The same for the model that scores them")
    embed_provider: str = setting("nvidia", "The same for the embedding model")
    providers: dict[str, Provider] = setting(
        {}, "Other endpoints by name: `{mine: {base_url: ..., api_key_env: ..., headers: {...}}}`"
    )
    role_parameters: dict[Role, RoleParameters] = setting(
        {}, "temperature, top_p, max_tokens, request_timeout by role: `{quality_judge: {temperature: 0}}`"
    )
    ledger_uri: str | None = setting(
        None,
        "Directory, s3:// or gs:// prefix where paid answers are kept, so that no run pays for one twice",
        form=True,
        affects_result=False,
    )
    history_uri: str | None = setting(
        None,
        "Directory, s3:// or gs:// prefix that recurring runs share: what each read and made, the model that is "
        "served, its test set, and without ledger_uri the paid answers; null for a run of its own",
        form=True,
        min_length=1,
        affects_result=False,
    )
    skip_unchanged: bool = setting(
        True,
        "With history_uri: end early, and green, when documents and settings of sdg are those of the last run; false "
        "trains again, for instance with other settings of finetune",
        form=True,
        affects_result=False,
    )
    max_tokens_total: int | None = setting(
        None, "Stop before more tokens than this, prompts included", form=True, gt=0, affects_result=False
    )
    max_cost: float | None = setting(
        None, "Stop before a higher cost than this, in the currency of `prices`", gt=0, affects_result=False
    )
    prices: dict[str, Price] = setting(
        {}, "Per million tokens by model: `{MODEL: {prompt: 0.1, completion: 0.4}}`", affects_result=False
    )
    max_parallel_requests_for_gen: int = setting(4, "LLM requests in flight", form=True, gt=0, affects_result=False)
    temperature: float = setting(0.6, "Sampling temperature of the LLM", ge=0)
    top_p: float = setting(0.95, "Nucleus of the LLM's sampling", gt=0, le=1)
    max_tokens: int | None = setting(None, "Most tokens of one answer; null leaves it to the endpoint", gt=0)
    request_timeout: float = setting(120.0, "Seconds for one LLM answer", gt=0, affects_result=False)
    max_retry_wait: float = setting(
        600.0,
        "Longest wait in seconds that the endpoint may ask for; beyond it the stage stops (exit code 75)",
        ge=0,
        affects_result=False,
    )
    max_attempts: int = setting(
        6, "Tries of one LLM request before its document is given up", gt=0, affects_result=False
    )
    min_success: float = setting(
        0.98, "Smallest share of documents that must yield pairs", ge=0, le=1, affects_result=False
    )
    max_artifacts_per_type: int = setting(2, "Items of each of the eight artifact kinds per document", gt=0)
    min_hops: int = setting(1, "Fewest passages that a question connects", ge=1)
    max_hops: int = setting(3, "Most passages that a question connects", ge=1)
    min_complexity: int = setting(2, "Lowest complexity that the LLM is asked for (1 to 5)", ge=1, le=5)
    similarity_threshold: float = setting(0.9, "Questions of one document more alike than this are one", ge=0, le=1)

    @model_validator(mode="after")
    def _hops_are_ordered(self) -> SdgConfig:
        if self.min_hops > self.max_hops:
            raise ValueError(f"min_hops = {self.min_hops} is greater than max_hops = {self.max_hops}")
        return self

    @model_validator(mode="after")
    def _sources_have_names(self) -> SdgConfig:
        names = [source.name for source in self.sources]
        if len(names) > 1 and ("" in names or len(set(names)) < len(names)):
            raise ValueError("sources: give each of several a name of its own")
        if sum(source.uri is None for source in self.sources) > 1:
            raise ValueError("sources: only one can be the artifact corpus, all others need a uri")
        return self

    @model_validator(mode="after")
    def _task_has_an_llm(self) -> SdgConfig:
        if self.generator == "offline" and self.task != "generate":
            raise ValueError(f"task = {self.task} needs an LLM: set generator=llm")
        return self

    @model_validator(mode="after")
    def _overlap_is_less_than_a_passage(self) -> SdgConfig:
        if self.chunk_overlap_sentences >= self.sentences_per_chunk:
            raise ValueError("chunk_overlap_sentences must be less than sentences_per_chunk")
        return self

    @model_validator(mode="after")
    def _shares_are_positive(self) -> SdgConfig:
        for name in ("query_counts", "reasoning_counts", "question_styles"):
            shares = getattr(self, name).values()
            if min(shares, default=0) < 0 or not any(shares):
                raise ValueError(f"{name}: give whole numbers from 0, and at least one above")
        return self

    @model_validator(mode="after")
    def _encoding_exists(self) -> SdgConfig:
        try:
            "".encode(self.encoding_fallback or "utf-8")
        except (LookupError, ValueError):
            raise ValueError(f"encoding_fallback = {self.encoding_fallback!r} is no encoding: try cp1252") from None
        return self

    @model_validator(mode="after")
    def _bundles_are_allowed(self) -> SdgConfig:
        if self.multi_doc and self.bundle_size > self.max_docs_per_bundle:
            raise ValueError(f"bundle_size = {self.bundle_size} is greater than max_docs_per_bundle")
        return self

    @model_validator(mode="after")
    def _providers_are_known(self) -> SdgConfig:
        for role in get_args(Role):
            name = getattr(self, f"{role}_provider")
            if name != "nvidia" and name not in self.providers:
                raise ValueError(f"{role}_provider = '{name}' is not in providers: add it there")
        if "nvidia" in self.providers:
            raise ValueError("providers.nvidia: set llm_base_url and api_key_env instead")
        return self

    @cached_property
    def models(self) -> dict[str, str]:
        """The model of each role."""
        return {role: getattr(self, f"{role}_model") for role in get_args(Role)}

    def provider(self, role: str) -> tuple[str, Provider]:
        """Name and address of the endpoint of ``role``."""
        name = getattr(self, f"{role}_provider")
        key = {"api_key_env": self.api_key_env, "api_key_file": self.api_key_file}
        built_in = Provider(base_url=self.llm_base_url, **key)
        return name, built_in if name == "nvidia" else self.providers[name]

    @cached_property
    def parameters(self) -> dict[str, RoleParameters]:
        """How each role samples: its own values, and the general ones where it has none."""
        general = {name: getattr(self, name) for name in RoleParameters.model_fields}
        own = {role: self.role_parameters.get(role, RoleParameters()) for role in get_args(Role)}
        return {role: RoleParameters(**general | values.model_dump(exclude_none=True)) for role, values in own.items()}

    @property
    def answers_uri(self) -> str | None:
        """Where paid answers are kept."""
        return self.ledger_uri or (self.history_uri and f"{self.history_uri.rstrip('/')}/answers")

    def pairs_for(self, words: int) -> int:
        """How many pairs the LLM is asked for about so many words."""
        return max(self.num_pairs, round(words * self.num_pairs_per_1000_words / 1000))

    @property
    def extensions(self) -> frozenset[str]:
        """Lower-case extensions with their dot; the empty one stands for files without extension."""
        parts = (part.strip().lower() for part in self.file_extensions.split(","))
        return frozenset(part if not part or part.startswith(".") else f".{part}" for part in parts)


STAGE = Stage(
    name="sdg",
    summary="Generate question-answer pairs from documents",
    config=SdgConfig,
    inputs=("corpus",),
    replaced_by={"corpus": "sources"},
    outputs=("qa_pairs", "generation_report", "past_runs"),
    results={"changed": bool},
    gate=StageGate("changed", "new-documents", keeps=True),
    image="cpu",
    node=Node(cpu="8", memory="16Gi"),
    secrets=(
        Secret(env="NVIDIA_API_KEY", name="nvidia-api-key", key="NVIDIA_API_KEY"),
        # For other endpoints, by the names that providers.*.api_key_env may give.
        *(Secret(env=name, name="llm-keys", key=name) for name in ("LLM_API_KEY", "JUDGE_API_KEY", "EMBED_API_KEY")),
        Secret(env="HF_TOKEN", name="huggingface-token", key="HF_TOKEN"),
        *s3_secrets("ledger-s3"),
    ),
    previews=True,
)
