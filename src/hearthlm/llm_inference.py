"""Text in, text out: the public face of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hearthlm.errors import ModelFormatError
from hearthlm.models.family import PromptTemplates
from hearthlm.runtime.cpu_count import default_num_threads
from hearthlm.runtime.engine import Engine, FinishReason
from hearthlm.runtime.model import Model, ModelInfo
from hearthlm.runtime.sampler import Sampler
from hearthlm.runtime.session import Session
from hearthlm.runtime.transformer import ActivationDataType, CacheDataType, TransformerExecutor
from hearthlm.runtime.weights import WeightPlacement
from hearthlm.tokenizers import Tokenizer
from hearthlm.tokenizers.stream import StopMatcher, StreamDecoder

DEFAULT_MAX_TOKENS = 512

ResultListener = Callable[[str, bool], None]
ErrorListener = Callable[[Exception], None]


@dataclass(frozen=True)
class LlmInferenceOptions:
    """Say which model to load and how its calls sample by default.

    `model_path`: a MediaPipe `.bin` or a Hugging Face folder. `max_tokens` counts prompt and answer together; None
    means 512. `temperature` 0 or `top_k` 1 is greedy; `top_k` 0 is the whole vocabulary. `num_threads` None means one
    per physical core. `weights`: "mmap" maps the file, "ram" reads it once, "auto" chooses. `activation_data_type`
    None means int8 where weights are quantised; "float32" computes the same weights in float, slower.
    `kv_cache_dtype` None means float16 for quantised weights and float32 for float ones.
    Raises ValueError for a value out of range and NotImplementedError for an option that is not built yet.
    """

    model_path: str | PathLike[str]
    max_tokens: int | None = None
    top_k: int = 40
    top_p: float = 1.0
    temperature: float = 0.8
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

    def __post_init__(self) -> None:
        _check_choice("weights", self.weights, get_args(WeightPlacement))
        _check_choice("activation_data_type", self.activation_data_type, (None, *get_args(ActivationDataType)))
        _check_choice("kv_cache_dtype", self.kv_cache_dtype, (None, *get_args(CacheDataType)))
        _check_choice("preferred_backend", self.preferred_backend, (None, "cpu", "gpu"))
        for name in ("max_tokens", "num_threads"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
        if self.preferred_backend == "gpu":
            raise NotImplementedError("preferred_backend='gpu' is not built yet; leave it out or use 'cpu'")
        _refuse_unbuilt(
            lora_path=self.lora_path is not None,
            num_responses=self.num_responses != 1,
            supported_lora_ranks=bool(self.supported_lora_ranks),
            result_listener=self.result_listener is not None,
            error_listener=self.error_listener is not None,
        )
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
    printed. Raises ValueError for a value out of range and NotImplementedError for an option that is not built yet.
    """

    top_k: int = 40
    top_p: float = 1.0
    temperature: float = 0.8
    random_seed: int = 0
    lora: Any = None
    prompt_templates: PromptTemplates | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    logprobs: int = 0
    response_format: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop: expected a tuple of non-empty strings, got {self.stop!r}")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise ValueError(f"max_output_tokens: expected at least 1, got {self.max_output_tokens}")
        _refuse_unbuilt(
            lora=self.lora is not None,
            presence_penalty=self.presence_penalty != 0,
            frequency_penalty=self.frequency_penalty != 0,
            repetition_penalty=self.repetition_penalty != 1,
            logit_bias=bool(self.logit_bias),
            logprobs=self.logprobs != 0,
            response_format=self.response_format is not None,
        )
        self.sampler()

    def sampler(self) -> Sampler:
        """Return a fresh sampler with these settings; raises ValueError for a setting out of range."""
        return Sampler(
            top_k=self.top_k,
            top_p=self.top_p,
            temperature=self.temperature,
            seed=self.random_seed,
            min_p=self.min_p,
        )


@dataclass(frozen=True)
class GenerationResult:
    """Hold what one call produced; times are in seconds."""

    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    seed: int
    prefill_s: float
    decode_s: float
    logprobs: Any = None


