"""The models that a server answers with, and what clients may know of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hearthlm
from hearthlm.demo import model_path
from hearthlm.server.admission import Admission
from hearthlm.server.errors import ApiError
from hearthlm.server.options import ServerOptions


@dataclass(frozen=True)
class ServedModel:
    """Name a loaded model and its adapters for clients: `name`, and `name:adapter` for each of `adapters`.

    Without a name it is called as its file is, without the ending.
    """

    llm: hearthlm.LlmInference
    name: str = ""
    adapters: Mapping[str, hearthlm.Adapter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", model_name(Path(self.llm.options.model_path)))
        for name in (self.name, *self.adapters):
            if not name.isprintable() or any(character in name for character in ":/ ") or not name:
                raise ValueError(
                    f"name: expected printable characters without colons, slashes and spaces, got {name!r}"
                )


def model_name(path: Path) -> str:
    """Return what clients call the model of a file: "demo" for the one inside the package."""
    if path == model_path():
        return "demo"
    name = path.resolve().name
    for ending in (".bin", ".task", ".litertlm", ".tflite", ".safetensors"):
        name = name.removesuffix(ending)
    return "".join("-" if character in ":/ " or not character.isprintable() else character for character in name)


Models = hearthlm.LlmInference | Sequence[ServedModel]


@dataclass(frozen=True)
class Target:
    """Say which model, with which adapter, a request is for."""

    id: str
    served: ServedModel
    adapter: hearthlm.Adapter | None
    admission: Admission

    @property
    def llm(self) -> hearthlm.LlmInference:
        return self.served.llm

    def session_options(self, **changes: Any) -> hearthlm.LlmInferenceSessionOptions:
        """Return how a call samples: as the model's options say, but for `changes`."""
        options = self.llm.options
        defaults = {
            "top_k": options.top_k,
            "top_p": options.top_p,
            "temperature": options.temperature,
            "lora": self.adapter,
        }
        return hearthlm.LlmInferenceSessionOptions(**{**defaults, **changes})


class ModelTable:
    """Hold the models of a server, which may still be loading.

    `models` is what `create_app` takes. A function is called once, on a thread of its own, and what it loads is closed
    with the server; models that were loaded before stay their owner's.
    """

    def __init__(self, models: Models | Callable[[], Models], options: ServerOptions) -> None:
        self._options = options
        self._load = models if callable(models) else None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loaded: list[ServedModel] = []
        self._targets: dict[str, Target] | None = None
        self.load_error: BaseException | None = None
        self.on_loaded: Callable[[], None] | None = None
        self.created = int(time.time())
        if not callable(models):
            self._set(models)

    def begin_loading(self) -> None:
        """Start to load, unless that was done before."""
        with self._lock:
            if self._load is None or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="hearthlm-serve-loading", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        assert self._load is not None
        try:
            models = self._load()
            self._loaded = _as_sequence(models)
            self._set(models)
        except BaseException as error:
            self.load_error = error
        if self.on_loaded is not None:
            self.on_loaded()

    def _set(self, models: Models) -> None:
        targets: dict[str, Target] = {}
        options = self._options
        for served in _as_sequence(models):
            admission = Admission(options.max_parallel_responses, options.max_waiting_requests)
            found: list[tuple[str, hearthlm.Adapter | None]] = [(served.name, None)]
            found += [(f"{served.name}:{name}", adapter) for name, adapter in served.adapters.items()]
            for id_, adapter in found:
                if id_ in targets:
                    raise ValueError(f"two models are called {id_}: give them names")
                targets[id_] = Target(id_, served, adapter, admission)
        if not targets:
            raise ValueError("models: expected at least one")
        self._targets = targets

    @property
    def is_loaded(self) -> bool:
        return self._targets is not None

    @property
    def targets(self) -> Mapping[str, Target]:
        """What requests may name; raises ApiError (503) while models are being loaded."""
        if self._targets is None:
            self.begin_loading()
            if self.load_error is not None:
                raise ApiError(503, "the model could not be loaded; the server's log says why", code="model_not_loaded")
            raise ApiError(503, "the model is being loaded", code="model_loading", headers={"Retry-After": "1"})
        return self._targets

    @property
    def models(self) -> list[ServedModel]:
        return [target.served for target in self.targets.values() if target.adapter is None]

    def find(self, name: str | None) -> Target:
        """Return what a request means by its `model`; one that names none means the only model there is."""
        targets = self.targets
        if name is None:
            first, *others = (target for target in targets.values() if target.adapter is None)
            if others:
                raise ApiError(400, f"model: expected one of {', '.join(targets)}, got none", param="model")
            return first
        if name not in targets:
            raise ApiError(
                404,
                f"the model {name[:200]!r} is not served here; there are: {', '.join(targets)}",
                param="model",
                code="model_not_found",
            )
        return targets[name]

    def admissions(self) -> Iterable[tuple[str, Admission]]:
        """Return the line of each model, none while they are being loaded."""
        return [(t.id, t.admission) for t in (self._targets or {}).values() if t.adapter is None]

    async def close(self) -> None:
        """Close the models that were loaded here, once they are."""
        thread = self._thread
        if thread is not None:
            await asyncio.to_thread(thread.join)
        for served in self._loaded:
            await asyncio.to_thread(served.llm.close)


