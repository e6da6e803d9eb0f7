"""The ASGI app: every path that there is."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hearthlm.server.completions import chat_completions, chat_messages, completions
from hearthlm.server.errors import (
    ApiError,
    JsonResponse,
    error_response,
    failure,
    on_api_error,
    on_http_exception,
    refusal,
)
from hearthlm.server.options import ServerOptions
from hearthlm.server.page import page_response
from hearthlm.server.protection import Protection
from hearthlm.server.requests import DetokenizeRequest, EmbeddingRequest, TokenizeRequest, decode
from hearthlm.server.served_model import Models, ModelTable, model_info, model_object
from hearthlm.server.service import Service
from hearthlm.server.streaming import disconnected

_log = logging.getLogger("hearthlm.server")


def create_app(models: Models | Callable[[], Models], options: ServerOptions | None = None) -> Starlette:
    """Return an ASGI app that answers with `models`: an LlmInference, or several ServedModels.

    A function that returns them is called on a thread of its own when the app starts, in the process that serves;
    until it returns, requests are told to come back (503), and what it loaded is closed with the app. Anything that
    runs ASGI apps can run it: uvicorn, Ray Serve, a test. Raises ValueError for two models of one name.
    """
    options = options or ServerOptions()
    service = Service(ModelTable(models, options), options)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.models.begin_loading()
        yield
        service.running.stop()
        await service.models.close()

    app = Starlette(
        routes=[
            Route("/", _page),
            Route("/health", _health),
            Route("/metrics", _metrics),
            Route("/tokenize", _tokenize, methods=["POST"]),
            Route("/detokenize", _detokenize, methods=["POST"]),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/embeddings", _embeddings, methods=["POST"]),
            Route("/v1/model_info", _model_info),
            Route("/v1/models", _models),
            Route("/v1/models/{id:path}", _model),
        ],
        middleware=[Middleware(_Outermost, service=service), Middleware(Protection, options=options)],
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_exception,
        },
        lifespan=lifespan,
    )
    app.state.service = service
    app.router.redirect_slashes = False
    return app


class _Outermost:
    """Count requests by path and status, refused ones too, and answer for what nobody else did.

    Paths that there are not are counted together.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False
        begun = time.monotonic()

        async def counted(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                path = getattr(scope.get("route"), "path", "other")
                self._service.metrics.count_request(path, message["status"])
                _log.info("%s %s %d %.3f s", scope["method"], path, message["status"], time.monotonic() - begun)
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, counted)
        except OSError:  # the client has gone
            pass
        except Exception as error:
            answer = error_response(failure(error))
            if not has_started:
                await answer(scope, receive, counted)


async def _page(request: Request) -> Response:
    response = page_response()
    if response is None:
        raise ApiError(404, "this package has no page")
    return response


async def _health(request: Request) -> Response:
    service = Service.of(request)
    if service.running.is_draining:
        return JsonResponse({"status": "stopping"}, status_code=503)
    if service.models.is_loaded:
        return JsonResponse({"status": "ok"})
    service.models.begin_loading()
    status = "loading" if service.models.load_error is None else "failed"
    return JsonResponse({"status": status}, status_code=503, headers={"Retry-After": "1"})


async def _metrics(request: Request) -> Response:
    service = Service.of(request)
    text = service.metrics.text(service.models.admissions())
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _models(request: Request) -> Response:
    models = Service.of(request).models
    data = [model_object(target, models.created) for target in models.targets.values()]
    return JsonResponse({"object": "list", "data": data})


async def _model(request: Request) -> Response:
    models = Service.of(request).models
    return JsonResponse(model_object(models.find(request.path_params["id"]), models.created))


async def _model_info(request: Request) -> Response:
    models = Service.of(request).models.models
    return JsonResponse({"object": "list", "data": [await asyncio.to_thread(model_info, m) for m in models]})


async def _tokenize(request: Request) -> Response:
    body = decode(await request.body(), TokenizeRequest)
    llm = Service.of(request).models.find(body.model).llm
    if (body.text is None) == (body.messages is None):
        raise ApiError(400, "text: expected either text or messages", param="text")
    if body.text is not None:
        ids = await asyncio.to_thread(llm.tokenizer.encode, body.text)
    else:
        messages = chat_messages(body.messages or ())
        try:
            ids = await asyncio.to_thread(llm.chat_format.encode, messages)
        except Exception as error:
            raise refusal(error, "messages") from error
    document = {"tokens": ids, "count": len(ids), "max_tokens": llm.max_tokens}
    if body.with_pieces:
        document["pieces"] = [llm.tokenizer.piece(i) for i in ids]
    return JsonResponse(document)


async def _detokenize(request: Request) -> Response:
    body = decode(await request.body(), DetokenizeRequest)
    llm = Service.of(request).models.find(body.model).llm
    if (highest := max(body.tokens, default=0)) >= llm.vocab_size:
        raise ApiError(400, f"tokens: expected ids below {llm.vocab_size}, got {highest}", param="tokens")
    return JsonResponse({"text": await asyncio.to_thread(llm.tokenizer.decode, body.tokens)})


async def _embeddings(request: Request) -> Response:
    """Answer with the mean of the last layer's rows over each input's tokens, of length 1."""
    service = Service.of(request)
    body = decode(await request.body(), EmbeddingRequest)
    target = service.models.find(body.model)
    if body.encoding_format not in (None, "float", "base64"):
        raise ApiError(400, "encoding_format: expected float or base64", param="encoding_format")
    dim = target.llm.embedding_dim
    if dim is None:
        raise ApiError(400, "model: this one gives logits, and no rows of its last layer to embed with", param="model")
    if body.dimensions not in (None, dim):
        raise ApiError(400, f"dimensions: this model's embeddings have {dim}", param="dimensions")
    inputs = body.inputs()
    ticket = service.enter(target, 1)
    cancelled = threading.Event()

    async def embed() -> list[np.ndarray]:
        await ticket.admitted.wait()
        rows = []
        for item in inputs:  # one at a time: a client that leaves takes the others along
            try:
                rows.append(await asyncio.to_thread(target.llm.embed, [item], lora=target.adapter, cancelled=cancelled))
            except Exception as error:
                raise refusal(error, "input") from error
        return rows

    try:
        rows = await service.running.until(embed(), disconnected(request.receive))
    finally:
        cancelled.set()
        ticket.leave()
    if rows is None:
        return Response(status_code=499)  # nobody reads it
    as_text = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if as_text else row[0].tolist(),
        }
        for i, row in enumerate(rows)
    ]
    num_tokens = sum(len(item) if isinstance(item, list) else target.llm.size_in_tokens(item) for item in inputs)
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return JsonResponse({"object": "list", "data": data, "model": target.id, "usage": usage})
