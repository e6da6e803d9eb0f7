"""Text in, text out: the public face of a model."""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from numbers import Integral, Real
from operator import index
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from hearthlm.answer import (
    Answer,
    Call,
    CallbackThread,
    ErrorListener,
    GenerationResult,
    ResponseIncrement,
    ResultListener,
    call_outcomes,
    deliver_increments,
    deliver_to_asyncio,
    deliver_to_future,
    run_calls,
)
from hearthlm.chat import ChatFormat, Message, chat_format
from hearthlm.errors import EngineClosedError, ModelFormatError, ResponseFormatError, UnsupportedModelError
from hearthlm.formats.sampler_defaults import SamplerDefaults
from hearthlm.models.family import PromptTemplates
from hearthlm.runtime.constraint import WHITE_SPACE, Constraint, ConstraintCompiler, ResponseFormat
from hearthlm.runtime.cpu_count import default_num_threads
from hearthlm.runtime.engine import Engine
from hearthlm.runtime.language_model import ExecutorSettings, TextSettings, open_language_model
from hearthlm.runtime.lora import Adapter
from hearthlm.runtime.sampler import Sampler
from hearthlm.runtime.session import Session
from hearthlm.runtime.transformer import ActivationDataType, CacheDataType
from hearthlm.runtime.weights import WeightPlacement
from hearthlm.tokenizers import Tokenizer
from hearthlm.tool_calls import ToolCallReader, call_grammar, checked_choice, checked_tools, relaxed_tools

if TYPE_CHECKING:
    from hearthlm.model_info import FileInfo, ModelInfo

DEFAULT_MAX_TOKENS = 512
DEFAULT_TOP_K = 40
DEFAULT_TOP_P = 1.0
DEFAULT_TEMPERATURE = 0.8
DEFAULT_PREFIX_CACHE_MB = 256
MAX_CALLS_AT_ONCE = 16  # of one batch: more would only make every answer wait for more memory

Prompt = str | Sequence[int] | Sequence[Message]

