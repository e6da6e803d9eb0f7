"""The LLM Inference API for Python: large language models on your own device."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hearthlm import batch, bundler, exporter, repacker
    from hearthlm.answer import GenerationResult, ResponseIncrement
    from hearthlm.errors import (
        BundleError,
        ContextLengthError,
        CorruptFileError,
        EngineClosedError,
        HearthLMError,
        ModelFormatError,
        ResponseFormatError,
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
    from hearthlm.machine_info import MachineInfo, MachineLimits, inspect_machine, measure_machine
    from hearthlm.memory_estimate import MemoryEstimate, estimate_memory
    from hearthlm.model_info import FileInfo, ModelInfo, inspect_file, inspect_model
    from hearthlm.models.family import PromptTemplate, PromptTemplates
    from hearthlm.runtime.lora import Adapter
    from hearthlm.runtime.sampler import TokenLogprobs
    from hearthlm.speed_report import SpeedMeasurement, SpeedReport, measure_speed
    from hearthlm.tool_calls import ToolCall, ToolCallReader

# Loaded when first asked for: `import hearthlm` costs next to nothing.
_HOMES = {
    "Adapter": "runtime.lora",
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
    "MachineInfo": "machine_info",
    "MachineLimits": "machine_info",
    "MemoryEstimate": "memory_estimate",
    "ModelFormatError": "errors",
    "ModelInfo": "model_info",
    "PromptTemplate": "models.family",
    "PromptTemplates": "models.family",
    "ResponseFormatError": "errors",
    "ResponseIncrement": "answer",
    "SessionBusyError": "errors",
    "SessionFileError": "errors",
    "SpeedMeasurement": "speed_report",
    "SpeedReport": "speed_report",
    "TemplateError": "errors",
    "TensorMismatchError": "errors",
    "TokenLogprobs": "runtime.sampler",
    "TokenizerFormatError": "errors",
    "ToolCall": "tool_calls",
    "ToolCallReader": "tool_calls",
    "TruncatedFileError": "errors",
    "UnsafeFileError": "errors",
    "UnsupportedModelError": "errors",
    "estimate_memory": "memory_estimate",
    "inspect_file": "model_info",
    "inspect_machine": "machine_info",
    "inspect_model": "model_info",
    "measure_machine": "machine_info",
    "measure_speed": "speed_report",
}

# As in MediaPipe, the toolchain's parts are modules: `from hearthlm import bundler`.
_MODULES = ("batch", "bundler", "exporter", "repacker")

__version__ = "0.1.0"

__all__ = [
    "Adapter",
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
    "MachineInfo",
    "MachineLimits",
    "MemoryEstimate",
    "ModelFormatError",
    "ModelInfo",
    "PromptTemplate",
    "PromptTemplates",
    "ResponseFormatError",
    "ResponseIncrement",
    "SessionBusyError",
    "SessionFileError",
    "SpeedMeasurement",
    "SpeedReport",
    "TemplateError",
    "TensorMismatchError",
    "TokenLogprobs",
    "TokenizerFormatError",
    "ToolCall",
    "ToolCallReader",
    "TruncatedFileError",
    "UnsafeFileError",
    "UnsupportedModelError",
    "__version__",
    "batch",
    "bundler",
    "estimate_memory",
    "exporter",
    "inspect_file",
    "inspect_machine",
    "inspect_model",
    "measure_machine",
    "measure_speed",
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
