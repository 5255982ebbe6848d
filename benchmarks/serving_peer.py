"""What a user writes without us: sentence-transformers behind FastAPI, OpenAI's API, one request at a time."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Request(BaseModel):
    """As much of OpenAI's body as the load sends."""

    model: str
    input: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = SentenceTransformer(args.model, device="cpu")
    app = FastAPI()

    # Not async: FastAPI runs it in a thread, so that the service stays responsive.
    @app.post("/v1/embeddings")
    def embeddings(body: Request) -> dict[str, Any]:
        vectors = model.encode(body.input)
        data = [{"object": "embedding", "index": n, "embedding": vector.tolist()} for n, vector in enumerate(vectors)]
        return {"object": "list", "data": data, "model": body.model, "usage": {"prompt_tokens": 0, "total_tokens": 0}}

    @app.get("/v1/health/ready")
    def ready() -> dict[str, str]:
        return {"message": "ready"}

    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