class LlmInference:
    """Answer prompts with one loaded model.

    Every call starts from an empty context; any number may run at once, from any threads. Use it as a context manager
    or call `close`. Not usable in a forked child of the process that loaded it.
    """

    def __init__(self, options: LlmInferenceOptions, progress: Callable[[float], None] | None = None) -> None:
        started = time.perf_counter()
        self._options = options
        with Model.open(options.model_path) as model:
            max_tokens = _max_tokens(options.max_tokens, model.architecture.context_length)
            weights = model.load_weights(placement=options.weights, progress=progress)
        self._model = model
        num_threads = options.num_threads or default_num_threads()
        executor = TransformerExecutor(
            model.architecture,
            weights,
            num_threads=num_threads,
            activation_data_type=options.activation_data_type,
            kv_cache_dtype=options.kv_cache_dtype,
        )
        self._engine = Engine(executor, max_tokens=max_tokens)
        self._default_options = options.session_options()
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

    def generate_response(self, prompt: str) -> str:
        """Return the answer to a prompt.

        Raises ContextLengthError, with both numbers, before any work if the prompt leaves no room for an answer.
        """
        return "".join(self.generate_response_stream(prompt))

    def generate_response_stream(self, prompt: str) -> Iterator[str]:
        """Yield the answer in increments as it is made; closing the iterator cancels.

        Increments are whole characters, and joined they are the answer. Errors as in `generate_response`, raised by
        this call and not by the first increment.
        """
        return self.generate_stream(prompt, self._default_options)

    def generate_stream(self, prompt: str, options: LlmInferenceSessionOptions | None = None) -> Iterator[str]:
        """Do what `generate_response_stream` does, with options of its own."""
        options = options or self._default_options
        return self._answer(self._prompt_ids(prompt, options.prompt_templates), options).increments()

    def generate(
        self, prompt: str | Sequence[int], options: LlmInferenceSessionOptions | None = None
    ) -> GenerationResult:
        """Return the answer with its ids, counts and times; a list of ids is taken as it is, without templates."""
        options = options or self._default_options
        if isinstance(prompt, str):
            ids = self._prompt_ids(prompt, options.prompt_templates)
        else:
            ids = _checked_ids(prompt, self._model.architecture.vocab_size)
        answer = self._answer(ids, options)
        for _ in answer.increments():
            pass
        return answer.result()

    def token_logprobs(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return float32 [len(ids) - 1]: the log-probability of each id given those before it.

        The ids are taken as they are: no start token is added. Raises ContextLengthError beyond `max_tokens`.
        """
        return self._engine.score(_checked_ids(ids, self._model.architecture.vocab_size))

    def size_in_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, the start token not counted."""
        return len(self.tokenizer.encode(text))

    @property
    def info(self) -> ModelInfo:
        """What the file says about the model."""
        return self._model.info

    def close(self) -> None:
        """Cancel what is under way and give threads and memory back; later calls raise EngineClosedError."""
        self._engine.close()

    def __enter__(self) -> LlmInference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _prompt_ids(self, prompt: str, templates: PromptTemplates | None) -> list[int]:
        """Return the start token and the prompt inside the user's turn, where the model has turns."""
        if not isinstance(prompt, str):
            raise TypeError(f"prompt: expected a str, got {type(prompt).__name__}")
        templates = self._model.prompt_templates if templates is None else templates
        text = (
            templates.session_prefix + templates.user.prefix + prompt + templates.user.suffix + templates.model.prefix
        )
        start = self._model.start_id
        if start is None:
            ids = self.tokenizer.encode(text)
        else:  # a start token that was written out is the one that is added anyway, not a second one
            ids = self.tokenizer.encode(text.removeprefix(self.tokenizer.piece(start)))
            ids = ids if ids[:1] == [start] else [start, *ids]
        if max(ids, default=0) >= (vocab_size := self._model.architecture.vocab_size):
            raise ModelFormatError(
                f"{self._options.model_path}: the prompt holds token {max(ids)}, but the model knows only {vocab_size}"
                ": its tokenizer is another model's"
            )
        return ids

    def _answer(self, ids: Sequence[int], options: LlmInferenceSessionOptions) -> _Answer:
        self._engine.check_room(len(ids))
        session = Session(self._engine)
        session.append(ids)
        return _Answer(session, self._model, options)


class _Answer:
    """Turn the ids of one generation into text."""

    def __init__(self, session: Session, model: Model, options: LlmInferenceSessionOptions) -> None:
        self._session = session
        self._options = options
        self._decoder = StreamDecoder(model.tokenizer, prompt_tail_ids=session.ids)
        self._stops = StopMatcher((*model.stop_strings, *options.stop))
        self._num_prompt_ids = len(session.ids)
        self._tokens = session.generate(
            sampler=options.sampler(), stop_ids=model.stop_ids, max_output_tokens=options.max_output_tokens
        )
        self._stopped = False
        self._text: list[str] = []

    def increments(self) -> Generator[str, None, None]:
        try:
            for token in self._tokens:
                yield from self._printable(self._decoder.push(token))
                if self._stopped:
                    return
            yield from self._printable(self._decoder.finish())
            if not self._stopped and (rest := self._stops.finish()):
                self._text.append(rest)
                yield rest
        finally:
            self._tokens.close()
            self._session.close()

    def _printable(self, text: str) -> Iterator[str]:
        printable, self._stopped = self._stops.push(text)
        if printable:
            self._text.append(printable)
            yield printable

    def result(self) -> GenerationResult:
        """Return everything about the answer once its increments are exhausted or closed."""
        finished = self._session.last_generation
        assert finished is not None  # a generation that failed has raised
        ids = tuple(self._session.ids[self._num_prompt_ids :])
        return GenerationResult(
            texts=("".join(self._text),),
            token_ids=(ids,),
            finish_reason="stop" if self._stopped else finished.reason,
            num_prompt_tokens=finished.num_prompt_tokens,
            num_cached_tokens=finished.num_cached_tokens,
            num_output_tokens=len(ids),
            seed=self._options.random_seed,
            prefill_s=finished.prefill_s,
            decode_s=finished.decode_s,
        )


def _max_tokens(wanted: int | None, built_in: int) -> int:
    if wanted is None:
        return min(DEFAULT_MAX_TOKENS, built_in)
    if wanted > built_in:
        raise ValueError(f"max_tokens: expected at most {built_in}, which the model was built for, got {wanted}")
    return wanted


def _checked_ids(ids: Sequence[int], vocab_size: int) -> list[int]:
    checked = [int(i) for i in ids]
    for i in checked:
        if not 0 <= i < vocab_size:
            raise ValueError(f"ids: expected 0 to {vocab_size - 1}, got {i}")
    return checked


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _refuse_unbuilt(**asked: bool) -> None:
    for name, wanted in asked.items():
        if wanted:
            raise NotImplementedError(f"{name} is not built yet; leave it at its default")