_NUMBERS = ("top_p", "temperature", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


@dataclass(frozen=True)
class LlmInferenceOptions:
    """Say which model to load and how its calls sample by default.

    `model_path`: a MediaPipe `.bin` or `.task`, a LiteRT `.litertlm` or `.tflite`, or a Hugging Face folder.
    `max_tokens` counts prompt and answer together; None means 512, and for LiteRT models the cache that they were built
    with. `temperature` 0 or `top_k` 1 is greedy; `top_k` 0 is the whole vocabulary; where `top_k`, `top_p` or
    `temperature` is None it is what the model file says, or else 40, 1.0 or 0.8. `num_threads` None means one per
    physical core. `weights`: "mmap" maps the file, shared with other processes; "ram" reads it once, into memory that
    is read faster; "auto" reads it where a quarter of the free memory is enough for it. `activation_data_type` None
    means int8 where weights are quantised; "float32" computes the same weights in float, slower.
    `kv_cache_dtype` None means float16 for quantised weights and float32 for float ones; "int8" halves the memory of
    float16. `num_responses` is how many
    `generate` and `generate_responses` make of one prompt, which is read once. `result_listener(increment, done)` and
    `error_listener(exception)` serve the async calls. `prefix_cache_mb` (MB) is how much of what earlier calls have
    computed is kept for later ones that begin alike; 0 keeps nothing. `prompt_lookup`: guess ahead where an answer
    repeats what came before, which changes how fast it comes, never what it says. `lora_path` is an adapter for every
    call that names none; `supported_lora_ranks`, if given, refuses others. LiteRT models compute as they were exported:
    `weights`, `activation_data_type` and `kv_cache_dtype` are refused for them. `cache_dir` is a folder in which their
    weights are stored in the order in which they are read, for faster loading; without it nothing is written.
    `tokenizer_path`, `start_token` and `stop_tokens` (tokens of its vocabulary, or ids) are for a bare `.tflite`, which
    says nothing of the kind.
    Raises TypeError or ValueError, by name, for a wrong value and NotImplementedError for what is not built yet.
    """

    model_path: str | PathLike[str]
    max_tokens: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    random_seed: int = 0
    lora_path: str | PathLike[str] | None = None
    num_responses: int = 1
    supported_lora_ranks: tuple[int, ...] = ()
    preferred_backend: Literal["cpu", "gpu"] | None = None
    result_listener: ResultListener | None = None
    error_listener: ErrorListener | None = None
    num_threads: int | None = None
    weights: WeightPlacement = "auto"
    activation_data_type: ActivationDataType | None = None
    kv_cache_dtype: CacheDataType | None = None
    cache_dir: str | PathLike[str] | None = None
    prefix_cache_mb: int = DEFAULT_PREFIX_CACHE_MB
    prompt_lookup: bool = True
    tokenizer_path: str | PathLike[str] | None = None
    start_token: str | int | None = None
    stop_tokens: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.model_path, (str, PathLike)):
            raise TypeError(f"model_path: expected a path, got {self.model_path!r:.80}")
        if not isinstance(self.lora_path, (str, PathLike, type(None))):
            raise TypeError(f"lora_path: expected a path, got {self.lora_path!r:.80}")
        _check_choice("weights", self.weights, get_args(WeightPlacement))
        _check_choice("activation_data_type", self.activation_data_type, (None, *get_args(ActivationDataType)))
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, (None, *get_args(CacheDataType)))
        _check_choice("preferred_backend", self.preferred_backend, (None, "cpu", "gpu"))
        for name in ("max_tokens", "num_threads"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), at_least=1)
        _check_integer("num_responses", self.num_responses, at_least=1)
        _check_integer("prefix_cache_mb", self.prefix_cache_mb, at_least=0)
        if not isinstance(self.prompt_lookup, bool):
            raise TypeError(f"prompt_lookup: expected True or False, got {self.prompt_lookup!r:.80}")
        for name in ("result_listener", "error_listener"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name}: expected a function, got {getattr(self, name)!r}")
        if self.preferred_backend == "gpu":
            raise NotImplementedError("preferred_backend='gpu' is not built yet; leave it at its default")
        if not isinstance(self.supported_lora_ranks, (tuple, list)):
            raise TypeError(f"supported_lora_ranks: expected a tuple, got {self.supported_lora_ranks!r:.80}")
        for rank in self.supported_lora_ranks:
            _check_integer("supported_lora_ranks", rank, at_least=1)
        for name in ("tokenizer_path", "cache_dir"):
            if not isinstance(getattr(self, name), (str, PathLike, type(None))):
                raise TypeError(f"{name}: expected a path, got {getattr(self, name)!r:.80}")
        if not isinstance(self.stop_tokens, (tuple, list)):
            raise TypeError(f"stop_tokens: expected a tuple, got {self.stop_tokens!r:.80}")
        for token in self.stop_tokens:
            _check_token("stop_tokens", token)
        if self.start_token is not None:
            _check_token("start_token", self.start_token)
        self.session_options()

    def session_options(self) -> LlmInferenceSessionOptions:
        """Return the sampling part of these options."""
        return LlmInferenceSessionOptions(
            top_k=self.top_k, top_p=self.top_p, temperature=self.temperature, random_seed=self.random_seed
        )


