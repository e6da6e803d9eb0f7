"""What text in, text out needs of an open model: a protocol with two implementations.

`model.py` has weights and an architecture, run by this package's kernels; `litert_language_model.py` a graph of any
kind, run by ai-edge-litert. Which one a file is, is told by its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Protocol, Self

from hearthlm.formats import detect_format
from hearthlm.formats.sampler_defaults import SamplerDefaults
from hearthlm.models.family import PromptTemplates
from hearthlm.runtime.process_memory import give_back_freed_memory
from hearthlm.tokenizers import Tokenizer

if TYPE_CHECKING:
    from types import TracebackType

    from hearthlm.runtime.executor import Executor
    from hearthlm.runtime.lora import Adapter
    from hearthlm.runtime.model import ModelInfo
    from hearthlm.runtime.transformer import ActivationDataType, CacheDataType
    from hearthlm.runtime.weights import WeightPlacement


@dataclass(frozen=True)
class ExecutorSettings:
    """Say how a model is to be computed; see `LlmInferenceOptions`, where each is described."""

    num_threads: int
    weights: WeightPlacement = "auto"
    activation_data_type: ActivationDataType | None = None
    kv_cache_dtype: CacheDataType | None = None
    cache_dir: str | PathLike[str] | None = None


@dataclass(frozen=True)
class TextSettings:
    """Say what a model is spoken to with, where its file holds nothing but the graph.

    `tokenizer_path` is a SentencePiece model, a tokenizer.json or a folder with either. Tokens are pieces of its
    vocabulary or ids.
    """

    tokenizer_path: str | PathLike[str] | None = None
    start_token: str | int | None = None
    stop_tokens: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class ExecutorMemory:
    """Say what an executor takes, in bytes, beside its tokenizer and what its process takes without it.

    `mapped_bytes` are pages of files, `loaded_bytes` weights in memory of their own, `cache_bytes` tells the keys and
    values of one sequence of up to so many tokens, and `working_bytes` are everything else.
    """

    mapped_bytes: int
    loaded_bytes: int
    working_bytes: int
    cache_bytes: Callable[[int], int]


class LanguageModel(Protocol):
    """Describe an open model; what it computes with outlives it."""

    @property
    def info(self) -> ModelInfo | None:
        """What the file says, None where that is not an architecture."""

    @property
    def name(self) -> str:
        """What kind of model it is, for errors."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context_length(self) -> int:
        """How many tokens it was built for, prompt and answer together."""

    @property
    def has_fixed_cache(self) -> bool:
        """Whether the whole context is allocated for every text, however short."""

    @property
    def embedding_dim(self) -> int | None:
        """How long the rows of its last layer are, None where they cannot be had."""

    @property
    def prompt_templates(self) -> PromptTemplates: ...

    @property
    def default_chat(self) -> PromptTemplates | None:
        """The turns of its family, for where the file has none."""

    @property
    def chat_template(self) -> str | None: ...

    @property
    def special_tokens(self) -> Mapping[str, str]: ...

    @property
    def start_id(self) -> int | None: ...

    @property
    def stop_ids(self) -> frozenset[int]: ...

    @property
    def stop_strings(self) -> tuple[str, ...]: ...

    @property
    def sampler_defaults(self) -> SamplerDefaults:
        """How its maker would have it sampled, as far as that was said."""

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """The tokens that its maker would never have in an answer."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises TokenizerFormatError where there is none."""

    def new_executor(self, settings: ExecutorSettings, progress: Callable[[float], None] | None = None) -> Executor:
        """Load what computes the model; raises ValueError for a setting that does not apply to it."""

    def memory(
        self, settings: ExecutorSettings, *, max_tokens: int, num_sequences: int, looks_up: bool
    ) -> ExecutorMemory:
        """Return what an executor with these settings will take, without reading a weight.

        `num_sequences` of up to `max_tokens` are under way at a time; `looks_up` as in `Engine`. Raises what
        `new_executor` would raise for the model.
        """

    def open_adapter(self, path: str | PathLike[str]) -> Adapter:
        """Read a LoRA adapter for this model."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_language_model(path: str | PathLike[str], text: TextSettings = TextSettings()) -> LanguageModel:
    """Open a MediaPipe `.bin` or `.task`, a LiteRT `.litertlm` or `.tflite`, or a Hugging Face folder.

    Raises FileNotFoundError, ModelFormatError, or UnsupportedModelError for what is not understood, and ValueError for
    `text` where the file says it itself.
    """
    model: LanguageModel
    if detect_format(path) in ("task", "litertlm", "tflite"):
        from hearthlm.runtime.litert_language_model import LiteRtLanguageModel

        model = LiteRtLanguageModel.open(path, text)
    else:
        from hearthlm.runtime.model import Model

        model = Model.open(path)
        if text != TextSettings():
            model.close()
            raise ValueError(
                f"{path}: tokenizer_path, start_token and stop_tokens are for a bare .tflite; this model has its own"
            )
    give_back_freed_memory()  # checking a large vocabulary takes as much as keeping it
    return model
