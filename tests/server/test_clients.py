"""LangChain's and LlamaIndex's own clients against the service: pip install '.[clients]', else they are skipped."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from components.server.app import build_app
from components.server.model import OnnxModel
from tests.exported import Exported
from tests.server.serving import serving

pytestmark = pytest.mark.slow

NAME = "team/embed"
PASSAGES = ["Part 1 of the manual.", "Größe 数据 🚀", "def f(x): return x"]
QUERY = "how to fit valve 7?"


@pytest.fixture(scope="module")
def url(llama: Exported) -> Iterator[str]:
    """The model with prefixes: a client that confuses queries and passages gets other vectors."""
    with serving(build_app(OnnxModel(llama.model), NAME)) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def reference(llama: Exported) -> SentenceTransformer:
    return SentenceTransformer(str(llama.checkpoint), device="cpu")


def _langchain_nvidia(url: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    client = importlib.import_module("langchain_nvidia_ai_endpoints").NVIDIAEmbeddings(
        base_url=url, model=NAME, api_key="none", truncate="END"
    )
    return client.embed_documents, client.embed_query


def _llama_index_nvidia(url: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Release 0.6.0 sends input_type=passage for queries, too."""
    client = importlib.import_module("llama_index.embeddings.nvidia").NVIDIAEmbedding(
        base_url=url, model=NAME, api_key="none", truncate="END"
    )
    return client.get_text_embedding_batch, client.get_query_embedding


def _langchain_openai(url: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """OpenAI's API knows no input_type: two clients, one for each. Token ids of OpenAI's tokenizer must be off."""
    module = importlib.import_module("langchain_openai")
    passages, queries = (
        module.OpenAIEmbeddings(
            base_url=url,
            model=NAME,
            api_key="none",
            check_embedding_ctx_length=False,
            model_kwargs={"extra_body": {"input_type": kind}},
        )
        for kind in ("passage", "query")
    )
    return passages.embed_documents, queries.embed_query


def _llama_index_openai(url: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    module = importlib.import_module("llama_index.embeddings.openai")
    passages, queries = (
        module.OpenAIEmbedding(
            api_base=url, model_name=NAME, api_key="none", additional_kwargs={"extra_body": {"input_type": kind}}
        )
        for kind in ("passage", "query")
    )
    return passages.get_text_embedding_batch, queries.get_query_embedding


@pytest.mark.parametrize(
    "client", [_langchain_nvidia, _llama_index_nvidia, _langchain_openai, _llama_index_openai], ids=lambda f: f.__name__
)
def test_the_client_gets_the_models_vectors(
    client: Callable[[str], tuple[Any, Any]], url: str, reference: SentenceTransformer
) -> None:
    try:
        documents, query = client(url)
    except ModuleNotFoundError as error:
        pytest.skip(f"NOT TESTED, {error}: pip install '.[clients]'")
    asked_as = "passage" if client is _llama_index_nvidia else "query"
    for kind, found, texts in (("passage", documents(PASSAGES), PASSAGES), (asked_as, [query(QUERY)], [QUERY])):
        expected = reference.encode([f"{kind}: {text}" for text in texts], prompt="", normalize_embeddings=True)
        assert float((np.array(found) * expected).sum(1).min()) > 0.999, kind