@dataclass(frozen=True)
class LlmInferenceSessionOptions:
    """Say how one call samples and when it ends.

    `prompt_templates` None means those that the model file carries; `PromptTemplates()` means none.
    `max_output_tokens` limits the answer alone. `stop` adds strings to the model's own stop tokens; they are never
    printed. `min_p` drops tokens less likely than this part of the most likely one. `presence_penalty` and
    `frequency_penalty` (-2 to 2) make what the answer already holds less likely, `repetition_penalty` (1 is none) also
    what the prompt holds; `logit_bias` adds to the logits of token ids. `logprobs` asks for the log-probability of
    every token and of this many most likely ones in its place. `lora` is an adapter that `load_lora` returned.
    `response_format` is the form of the answer, which is enforced token by token: {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"schema": {...}}} or {"type": "regex", "pattern": "..."}; an answer that
    ends with "stop" has it. It needs llguidance (`pip install "hearthlm[grammar]"`); a form that cannot be enforced
    is a ResponseFormatError of the call. `tools` are what the model may call, in the form of OpenAI's API, with
    messages only and where its chat template knows tools; `tool_choice` is "auto", "none", "required" or a tool's name,
    and a call that has begun is enforced like a form. `LlmInference.tool_call_reader` reads calls out of the text.
    Raises TypeError or ValueError, by name, for a wrong value and NotImplementedError for what is not built yet.
    """

    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    random_seed: int = 0
    lora: Adapter | None = None
    prompt_templates: PromptTemplates | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    logprobs: int = 0
    response_format: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True

    def __post_init__(self) -> None:
        if self.top_k is not None:
            _check_integer("top_k", self.top_k, at_least=0)
        _check_integer("random_seed", self.random_seed, at_least=0, at_most=(1 << 64) - 1)
        for name in _NUMBERS:
            if getattr(self, name) is not None or name not in ("top_p", "temperature"):
                _check_number(name, getattr(self, name))
        if not isinstance(self.stop, (tuple, list)) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop: expected a tuple of non-empty strings, got {self.stop!r:.80}")
        if self.max_output_tokens is not None:
            _check_integer("max_output_tokens", self.max_output_tokens, at_least=1)
        _check_integer("logprobs", self.logprobs, at_least=0)
        if not isinstance(self.logit_bias, (Mapping, type(None))):
            raise TypeError(f"logit_bias: expected a mapping of token ids to numbers, got {self.logit_bias!r:.80}")
        for token_id, bias in (self.logit_bias or {}).items():
            _check_integer("logit_bias: token id", token_id, at_least=0)
            _check_number(f"logit_bias: token {token_id}", bias)
        if not isinstance(self.prompt_templates, (PromptTemplates, type(None))):
            raise TypeError(f"prompt_templates: expected PromptTemplates, got {self.prompt_templates!r:.80}")
        if self.lora is not None and not isinstance(self.lora, Adapter):
            raise TypeError(f"lora: expected what load_lora returned, got {self.lora!r:.80}")
        has_form = ResponseFormat.parse(self.response_format) is not None
        if self.tools:
            if checked_choice(self.tool_choice, checked_tools(self.tools)) != "none" and has_form:
                raise ValueError("tools: expected no response_format beside them, unless tool_choice is none")
        elif self.tool_choice not in ("auto", "none"):
            raise ValueError(f"tool_choice: expected tools beside {self.tool_choice!r:.80}")
        self.sampler()

    def completed(self, defaults: SamplerDefaults) -> LlmInferenceSessionOptions:
        """Return these options with what was left open as the model file says, or else MediaPipe's defaults."""
        mediapipe = (("top_k", DEFAULT_TOP_K), ("top_p", DEFAULT_TOP_P), ("temperature", DEFAULT_TEMPERATURE))
        changes: dict[str, Any] = {}
        for name, default in mediapipe:
            if getattr(self, name) is None:
                of_model = getattr(defaults, name)
                changes[name] = default if of_model is None else of_model
        return replace(self, **changes) if changes else self

    def sampler(self, response_index: int = 0) -> Sampler:
        """Return a sampler with these settings; raises ValueError for a setting out of range."""
        return Sampler(
            top_k=DEFAULT_TOP_K if self.top_k is None else self.top_k,
            top_p=DEFAULT_TOP_P if self.top_p is None else self.top_p,
            temperature=DEFAULT_TEMPERATURE if self.temperature is None else self.temperature,
            seed=self.random_seed,
            response_index=response_index,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
        )