def _as_sequence(models: Models) -> list[ServedModel]:
    return [ServedModel(models)] if isinstance(models, hearthlm.LlmInference) else list(models)


def model_object(target: Target, created: int) -> dict[str, Any]:
    """Return a model as OpenAI's API lists it; an adapter names its base in `parent`."""
    parent = target.served.name if target.adapter is not None else None
    return {"id": target.id, "object": "model", "created": created, "owned_by": "hearthlm", "parent": parent}


# Ranges that a request's numbers must be in, for whoever offers them to a person: lowest, highest.
SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, 1 << 20),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.1, 10),
    "seed": (0, (1 << 53) - 1),
}


def model_info(served: ServedModel) -> dict[str, Any]:
    """Describe a model for a person who is about to use it: no path, but everything that tells what to expect."""
    llm, info = served.llm, served.llm.info
    options = hearthlm.LlmInferenceSessionOptions()
    defaults = {name: getattr(options, name) for name in SAMPLING_RANGES if hasattr(options, name)}
    defaults |= {name: getattr(llm.default_options, name) for name in ("temperature", "top_p", "top_k")}
    details: dict[str, Any] = {"quantization": {}}
    if isinstance(info, hearthlm.ModelInfo):  # what a graph computes, nothing tells
        details = {
            "family": info.family,
            "model_type": info.model_type,
            "num_parameters": info.num_parameters,
            "num_layers": info.architecture.num_layers,
            "quantization": {group: list(types) for group, types in info.weight_types.items()},
            "file_bytes": info.metadata.get("num_bytes"),
        }
    return {
        "id": served.name,
        "adapters": [
            {"id": f"{served.name}:{name}", "name": name, "rank": a.rank} for name, a in served.adapters.items()
        ],
        "format": info.format,
        **details,
        "embedding_dim": llm.embedding_dim,
        "vocab_size": llm.vocab_size,
        "context_length": llm.context_length,
        "max_tokens": llm.max_tokens,
        "backend": "cpu",
        "num_threads": llm.num_threads,
        "has_chat_template": has_chat_template(llm),
        "sampling": {
            name: {"default": defaults.get(name), "min": lowest, "max": highest}
            for name, (lowest, highest) in SAMPLING_RANGES.items()
        },
    }


def has_chat_template(llm: hearthlm.LlmInference) -> bool:
    """Say whether conversations can be written for a model."""
    try:
        llm.chat_format  # noqa: B018 -- asked whether there is one
    except (hearthlm.UnsupportedModelError, hearthlm.ModelFormatError):
        return False
    return True
