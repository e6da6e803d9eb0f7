"""A conversation with a model: a context that is kept between calls, cloned, saved and loaded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import Any, TypeGuard

from hearthlm.answer import (
    Answer,
    Call,
    GenerationResult,
    ResultListener,
    deliver_to_asyncio,
    deliver_to_future,
    run_calls,
)
from hearthlm.errors import SessionFileError
from hearthlm.llm_inference import LlmInference, LlmInferenceSessionOptions


class LlmInferenceSession:
    """Keep a context: what is added and what is answered stays, and is computed once.

    The context grows in one of two ways, which do not mix: by text (`add_query_chunk`), put into turns by the prompt
    templates, as in MediaPipe; or by messages (`add_message`), written with the model's chat template, out of which no
    special token is ever read. One call at a time: another meanwhile raises SessionBusyError. Use it as a context
    manager or call `close`.
    """

    def __init__(self, llm: LlmInference, options: LlmInferenceSessionOptions | None = None) -> None:
        self._llm = llm
        self._options = llm._checked_options(options)
        self._session = llm._new_session(self._options)
        self._chunks: list[str] = []  # of the user's turn, not in the context yet
        self._messages: list[dict[str, Any]] = []

    @classmethod
    def create_from_options(
        cls, llm: LlmInference, options: LlmInferenceSessionOptions | None = None
    ) -> LlmInferenceSession:
        """Begin an empty context; without options, with those of the model."""
        return cls(llm, options)

    @property
    def session_options(self) -> LlmInferenceSessionOptions:
        return self._options

    @property
    def messages(self) -> tuple[Mapping[str, Any], ...]:
        """What has been said so far, where the context grows by messages."""
        return tuple(self._messages)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of the context, what has been added since the last answer not counted."""
        return len(self._session.ids)

    def add_query_chunk(self, text: str) -> None:
        """Add text to the user's turn; it is computed with the next answer.

        Chunks of one turn are put together before they become tokens. Raises ContextLengthError, with nothing added,
        if it leaves no room for an answer, and ValueError after `add_message`.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a str, got {type(text).__name__}")
        if self._messages:
            raise ValueError("this context grows by messages: use add_message, or a session of its own")
        self._session.check_free()
        self._chunks.append(text)
        try:
            self._llm._engine.check_room(len(self._context()))
        except BaseException:
            self._chunks.pop()
            raise

    def add_message(self, role: str, content: str) -> None:
        """Add a whole message of the "system", the "user" or the "assistant"; it is computed with the next answer.

        Raises ContextLengthError, with nothing added, if it leaves no room for an answer, ValueError for another role
        and after `add_query_chunk`, UnsupportedModelError where the model has no chat template.
        """
        if self._chunks or (self._session.ids and not self._messages):
            raise ValueError("this context grows by text: use add_query_chunk, or a session of its own")
        self._session.check_free()
        message = {"role": role, "content": content}
        ids = self._llm.chat_format.encode([*self._messages, message])
        self._llm._engine.check_room(len(ids))
        self._messages.append(message)

    def generate_response(self) -> str:
        """Return the answer to the context, and keep it there.

        Raises ContextLengthError, with nothing changed, if the context leaves no room for an answer, and ValueError
        if it is empty.
        """
        return "".join(self.generate_response_stream())

    def generate_response_stream(self) -> Iterator[str]:
        """Yield the answer in increments as it is made; closing the iterator cancels, and what was read is kept."""
        return self._call().increments()

    def generate_responses(self) -> list[str]:
        """Return `num_responses` answers; the context goes on with the first."""
        return list(self.generate().texts)

    def generate(self) -> GenerationResult:
        """Return `num_responses` answers with their ids, counts and times; the context goes on with the first."""
        (result,) = run_calls([self._call(self._llm.options.num_responses)], 1)
        return result

    def generate_response_async(self, progress_listener: ResultListener | None = None) -> Future[str]:
        """Start an answer and return its future; listeners and errors as in `LlmInference.generate_response_async`."""
        options = self._llm.options
        listener = progress_listener or options.result_listener
        return deliver_to_future(self._llm._callbacks, self._call(), listener, options.error_listener)

    def astream(self) -> AsyncGenerator[str, None]:
        """Yield the answer in increments to asyncio; closing the generator or cancelling its task ends the work."""
        return deliver_to_asyncio(self._llm._callbacks, self._call())

    def cancel_generate_response_async(self) -> None:
        """End the answer under way, if any, within one step: at most 128 tokens of a prompt, or one of an answer.

        What was made stays in the context; the call that made it returns it, with the finish reason "cancelled".
        """
        self._session.cancel()

    def clone_session(self) -> LlmInferenceSession:
        """Return an independent session with the same context and options; what was computed is shared."""
        clone = LlmInferenceSession.__new__(LlmInferenceSession)
        clone._llm = self._llm
        clone._options = self._options
        clone._session = self._session.fork()
        clone._chunks = list(self._chunks)
        clone._messages = list(self._messages)
        return clone

    def update_session_options(self, **changes: Any) -> None:
        """Change options for the answers to come, by name; raises TypeError or ValueError for what is not one."""
        if changes.get("lora", self._options.lora) is not self._options.lora:
            raise ValueError("lora: a session keeps the adapter that it began with; begin another session")
        self._options = replace(self._options, **changes)

    def size_in_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, the start token not counted."""
        return self._llm.size_in_tokens(text)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the context with everything computed for it; `load` goes on from there without computing it again."""
        self._session.save(path, {"chunks": self._chunks, "messages": self._messages})

    def load(self, path: str | PathLike[str]) -> None:
        """Replace the context by one that `save` wrote with the same model; on an error nothing has changed.

        Raises SessionFileError where the file is damaged or was written with another model, ContextLengthError where
        it is longer than `max_tokens`.
        """
        extra = self._session.load(path)
        chunks, messages = extra.get("chunks"), extra.get("messages")
        if not _are_texts(chunks) or not _are_messages(messages):
            raise SessionFileError(f"{path}: expected the chunks and messages of a conversation, got something else")
        self._chunks = list(chunks)
        self._messages = [dict(message) for message in messages]

    def close(self) -> None:
        """End what is under way and give the memory back; later calls raise SessionBusyError, another close nothing."""
        self._session.close()

    def __enter__(self) -> LlmInferenceSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, num_responses: int = 1) -> Call:
        self._session.check_free()
        self._llm._engine.check_room(len(self._context()))  # refused by the call, not by the first increment
        return self._llm._call_in(
            self._session, self._context, self._options, num_responses, on_end=self._on_answer_ended
        )

    def _context(self) -> list[int]:
        """Return the ids of the context with what has been added since the last answer."""
        if self._messages:
            if self._messages[-1]["role"] in ("assistant", "model"):
                raise ValueError("the last message is the model's own: add one of the user first")
            return self._llm._checked_by_model(self._llm.chat_format.encode(self._messages))
        ids, text = self._session.ids, "".join(self._chunks)
        if self._chunks:
            turns = self._llm._templates(self._options)
            before = turns.model.suffix if ids else turns.session_prefix
            text = before + turns.user.prefix + text + turns.user.suffix + turns.model.prefix
        elif not ids:
            return []
        return [*ids, *self._llm._text_ids(text, at_start=not ids)]

    def _on_answer_ended(self, answer: Answer | None) -> None:
        if answer is None:
            return
        if self._messages:
            self._messages.append({"role": "assistant", "content": answer.text})
        else:
            self._chunks = []


def _are_texts(values: object) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _are_messages(values: object) -> TypeGuard[list[dict[str, str]]]:
    return isinstance(values, list) and all(
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and all(isinstance(part, str) for part in value.values())
        for value in values
    )
