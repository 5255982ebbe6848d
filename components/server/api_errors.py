"""Errors in OpenAI's form."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException


class ApiError(Exception):
    """An answer other than success; ``retry_after`` tells clients when to ask again, in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = None if retry_after is None else {"Retry-After": str(retry_after)}


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of ``app`` an answer in OpenAI's form."""
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(StarletteHTTPException, _answer_http_exception)


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _build_answer(error.status, error.message, param=error.param, code=error.code, headers=error.headers)


async def _answer_http_exception(_: Request, error: Exception) -> Response:
    """Answer unknown paths and methods, and bodies that are too large."""
    assert isinstance(error, StarletteHTTPException)
    return _build_answer(error.status_code, str(error.detail))


async def _answer_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = next((str(part) for part in first["loc"] if part != "body"), "")
    return _build_answer(400, f"{field or 'body'}: {first['msg']}", param=field or None)


def _build_answer(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)
