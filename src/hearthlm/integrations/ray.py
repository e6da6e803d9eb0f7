"""Models on a Ray cluster: `BatchPredictor` for Ray Data, `serve_app` for Ray Serve.

Needs `pip install "hearthlm[ray]"`. Nothing that is loaded is ever pickled: an actor or a replica gets paths and
numbers, and opens the file on its own machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import ray
except ImportError as error:
    raise ImportError('hearthlm.integrations.ray needs ray: pip install "hearthlm[ray]"') from error

import hearthlm
from hearthlm.batch import answer_rows

if TYPE_CHECKING:
    from hearthlm.server import ServerOptions

# What a Ray worker holds beside what this process does now: Ray's client, Arrow, and the blocks under way.
WORKER_BYTES = 256 << 20

_RESULT_COLUMNS = ("text", "finish_reason", "num_prompt_tokens", "num_output_tokens", "seed", "error")


class BatchPredictor:
    """Answer the rows of a Dataset in an actor that holds one model: pass the class to `Dataset.map_batches`.

    A row has its prompt in the column `prompt`, a str, or a conversation in `messages`, a list of mappings with `role`
    and `content`; in `key`, if it is there, what its random numbers depend on, else on the prompt itself. So a row's
    answer is the same however often it is tried, wherever, and beside whatever. All columns are kept, and these come
    to them: text, finish_reason, num_prompt_tokens, num_output_tokens, seed, error ("" where there is none). A row that
    cannot be answered has an error; the others do not notice.

    `options` are fields of LlmInferenceSessionOptions, `model_options` of LlmInferenceOptions; `threads` defaults to
    the CPUs that Ray has given the actor (`num_cpus`). `max_at_once` rows of a batch are decoded together: a
    `batch_size` of several times that keeps them busy.
    """

    def __init__(
        self,
        model: str | PathLike[str],
        options: Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        max_tokens: int | None = None,
        max_at_once: int = 16,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._options = hearthlm.LlmInferenceSessionOptions(**(options or {}))
        self._max_at_once = max_at_once
        self._llm = hearthlm.LlmInference.create_from_options(
            hearthlm.LlmInferenceOptions(
                model_path=model,
                max_tokens=max_tokens,
                num_threads=threads or _assigned_cpus(),
                **(model_options or {}),
            )
        )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of `batch` and those of the answers."""
        taken = [name for name in _RESULT_COLUMNS if name in batch]
        if taken:
            raise ValueError(f"the columns {', '.join(taken)} would be overwritten: rename them before")
        if "prompt" not in batch and "messages" not in batch:
            raise ValueError(f"expected a column prompt or messages, got {', '.join(batch) or 'none'}")
        names = [name for name in ("key", "prompt", "messages") if name in batch]
        columns = [_plain(batch[name]) for name in names]
        rows = [_with_key(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]
        results = list(answer_rows(self._llm, rows, self._options, max_at_once=self._max_at_once))
        # Columns of one type, for Arrow: a batch of errors alone must not become one of nulls.
        return {
            **batch,
            "text": [result.text or "" for result in results],
            "finish_reason": [result.finish_reason or "" for result in results],
            "num_prompt_tokens": [result.num_prompt_tokens for result in results],
            "num_output_tokens": [result.num_output_tokens for result in results],
            "seed": np.array([result.seed or 0 for result in results], np.uint64),
            "error": [result.error or "" for result in results],
        }


def actor_memory(
    model: str | PathLike[str],
    *,
    max_tokens: int | None = None,
    max_at_once: int = 16,
    model_options: Mapping[str, Any] | None = None,
) -> int:
    """Return the bytes to reserve as `memory=` for an actor or replica with these arguments of `BatchPredictor`.

    It is `hearthlm.estimate_memory` of as many full contexts, and what a Ray worker takes by itself. Actors on one
    machine share the pages of a mapped file, which are counted for each of them here.
    """
    options = hearthlm.LlmInferenceOptions(model, max_tokens=max_tokens, **(model_options or {}))
    estimate = hearthlm.estimate_memory(options, num_sequences=max_at_once)
    return estimate.model_bytes + WORKER_BYTES


def serve_app(
    model: str | PathLike[str],
    *,
    threads: int = 1,
    max_tokens: int | None = None,
    model_options: Mapping[str, Any] | None = None,
    server_options: ServerOptions | None = None,
    **deployment: Any,
) -> Any:
    """Return an application for `serve.run`: in each replica the API of `hearthlm serve`, on a model of its own.

    A replica is ready once its model is loaded, is given `threads` CPUs and uses no more, and reserves the memory that
    it needs. Ray's proxy listens and says who may connect; `server_options` are this package's own limits, by default
    those of a server that only this machine reaches. `deployment` goes to `serve.deployment`: num_replicas,
    max_ongoing_requests, autoscaling_config ...
    """
    from ray import serve

    from hearthlm.server import ServerOptions

    limits = server_options or ServerOptions()
    options = {"model_path": str(model), "max_tokens": max_tokens, "num_threads": threads, **(model_options or {})}
    memory = actor_memory(
        model, max_tokens=max_tokens, max_at_once=limits.max_parallel_responses, model_options=model_options
    )
    actor = {"num_cpus": threads, "memory": memory, **deployment.pop("ray_actor_options", {})}

    def build() -> Any:
        from hearthlm.server import create_app

        llm = hearthlm.LlmInference.create_from_options(hearthlm.LlmInferenceOptions(**options))
        return create_app(llm, limits)

    return serve.deployment(serve.ingress(build)(), ray_actor_options=actor, **_named(deployment)).bind()


def _named(deployment: Mapping[str, Any]) -> dict[str, Any]:
    # Ray's default of 5 would leave places in a step empty; what waits beyond them, our server queues or refuses.
    return {"name": "hearthlm", "max_ongoing_requests": 100, **deployment}


def _assigned_cpus() -> int:
    """Return the CPUs that Ray has given this actor, at least 1; outside of one, what Ray says is 1 too."""
    resources: Mapping[str, float] = ray.get_runtime_context().get_assigned_resources()
    return max(1, int(resources.get("CPU", 1)))


def _with_key(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row as `answer_rows` wants it: with a key, and only what there is."""
    row = {name: value for name, value in row.items() if value is not None}
    if "key" not in row:
        prompt = row.get("prompt", row.get("messages"))
        row["key"] = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=repr)
    return row


def _plain(values: Any) -> Sequence[Any]:
    """Return a column's values as Python's own, whatever library holds them."""
    return [_plain_value(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def _plain_value(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy's numbers and arrays
        value = value.tolist()
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    if isinstance(value, Mapping):
        # Arrow gives every mapping of a column the keys of all.
        return {name: _plain_value(item) for name, item in value.items() if item is not None}
    return value