class LlmInference:
    """Answer prompts with one loaded model.

    Every call starts from an empty context; any number may run at once, from any threads. Use it as a context manager
    or call `close`. In a forked child of the process that loaded it, calls raise EngineClosedError.
    """

    def __init__(self, options: LlmInferenceOptions, progress: Callable[[float], None] | None = None) -> None:
        started = time.perf_counter()
        if not isinstance(options, LlmInferenceOptions):
            raise TypeError(f"options: expected LlmInferenceOptions, got {type(options).__name__}")
        self._options = options
        with open_language_model(options.model_path, text_settings_of(options)) as model:
            max_tokens = max_tokens_of(options.max_tokens, model.context_length, has_fixed_cache=model.has_fixed_cache)
            executor = model.new_executor(executor_settings_of(options), progress)
        self._model = model
        self._adapters: set[str] = set()
        self._engine = Engine(
            executor,
            max_tokens=max_tokens,
            prefix_cache_bytes=options.prefix_cache_mb * 1_000_000,
            looks_up=options.prompt_lookup,
        )
        self._callbacks = CallbackThread()
        self._constraints: ConstraintCompiler | None = None
        self._chat_format: ChatFormat | None = None
        try:
            lora = None if options.lora_path is None else self.load_lora(options.lora_path)
        except BaseException:
            self._engine.close()
            raise
        self._default_options = self._checked_options(replace(options.session_options(), lora=lora))
        self.load_s = time.perf_counter() - started

    @classmethod
    def create_from_options(
        cls, options: LlmInferenceOptions, progress: Callable[[float], None] | None = None
    ) -> LlmInference:
        """Load the model of `options`; `progress` receives the part that is done, 0 to 1.

        Raises FileNotFoundError, ModelFormatError or UnsupportedModelError where the file is not what it should be,
        and ValueError where `max_tokens` exceeds what the model was built for.
        """
        return cls(options, progress)

    @classmethod
    def create_from_model_path(cls, model_path: str | PathLike[str]) -> LlmInference:
        """Load a model with every option at its default."""
        return cls(LlmInferenceOptions(model_path))

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    @property
    def options(self) -> LlmInferenceOptions:
        return self._options

    @property
    def max_tokens(self) -> int:
        """The number of tokens that prompt and answer may have together."""
        return self._engine.max_tokens

    @property
    def num_threads(self) -> int:
        """The number of threads that compute."""
        return self._options.num_threads or default_num_threads()

    @classmethod
    def load_async(
        cls, options: LlmInferenceOptions, progress: Callable[[float], None] | None = None
    ) -> Future[LlmInference]:
        """Do what `create_from_options` does on a thread of its own; `progress` is called from that thread."""
        future: Future[LlmInference] = Future()
        is_process_ending = threading.Event()

        def report(done: float) -> None:
            if is_process_ending.is_set():
                raise EngineClosedError("the program ended while the model was being loaded")
            if progress is not None:
                progress(done)

        def load() -> None:
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(cls(options, report))
            except BaseException as error:
                future.set_exception(error)
            finally:
                atexit.unregister(end_with_process)

        thread = threading.Thread(target=load, name="hearthlm-loading", daemon=True)

        def end_with_process() -> None:  # a thread that is in a kernel when the interpreter goes would abort it
            is_process_ending.set()
            thread.join()

        atexit.register(end_with_process)
        thread.start()
        return future

    def generate_response(self, prompt: str) -> str:
        """Return the answer to a prompt.

        Raises ContextLengthError, with both numbers, before any work if the prompt leaves no room for an answer.
        """
        return "".join(self.generate_response_stream(prompt))

    def generate_responses(self, prompt: str) -> list[str]:
        """Return `num_responses` answers to a prompt, which is read once; each has random numbers of its own."""
        return list(self.generate(_checked_text(prompt)).texts)

    def generate_response_stream(self, prompt: str) -> Iterator[str]:
        """Yield the answer in increments as it is made; closing the iterator cancels.

        Increments are whole characters, and joined they are the answer. Errors as in `generate_response`, raised by
        this call and not by the first increment.
        """
        return self.generate_stream(_checked_text(prompt))

    def generate_response_async(self, prompt: str, progress_listener: ResultListener | None = None) -> Future[str]:
        """Start an answer and return its future; cancelling the future ends the work.

        `progress_listener`, or else the options' `result_listener`, gets `(increment, done)` on one thread for all
        calls, in order, and last `("", True)`, when the future is set. An error goes to `error_listener` and to the
        future; a listener that raises ends its answer. What can be refused before any work is raised by this call.
        """
        options = self._default_options
        call = self._call(self._ids_of(_checked_text(prompt), options), options)
        listener = progress_listener or self._options.result_listener
        return deliver_to_future(self._callbacks, call, listener, self._options.error_listener)

    def generate_stream(self, prompt: Prompt, options: LlmInferenceSessionOptions | None = None) -> Iterator[str]:
        """Do what `generate_response_stream` does for text, ids or messages, with options of its own."""
        options = self._checked_options(options)
        return self._call(self._ids_of(prompt, options), options).increments()

    def astream(self, prompt: Prompt, options: LlmInferenceSessionOptions | None = None) -> AsyncGenerator[str, None]:
        """Yield the answer in increments to asyncio; closing the generator or cancelling its task ends the work."""
        options = self._checked_options(options)
        return deliver_to_asyncio(self._callbacks, self._call(self._ids_of(prompt, options), options))

    def astream_responses(
        self, prompt: Prompt, options: LlmInferenceSessionOptions | None = None, *, num_responses: int | None = None
    ) -> AsyncGenerator[ResponseIncrement | GenerationResult, None]:
        """Yield what each step adds to each of `num_responses` answers, their ids included, and last the result.

        Closing the generator or cancelling its task ends the work, in a prompt too, within one step.
        """
        options = self._checked_options(options)
        count = self._options.num_responses if num_responses is None else num_responses
        _check_integer("num_responses", count, at_least=1)
        return deliver_increments(self._callbacks, self._call(self._ids_of(prompt, options), options, count))

    def prompt_ids(self, prompt: Prompt, options: LlmInferenceSessionOptions | None = None) -> list[int]:
        """Return the ids of the context that `generate` would make of a prompt, the start token included.

        Raises ContextLengthError if it leaves no room for an answer.
        """
        return self._ids_of(prompt, self._checked_options(options))

    def generate(self, prompt: Prompt, options: LlmInferenceSessionOptions | None = None) -> GenerationResult:
        """Return `num_responses` answers with their ids, counts and times.

        A str is put into the user's turn where the model file has turns; ids are taken as they are; messages
        (mappings with `role` and `content`) are written with the model's chat template.
        """
        (result,) = self.generate_batch([prompt], options)
        return result

    def generate_batch(
        self, prompts: Iterable[Prompt], options: LlmInferenceSessionOptions | None = None
    ) -> list[GenerationResult]:
        """Return what `generate` would return for each prompt, computed side by side.

        Raises what is wrong with any prompt before any work; an error while generating ends the whole batch.
        """
        if isinstance(prompts, (str, bytes, Mapping)):
            raise TypeError(f"prompts: expected several prompts, got one {type(prompts).__name__}")
        options = self._checked_options(options)
        num_responses = self._options.num_responses
        all_ids = [self._ids_of(prompt, options) for prompt in prompts]
        calls = (self._call(ids, options, num_responses) for ids in all_ids)
        return list(run_calls(calls, max(1, MAX_CALLS_AT_ONCE // num_responses)))

    def generate_each(
        self,
        requests: Iterable[tuple[Prompt, LlmInferenceSessionOptions | None] | Exception],
        *,
        max_at_once: int = MAX_CALLS_AT_ONCE,
    ) -> Generator[GenerationResult | Exception, None, None]:
        """Yield what `generate` returns for each prompt with options of its own, in order, computed side by side.

        A request that fails leaves its exception in place of a result, and the others go on; only that the model was
        closed, or memory ran out, is raised. An exception among `requests` is given back in its place. They are read
        as answers get ready: there may be endlessly many, and at most four times `max_at_once` results wait for a long
        one before them.
        """
        _check_integer("max_at_once", max_at_once, at_least=1)
        num_responses = self._options.num_responses

        def calls() -> Iterator[Call | Exception]:
            for request in requests:
                if isinstance(request, Exception):
                    yield request
                    continue
                prompt, options = request
                try:
                    checked = self._checked_options(options)
                    yield self._call(self._ids_of(prompt, checked), checked, num_responses)
                except (EngineClosedError, MemoryError):
                    raise
                except Exception as error:
                    yield error

        return call_outcomes(calls(), max(1, max_at_once // num_responses), 4 * max_at_once)

    def token_logprobs(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return float32 [len(ids) - 1]: the log-probability of each id given those before it.

        The ids are taken as they are: no start token is added; the adapter is that of `lora_path`. Raises
        ContextLengthError beyond `max_tokens`.
        """
        checked = _checked_ids(ids, self._model.vocab_size)
        return self._engine.score(checked, self._default_options.lora)

    def embed(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        normalize: bool = True,
        lora: Adapter | None = None,
        cancelled: threading.Event | None = None,
    ) -> NDArray[np.float32]:
        """Return float32 [len(texts), embedding_dim]: the mean of the last layer's rows over each text's tokens.

        The start token is counted in, no template is applied; a text given as ids is taken as it is. With `normalize`
        each row has length 1. `lora` is an adapter that `load_lora` returned. Setting `cancelled` from another thread
        ends the work within one step, with EngineClosedError. Raises ContextLengthError beyond `max_tokens`.
        """
        if (embedding_dim := self._model.embedding_dim) is None:
            raise UnsupportedModelError(
                f"{self._options.model_path}: a {self._model.name} model gives logits, and no rows of its last layer "
                "to embed with"
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        all_ids = [
            self._text_ids(text) if isinstance(text, str) else _checked_ids(text, self._model.vocab_size, f"texts[{i}]")
            for i, text in enumerate(texts)
        ]
        rows = np.zeros((len(texts), embedding_dim), np.float32)
        for row, ids in zip(rows, all_ids, strict=True):
            row[:] = self._engine.embed(ids, self._checked_lora(lora), cancelled)
        if normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows

    def load_lora(self, path: str | PathLike[str]) -> Adapter:
        """Read a LoRA adapter, a MediaPipe `_lora.bin` or a PEFT folder, to be passed as the option `lora` of a call.

        A LiteRT model takes MediaPipe's `.tflite` or a PEFT folder, up to the largest rank that it was built for.

        The weights stay as they are: any number of adapters of any rank can serve calls side by side. Raises
        TensorMismatchError for one that does not fit the model or would change nothing, UnsupportedModelError for a
        setting of PEFT's that is not understood, and ValueError for a rank that is not in `supported_lora_ranks`.
        """
        adapter = self._model.open_adapter(path)
        supported = self._options.supported_lora_ranks
        if supported and adapter.rank not in supported:
            raise ValueError(f"{path}: rank {adapter.rank}: expected one of supported_lora_ranks, {list(supported)}")
        self._adapters.add(adapter.digest)
        return adapter

    def prepare_response_format(self, options: LlmInferenceSessionOptions) -> None:
        """Compile the form that `options` ask for, so that calls with it begin at once; without one, do nothing.

        Raises ResponseFormatError where it cannot be enforced, ImportError without llguidance.
        """
        self._constraint(options)

    def tool_call_reader(self, options: LlmInferenceSessionOptions) -> ToolCallReader | None:
        """Return what parts an answer into text and calls of the `tools` of `options`; None where none can come."""
        tools, syntax = _active_tools(options), self.chat_format.tool_syntax if options.tools else None
        if not tools or syntax is None:
            return None
        return ToolCallReader(syntax, [tool["function"]["name"] for tool in tools])

    def size_in_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, the start token not counted."""
        return len(self.tokenizer.encode(_checked_text(text, "text")))

    @property
    def info(self) -> ModelInfo | FileInfo:
        """What the file says about the model: a FileInfo where it holds a graph, whose architecture nothing tells."""
        from hearthlm.model_info import inspect_file  # knows every format, of which this model is one

        return self._model.info or inspect_file(self._options.model_path)

    @property
    def vocab_size(self) -> int:
        """The number of token ids that the model tells apart."""
        return self._model.vocab_size

    @property
    def context_length(self) -> int:
        """The number of tokens that the model was built for, prompt and answer together."""
        return self._model.context_length

    @property
    def embedding_dim(self) -> int | None:
        """The length of what `embed` returns for a text, None where the model has none."""
        return self._model.embedding_dim

    @property
    def start_id(self) -> int | None:
        """The token that every prompt begins with, if any."""
        return self._model.start_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._model.stop_ids

    @property
    def default_options(self) -> LlmInferenceSessionOptions:
        """How a call samples that says nothing: the options, and for what they left open the model's file."""
        return self._default_options

    @property
    def chat_format(self) -> ChatFormat:
        """How this model's conversations are written; raises UnsupportedModelError if nothing says so."""
        if self._chat_format is None:
            self._chat_format = chat_format(self._model)
        return self._chat_format

    def close(self) -> None:
        """Cancel what is under way and give threads and memory back; later calls raise EngineClosedError."""
        self._engine.close()
        self._callbacks.join()

    def __enter__(self) -> LlmInference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ids_of(self, prompt: Prompt, options: LlmInferenceSessionOptions) -> list[int]:
        """Return the context that a prompt makes, checked to leave room for an answer."""
        if isinstance(prompt, (bytes, bytearray, Mapping)) or not hasattr(prompt, "__len__"):
            raise TypeError(f"prompt: expected a str, token ids or messages, got {type(prompt).__name__}")
        if isinstance(prompt, str):
            turns = self._templates(options)
            ids = self._text_ids(
                turns.session_prefix + turns.user.prefix + prompt + turns.user.suffix + turns.model.prefix
            )
        elif len(prompt) and isinstance(prompt[0], Mapping):
            messages = cast("Sequence[Message]", prompt)
            ids = self._checked_by_model(self.chat_format.encode(messages, tools=_active_tools(options)))
            if messages[-1]["role"] in ("assistant", "model"):
                raise ValueError("messages: the last is the model's own: expected one of the user")
        else:
            ids = _checked_ids(cast("Sequence[int]", prompt), self._model.vocab_size)
        self._engine.check_room(len(ids))
        return ids

    def _checked_options(self, options: LlmInferenceSessionOptions | None) -> LlmInferenceSessionOptions:
        if options is None:
            return self._default_options
        if not isinstance(options, LlmInferenceSessionOptions):
            raise TypeError(f"options: expected LlmInferenceSessionOptions, got {type(options).__name__}")
        return options.completed(self._model.sampler_defaults)

    def _templates(self, options: LlmInferenceSessionOptions) -> PromptTemplates:
        return self._model.prompt_templates if options.prompt_templates is None else options.prompt_templates

    def _text_ids(self, text: str, *, at_start: bool = True) -> list[int]:
        """Return the ids of a text, at the start of a context after the start token, once."""
        start = self._model.start_id
        if start is None or not at_start:
            ids = self.tokenizer.encode(text)
        else:  # a start token that was written out is the one that is added anyway, not a second one
            ids = self.tokenizer.encode(text.removeprefix(self.tokenizer.piece(start)))
            ids = ids if ids[:1] == [start] else [start, *ids]
        return self._checked_by_model(ids)

    def _checked_by_model(self, ids: list[int]) -> list[int]:
        if max(ids, default=0) >= (vocab_size := self._model.vocab_size):
            raise ModelFormatError(
                f"{self._options.model_path}: the prompt holds token {max(ids)}, but the model knows only {vocab_size}"
                ": its tokenizer is another model's"
            )
        return ids

    def _call(self, ids: Sequence[int], options: LlmInferenceSessionOptions, num_responses: int = 1) -> Call:
        """Return a call from an empty context."""
        session = self._new_session(options)
        return self._call_in(session, lambda: ids, options, num_responses, on_end=lambda _: session.close())

    def _new_session(self, options: LlmInferenceSessionOptions) -> Session:
        return Session(self._engine, adapter=self._checked_lora(options.lora))

    def _checked_lora(self, lora: Adapter | None) -> Adapter | None:
        """Return the adapter of a call: the one it names, or else that of `lora_path`."""
        lora = self._default_options.lora if lora is None else lora
        if lora is not None and lora.digest not in self._adapters:
            raise ValueError(f"lora: {lora.path} was not loaded by this model; use its load_lora")
        return lora

    def _call_in(
        self,
        session: Session,
        context: Callable[[], Sequence[int]],
        options: LlmInferenceSessionOptions,
        num_responses: int,
        *,
        on_end: Callable[[Answer | None], None],
    ) -> Call:
        for token_id in options.logit_bias or ():
            if token_id >= (vocab_size := self._model.vocab_size):
                raise ValueError(f"logit_bias: expected token ids below {vocab_size}, got {token_id}")
        if suppressed := self._model.suppressed_ids:
            never = dict.fromkeys(suppressed, -math.inf)
            options = replace(options, logit_bias={**(options.logit_bias or {}), **never})
        return Call(
            session,
            context,
            [options.sampler(i) for i in range(num_responses)],
            tokenizer=self.tokenizer,
            stop_ids=self._model.stop_ids,
            stop_strings=(*self._model.stop_strings, *options.stop),
            max_output_tokens=options.max_output_tokens,
            num_logprobs=options.logprobs,
            constraint=self._constraint(options),
            shown_ids=[i for i in self._call_ids() if i is not None] if _active_tools(options) else (),
            on_end=on_end,
        )

    def _constraint(self, options: LlmInferenceSessionOptions) -> Constraint | None:
        """Return the compiled form of the answers of a call."""
        response_format = ResponseFormat.parse(options.response_format)
        tools = _active_tools(options)
        if response_format is None and not tools:
            return None
        if self._constraints is None:
            self._constraints = ConstraintCompiler(self.tokenizer, self._model.vocab_size, self._model.stop_ids)
        if response_format is not None:
            return self._constraints.compile(response_format)
        try:
            grammar = self._call_format(options, tools)
            return None if grammar is None else self._constraints.compile(grammar)
        except ResponseFormatError:
            grammar = self._call_format(options, relaxed_tools(tools))
            return None if grammar is None else self._constraints.compile(grammar)

    def _call_format(
        self, options: LlmInferenceSessionOptions, tools: Sequence[Mapping[str, Any]]
    ) -> ResponseFormat | None:
        """Return the form of an answer that may, or has to, call tools; None where it may be any text."""
        syntax = self.chat_format.tool_syntax
        if syntax is None:
            raise UnsupportedModelError("tools: this model's chat template knows none, or a way that is not supported")
        begin, end = self._call_ids()
        grammar = call_grammar(
            syntax,
            tools,
            checked_choice(options.tool_choice, tools),
            begin_id=begin,
            end_id=end,
            parallel=options.parallel_tool_calls,
            white_space=WHITE_SPACE,
        )
        return None if grammar is None else ResponseFormat.of_grammar(grammar)

    def _call_ids(self) -> tuple[int | None, int | None]:
        """Return the special tokens that stand before and after a call of a tool, None for what is text."""
        syntax = self.chat_format.tool_syntax
        if syntax is None:
            return None, None
        begin, end = (self.tokenizer.token_id(text) if text else None for text in (syntax.begin, syntax.end))
        is_special = self.tokenizer.is_special
        return begin if begin and is_special(begin) else None, end if end and is_special(end) else None


def _active_tools(options: LlmInferenceSessionOptions) -> list[dict[str, Any]]:
    """Return the tools that a call may use."""
    tools = checked_tools(options.tools)
    return [] if not tools or checked_choice(options.tool_choice, tools) == "none" else tools


def text_settings_of(options: LlmInferenceOptions) -> TextSettings:
    """Return what the options say of how a model is spoken to."""
    return TextSettings(options.tokenizer_path, options.start_token, tuple(options.stop_tokens))


def executor_settings_of(options: LlmInferenceOptions) -> ExecutorSettings:
    """Return what the options say of how a model is computed."""
    return ExecutorSettings(
        num_threads=options.num_threads or default_num_threads(),
        weights=options.weights,
        activation_data_type=options.activation_data_type,
        kv_cache_dtype=options.kv_cache_dtype,
        cache_dir=options.cache_dir,
    )


def max_tokens_of(wanted: int | None, built_in: int, *, has_fixed_cache: bool = False) -> int:
    """Return the option `max_tokens`, or its default, for a model with a context of `built_in`."""
    if wanted is None:
        return built_in if has_fixed_cache else min(DEFAULT_MAX_TOKENS, built_in)
    if wanted > built_in:
        raise ValueError(f"max_tokens: expected at most {built_in}, which the model was built for, got {wanted}")
    return wanted


def _checked_ids(ids: Sequence[int], vocab_size: int, name: str = "ids") -> list[int]:
    if isinstance(ids, (bytes, Mapping)) or not hasattr(ids, "__len__"):
        raise TypeError(f"{name}: expected a str or token ids, got {type(ids).__name__}")
    checked = []
    for i in ids:
        try:
            checked.append(index(i))  # what is no integer, 1.5 or "7", is not made one
        except TypeError:
            raise TypeError(f"{name}: expected integers, got {i!r:.80}") from None
        if not 0 <= checked[-1] < vocab_size:
            raise ValueError(f"{name}: expected 0 to {vocab_size - 1}, got {i}")
    return checked


def _checked_text(text: object, name: str = "prompt") -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a str, got {type(text).__name__}")
    return text


def _check_integer(name: str, value: object, *, at_least: int, at_most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r:.80}")
    if not at_least <= int(value) <= at_most:
        limit = f"of at least {at_least}" if at_most == math.inf else f"from {at_least} to {at_most}"
        raise ValueError(f"{name}: expected an integer {limit}, got {value!r:.80}")


def _check_token(name: str, token: object) -> None:
    if isinstance(token, str):
        if not token:
            raise ValueError(f"{name}: expected a token of the vocabulary or its id, got an empty text")
    else:
        _check_integer(name, token, at_least=0)


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r:.80}")


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _refuse_unbuilt(**asked: bool) -> None:
    for name, wanted in asked.items():
        if wanted:
            raise NotImplementedError(f"{name} is not built yet; leave it at its default")
