"""`/v1/chat/completions` and `/v1/completions`: a request to options, and answers to the documents of OpenAI's API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import hearthlm
from hearthlm.server import jobs
from hearthlm.server.admission import Ticket
from hearthlm.server.errors import ApiError, JsonResponse, refusal
from hearthlm.server.requests import ChatRequest, CompletionRequest, Sampling, decode
from hearthlm.server.served_model import Target
from hearthlm.server.service import Service
from hearthlm.server.streaming import EventStream, disconnected

# What a message may hold beside its role and its content.
_MORE = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}
LOWEST_LOGPROB = -9999.0  # what OpenAI's API writes for a probability of 0, which JSON has no number for


async def chat_completions(request: Request) -> Response:
    body = decode(await request.body(), ChatRequest)
    service = Service.of(request)
    target = service.models.find(body.model)
    options, seed = await _session_options(target, body)
    prompts = [await _prompt_ids(target, chat_messages(body.messages), options, "messages")]
    reply = ChatReply(target, body, seed, options)
    return await _answer(request, service, target, body, prompts, options, reply)


async def completions(request: Request) -> Response:
    body = decode(await request.body(), CompletionRequest)
    service = Service.of(request)
    target = service.models.find(body.model)
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "echo: this server does not echo logprobs", param="echo", code="unsupported_parameter")
    texts = body.prompts()
    options, seed = await _session_options(target, body)
    prompts = [await _prompt_ids(target, text, options, "prompt") for text in texts]
    return await _answer(request, service, target, body, prompts, options, TextReply(target, body, seed, texts))


async def _session_options(target: Target, body: Sampling) -> tuple[hearthlm.LlmInferenceSessionOptions, int]:
    """Return how a request samples, and its seed: its own, or one that is drawn; forms are compiled by the way."""
    limit = target.admission.num_slots
    if (body.n or 1) > limit:
        raise ApiError(400, f"n: expected at most {limit}, got {body.n}", param="n")
    seed = secrets.randbits(53) if body.seed is None else body.seed
    try:
        options = target.session_options(random_seed=seed, **body.session_changes())
        for token_id in options.logit_bias or ():
            if token_id >= (vocab_size := target.llm.vocab_size):
                raise ValueError(f"logit_bias: expected token ids below {vocab_size}, got {token_id}")
        await asyncio.to_thread(target.llm.prepare_response_format, options)
    except hearthlm.UnsupportedModelError as error:
        raise refusal(error, param="tools") from None
    except (ValueError, TypeError) as error:
        raise refusal(error, param=str(error).partition(":")[0]) from None
    except ImportError as error:
        raise ApiError(400, str(error), param="response_format", code="response_format_unsupported") from None
    return options, seed


async def _prompt_ids(
    target: Target, prompt: Any, options: hearthlm.LlmInferenceSessionOptions, param: str
) -> list[int]:
    """Return a prompt's ids; a template may take a while, so another thread writes it."""
    try:
        return await asyncio.to_thread(target.llm.prompt_ids, prompt, options)
    except Exception as error:
        raise refusal(error, param) from error


def chat_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as the model's chat format takes them; what else clients put beside is left out."""
    kept = []
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role == "developer":
            role = "system"
        if isinstance(content, list) and not all(
            isinstance(part, dict) and part.get("type") == "text" for part in content
        ):
            raise ApiError(
                400,
                f"messages[{i}].content: expected text: this server does not take images, audio or files",
                param=f"messages[{i}].content",
                code="unsupported_content",
            )
        more = [name for name in _MORE.get(str(role), ()) if message.get(name)]
        kept.append({"role": role, "content": content, **{name: message[name] for name in more}})
    return kept


async def _answer(
    request: Request,
    service: Service,
    target: Target,
    body: Sampling,
    prompts: list[list[int]],
    options: hearthlm.LlmInferenceSessionOptions,
    reply: Reply,
) -> Response:
    num_responses = body.n or 1
    ticket = service.enter(target, num_responses * len(prompts))
    items = service.counted(target, jobs.increments(target, ticket, prompts, options, num_responses), ticket)
    if body.stream:
        return EventStream(reply.chunks(items, ticket, len(prompts)), service.running)
    try:
        results = await service.running.until(_results(items, len(prompts)), disconnected(request.receive))
    finally:
        ticket.leave()
    if results is None:
        return Response(status_code=499)  # nobody reads it
    return JsonResponse(reply.whole(results, ticket))


