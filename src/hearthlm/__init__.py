"""The LLM Inference API for Python: large language models on your own device."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hearthlm import bundler, repacker
    from hearthlm.answer import GenerationResult
    from hearthlm.errors import (
        BundleError,
        ContextLengthError,
        CorruptFileError,
        EngineClosedError,
        HearthLMError,
        ModelFormatError,
        SessionBusyError,
        SessionFileError,
        TemplateError,
        TensorMismatchError,
        TokenizerFormatError,
        TruncatedFileError,
        UnsafeFileError,
        UnsupportedModelError,
    )
    from hearthlm.llm_inference import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions
    from hearthlm.llm_inference_session import LlmInferenceSession
    from hearthlm.model_info import FileInfo, ModelInfo, inspect_file, inspect_model
    from hearthlm.models.family import PromptTemplate, PromptTemplates
    from hearthlm.runtime.sampler import TokenLogprobs

# Loaded when first asked for: `import hearthlm` costs next to nothing.
_HOMES = {
    "BundleError": "errors",
    "ContextLengthError": "errors",
    "CorruptFileError": "errors",
    "EngineClosedError": "errors",
    "FileInfo": "model_info",
    "GenerationResult": "answer",
    "HearthLMError": "errors",
    "LlmInference": "llm_inference",
    "LlmInferenceOptions": "llm_inference",
    "LlmInferenceSession": "llm_inference_session",
    "LlmInferenceSessionOptions": "llm_inference",
    "ModelFormatError": "errors",
    "ModelInfo": "model_info",
    "PromptTemplate": "models.family",
    "PromptTemplates": "models.family",
    "SessionBusyError": "errors",
    "SessionFileError": "errors",
    "TemplateError": "errors",
    "TensorMismatchError": "errors",
    "TokenLogprobs": "runtime.sampler",
    "TokenizerFormatError": "errors",
    "TruncatedFileError": "errors",
    "UnsafeFileError": "errors",
    "UnsupportedModelError": "errors",
    "inspect_file": "model_info",
    "inspect_model": "model_info",
}

# As in MediaPipe, the toolchain's parts are modules: `from hearthlm import bundler`.
_MODULES = ("bundler", "repacker")

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "ContextLengthError",
    "CorruptFileError",
    "EngineClosedError",
    "FileInfo",
    "GenerationResult",
    "HearthLMError",
    "LlmInference",
    "LlmInferenceOptions",
    "LlmInferenceSession",
    "LlmInferenceSessionOptions",
    "ModelFormatError",
    "ModelInfo",
    "PromptTemplate",
    "PromptTemplates",
    "SessionBusyError",
    "SessionFileError",
    "TemplateError",
    "TensorMismatchError",
    "TokenLogprobs",
    "TokenizerFormatError",
    "TruncatedFileError",
    "UnsafeFileError",
    "UnsupportedModelError",
    "__version__",
    "bundler",
    "inspect_file",
    "inspect_model",
    "repacker",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"hearthlm.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'hearthlm' has no attribute {name!r}")
    value = getattr(import_module(f"hearthlm.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
