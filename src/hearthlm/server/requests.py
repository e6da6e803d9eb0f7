"""The bodies of requests: every field that is understood, with its type and its range.

Fields of OpenAI's API that are known and cannot be followed are refused by name where they ask for something; whatever
else a body holds is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

import hearthlm
from hearthlm.server.errors import ApiError

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1000
MAX_MESSAGES = 4096
MAX_PROMPTS = 256

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
_TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Model = Annotated[str, msgspec.Meta(max_length=500)]
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_Ids = Annotated[list[_TokenId], msgspec.Meta(max_length=1 << 20)]
_Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool = False


class Sampling(msgspec.Struct, kw_only=True):
    """Hold what chat and plain completions have in common."""

    model: _Model | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    max_tokens: _Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(ge=0.1, le=10)] | None = None
    logit_bias: Annotated[dict[str, _Bias], msgspec.Meta(max_length=4096)] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def session_changes(self) -> dict[str, Any]:
        """Return the fields that a request sets, by the names of LlmInferenceSessionOptions."""
        names = (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        )
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        if len(stop) > MAX_STOP_STRINGS or any(not 0 < len(text) <= MAX_STOP_CHARS for text in stop):
            raise ApiError(
                400, f"stop: expected up to {MAX_STOP_STRINGS} texts of 1 to {MAX_STOP_CHARS} characters", param="stop"
            )
        if stop:
            changes["stop"] = tuple(stop)
        if self.max_tokens is not None:
            changes["max_output_tokens"] = self.max_tokens
        if self.logit_bias:
            changes["logit_bias"] = _biases(self.logit_bias)
        if self.response_format is not None:
            changes["response_format"] = self.response_format
        return changes


class ChatRequest(Sampling, kw_only=True):
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    def session_changes(self) -> dict[str, Any]:
        changes = super().session_changes()
        if self.max_completion_tokens is not None:
            changes["max_output_tokens"] = self.max_completion_tokens
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs: expected logprobs to be true beside it", param="top_logprobs")
        if self.logprobs:
            changes["logprobs"] = max(1, self.top_logprobs or 0)
        if self.tools:
            changes["tools"] = tuple(self.tools)
            changes["parallel_tool_calls"] = self.parallel_tool_calls is not False
        if self.tool_choice is not None:
            changes["tool_choice"] = self.tool_choice
        return changes


class CompletionRequest(Sampling, kw_only=True):
    prompt: str | list[Any]
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    echo: bool | None = None

    def session_changes(self) -> dict[str, Any]:
        changes = super().session_changes() | {"prompt_templates": hearthlm.PromptTemplates()}
        if self.logprobs is not None:
            changes["logprobs"] = max(1, self.logprobs)
        return changes

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts: one text, several, the ids of one, or those of several."""
        return _texts_or_ids(self.prompt, "prompt")


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    input: str | list[Any]
    model: _Model | None = None
    encoding_format: str | None = None
    dimensions: int | None = None

    def inputs(self) -> list[str | list[int]]:
        return _texts_or_ids(self.input, "input")


class TokenizeRequest(msgspec.Struct, kw_only=True):
    model: _Model | None = None
    text: str | None = None
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    with_pieces: bool = False


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    tokens: _Ids
    model: _Model | None = None


# What OpenAI's API knows and this server cannot do, with the values that ask for nothing.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": ("none",),
    "store": (False,),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
}

_Body = TypeVar("_Body", bound=msgspec.Struct)
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")


def decode(body: bytes, kind: type[_Body]) -> _Body:
    """Return a body as `kind`; raises ApiError (400) naming the field that is wrong or cannot be followed."""
    try:
        decoded = msgspec.json.decode(body, type=kind)
        named = msgspec.json.decode(body, type=_Unsupported)
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        field = found.group(1) if found else None
        what = str(error)[: found.start()] if found else str(error)
        missing = re.search(r"missing required field `(\w+)`", what)
        param = field or (missing.group(1) if missing else None)
        where = f"{field}: " if field else ""
        raise ApiError(400, f"{where}{what[:1].lower()}{what[1:]}{_got(body, field, what)}", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deep", code="invalid_json") from None
    for name, nothing in _UNSUPPORTED.items():
        value = getattr(named, name)
        if value is not None and value not in nothing:
            raise ApiError(400, f"{name}: this server does not support it", param=name, code="unsupported_parameter")
    return decoded


def _got(body: bytes, field: str | None, what: str) -> str:
    """Return what a field's number is, as it was sent, where msgspec tells only what it should have been."""
    if field is None or "got" in what:
        return ""
    try:
        raw = bytes(msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get(field, b""))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # of what comes after the field
        return ""
    return f", got {raw[:30].decode()}" if raw[:1] in b"-0123456789" and raw else ""


_Unsupported = msgspec.defstruct("_Unsupported", [(name, Any, None) for name in _UNSUPPORTED])


def _biases(biases: Mapping[str, float]) -> dict[int, float]:
    for token in biases:
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise ApiError(400, f"logit_bias: expected token ids as names, got {token[:50]!r}", param="logit_bias")
    return {int(token): bias for token, bias in biases.items()}


def _texts_or_ids(value: str | list[Any], name: str) -> list[str | list[int]]:
    values: list[Any] = [value] if isinstance(value, str) else value
    if values and all(_is_id(item) for item in values):
        values = [values]
    if not 0 < len(values) <= MAX_PROMPTS:
        raise ApiError(400, f"{name}: expected 1 to {MAX_PROMPTS} of them, got {len(values)}", param=name)
    for i, item in enumerate(values):
        if not isinstance(item, str) and not (isinstance(item, list) and item and all(map(_is_id, item))):
            raise ApiError(400, f"{name}[{i}]: expected a text or token ids, got {item!r:.80}", param=name)
    return values


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31