async def _results(items: AsyncGenerator[jobs.Item, None], count: int) -> list[hearthlm.GenerationResult]:
    async with contextlib.aclosing(items):
        results = {i: item async for i, item in items if isinstance(item, hearthlm.GenerationResult)}
    if any("cancelled" in result.finish_reasons for result in results.values()):
        raise jobs.ServerStopping
    return [results[i] for i in range(count)]


class Reply:
    """Write answers as documents, whole or in chunks."""

    object = ""
    chunk_object = ""
    id_prefix = ""

    def __init__(self, target: Target, request: Sampling, seed: int) -> None:
        self._target = target
        self._request = request
        self._num_responses = request.n or 1
        self.seed = seed
        self._head = {
            "id": self.id_prefix + secrets.token_hex(12),
            "created": int(time.time()),
            "model": target.id,
            "system_fingerprint": f"hearthlm-{hearthlm.__version__}",
        }

    async def chunks(
        self, items: AsyncGenerator[jobs.Item, None], ticket: Ticket, num_prompts: int
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield an answer in chunks; the last one says what it took: `timings`, and `usage` if that was asked for."""
        include_usage = self._request.include_usage
        results: list[hearthlm.GenerationResult] = []
        held: dict[str, Any] | None = None  # the last chunk so far: what it took is added to the very last
        async with contextlib.aclosing(items):
            for choice in self._first_choices(num_prompts):
                yield self._chunk([choice]) | {"seed": self.seed}
            async for index, item in items:
                if isinstance(item, hearthlm.GenerationResult):
                    results.append(item)
                    continue
                if item.finish_reason == "cancelled":
                    raise jobs.ServerStopping
                for choice in self._choices(index * self._num_responses + item.index, item):
                    if held is not None:
                        yield held
                    held = self._chunk([choice])
                    if choice["finish_reason"] is None:
                        yield held
                        held = None
        took = self._took(results, ticket)
        if include_usage:
            if held is not None:
                yield held
            yield self._chunk([]) | {"usage": _usage(results)} | took
        else:
            yield (held or self._chunk([])) | took

    def whole(self, results: Sequence[hearthlm.GenerationResult], ticket: Ticket) -> dict[str, Any]:
        """Return an answer as one document."""
        choices = [
            self._whole_choice(i * self._num_responses + j, result, j)
            for i, result in enumerate(results)
            for j in range(len(result.texts))
        ]
        document = {**self._head, "object": self.object, "choices": choices, "usage": _usage(results)}
        return document | self._took(results, ticket)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        if self._request.include_usage:
            chunk["usage"] = None
        return chunk

    def _took(self, results: Sequence[hearthlm.GenerationResult], ticket: Ticket) -> dict[str, Any]:
        timings = {
            "queue_s": round(ticket.waited_s, 6),
            "prefill_s": round(max(result.prefill_s for result in results), 6),
            "decode_s": round(max(result.decode_s for result in results), 6),
            "cached_tokens": sum(result.num_cached_tokens for result in results),
        }
        return {"timings": timings, "seed": self.seed}

    def _first_choices(self, num_prompts: int) -> Iterable[dict[str, Any]]:
        return ()

    def _choices(self, index: int, step: hearthlm.ResponseIncrement) -> Iterable[dict[str, Any]]:
        raise NotImplementedError

    def _whole_choice(self, index: int, result: hearthlm.GenerationResult, j: int) -> dict[str, Any]:
        raise NotImplementedError


class ChatReply(Reply):
    """Write the answers of `/v1/chat/completions`."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(
        self, target: Target, request: ChatRequest, seed: int, options: hearthlm.LlmInferenceSessionOptions
    ) -> None:
        super().__init__(target, request, seed)
        self._num_top = (request.top_logprobs or 0) if request.logprobs else None
        self._readers = [target.llm.tool_call_reader(options) for _ in range(self._num_responses)]

    def _first_choices(self, num_prompts: int) -> Iterable[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        for index in range(num_prompts * self._num_responses):
            yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _choices(self, index: int, step: hearthlm.ResponseIncrement) -> Iterable[dict[str, Any]]:
        logprobs = self._logprobs(step.logprobs) if step.logprobs else None
        text, calls = step.text, list[dict[str, Any]]()
        finish_reason: str | None = step.finish_reason
        if (reader := self._readers[step.index]) is not None:
            text = reader.push(text)
            if finish_reason is not None:
                rest, found = reader.finish()
                text, calls = text + rest, _tool_calls(found)
        if text or logprobs:
            yield {"index": index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": None}
        if calls:
            numbered = [{"index": i, **call} for i, call in enumerate(calls)]
            yield {"index": index, "delta": {"tool_calls": numbered}, "logprobs": None, "finish_reason": None}
            finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
        if finish_reason is not None:
            yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": finish_reason}

    def _whole_choice(self, index: int, result: hearthlm.GenerationResult, j: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": result.texts[j], "refusal": None}
        finish_reason: str = result.finish_reasons[j]
        if (reader := self._readers[j]) is not None:
            said = reader.push(result.texts[j])
            rest, found = reader.finish()
            if found:
                message |= {"content": said + rest or None, "tool_calls": _tool_calls(found)}
                finish_reason = "tool_calls" if finish_reason == "stop" else finish_reason
        return {
            "index": index,
            "message": message,
            "logprobs": None if result.logprobs is None else self._logprobs(result.logprobs[j]),
            "finish_reason": finish_reason,
        }

    def _logprobs(self, entries: Sequence[hearthlm.TokenLogprobs]) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        content = [
            self._token(entry.token_id, entry.logprob)
            | {"top_logprobs": [self._token(*top) for top in entry.top[: self._num_top]]}
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._target.llm.tokenizer.token_bytes(token_id, skip_special=False)
        return {"token": data.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(data)}


class TextReply(Reply):
    """Write the answers of `/v1/completions`."""

    object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def __init__(
        self, target: Target, request: CompletionRequest, seed: int, prompts: Sequence[str | list[int]]
    ) -> None:
        super().__init__(target, request, seed)
        self._num_top = request.logprobs
        tokenizer = target.llm.tokenizer
        self._echoes = [
            prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
            for prompt in (prompts if request.echo else ())
        ]
        self._num_chars: dict[int, int] = {}  # of each choice so far, for `text_offset`

    def _first_choices(self, num_prompts: int) -> Iterable[dict[str, Any]]:
        for i, text in enumerate(self._echoes):
            for j in range(self._num_responses):
                index = i * self._num_responses + j
                self._num_chars[index] = len(text)
                yield {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def _choices(self, index: int, step: hearthlm.ResponseIncrement) -> Iterable[dict[str, Any]]:
        if step.text or step.logprobs or step.finish_reason is not None:
            logprobs = self._logprobs(index, step.logprobs) if step.logprobs else None
            yield {"index": index, "text": step.text, "logprobs": logprobs, "finish_reason": step.finish_reason}

    def _whole_choice(self, index: int, result: hearthlm.GenerationResult, j: int) -> dict[str, Any]:
        echo = self._echoes[index // self._num_responses] if self._echoes else ""
        self._num_chars[index] = len(echo)
        return {
            "index": index,
            "text": echo + result.texts[j],
            "logprobs": None if result.logprobs is None else self._logprobs(index, result.logprobs[j]),
            "finish_reason": result.finish_reasons[j],
        }

    def _logprobs(self, index: int, entries: Sequence[hearthlm.TokenLogprobs]) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        offsets = []
        for entry in entries:
            offsets.append(self._num_chars.get(index, 0))
            self._num_chars[index] = offsets[-1] + len(self._token(entry.token_id))
        return {
            "tokens": [self._token(entry.token_id) for entry in entries],
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [
                {self._token(token_id): _finite(value) for token_id, value in reversed(entry.top[: self._num_top])}
                for entry in entries
            ],
            "text_offset": offsets,
        }

    def _token(self, token_id: int) -> str:
        return self._target.llm.tokenizer.token_bytes(token_id, skip_special=False).decode("utf-8", "replace")


def _tool_calls(calls: Sequence[hearthlm.ToolCall]) -> list[dict[str, Any]]:
    """Return calls as OpenAI's API has them: with an id, and the arguments as text."""
    return [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in calls
    ]


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def _usage(results: Sequence[hearthlm.GenerationResult]) -> dict[str, Any]:
    num_prompt = sum(result.num_prompt_tokens for result in results)
    num_output = sum(result.num_output_tokens for result in results)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": sum(result.num_cached_tokens for result in results)},
    }
