"""Errors in OpenAI's form: what went wrong, with which field, and a code for programs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import hearthlm

_log = logging.getLogger("hearthlm.server")


class ApiError(Exception):
    """Refuse a request with a status, a message, the field that is wrong, and a code; 400 alone is `invalid_value`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = "invalid_value" if code is None and status == 400 else code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """Return the body that OpenAI's clients expect."""
        return {"error": {"message": str(self), "type": _type(self.status), "param": self.param, "code": self.code}}


class JsonResponse(Response):
    """Answer with one JSON document."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def refusal(error: Exception, param: str | None = None) -> ApiError:
    """Say in the API's terms why the model refuses what a request asks for."""
    if isinstance(error, (ValueError, TypeError)) and not isinstance(error, hearthlm.HearthLMError):
        return ApiError(400, str(error), param=param)
    return failure(error, param)


def failure(error: BaseException, param: str | None = None) -> ApiError:
    """Say in the API's terms what went wrong while answering; what is no fault of the request is logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, hearthlm.ContextLengthError):
        return ApiError(400, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, hearthlm.TemplateError):
        return ApiError(400, str(error), param=param, code="chat_template_refused")
    if isinstance(error, hearthlm.ResponseFormatError):
        return ApiError(400, str(error), param="response_format", code="response_format_unsupported")
    if isinstance(error, hearthlm.EngineClosedError):
        return ApiError(503, "the server is stopping", code="server_stopping", headers={"Retry-After": "5"})
    if isinstance(error, hearthlm.UnsupportedModelError):
        return ApiError(400, str(error), param=param, code="unsupported_by_model")
    _log.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed to answer; its log says why", code="internal_error")


def error_response(error: ApiError) -> Response:
    return JsonResponse(error.to_json(), status_code=error.status, headers=error.headers)


async def on_api_error(request: Request, error: Exception) -> Response:
    return error_response(failure(error))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer for the router: a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    message = {
        404: f"there is no {request.url.path}",
        405: f"{request.url.path} does not take {request.method}",
    }.get(error.status_code, error.detail)
    return error_response(ApiError(error.status_code, message, headers=error.headers))


def _type(status: int) -> str:
    known = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return known.get(status, "invalid_request_error" if status < 500 else "server_error")
