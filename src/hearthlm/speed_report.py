"""How fast a model reads prompts and makes answers on this machine, beside what the machine allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from os import fspath
from typing import Any

import numpy as np

from hearthlm import kernels
from hearthlm.llm_inference import LlmInferenceOptions, executor_settings_of, max_tokens_of, text_settings_of
from hearthlm.machine_info import MachineLimits, measure_machine
from hearthlm.runtime.cpu_count import default_num_threads
from hearthlm.runtime.engine import Engine, Generation
from hearthlm.runtime.executor import RowCost, State
from hearthlm.runtime.language_model import open_language_model
from hearthlm.runtime.lora import Adapter
from hearthlm.runtime.process_memory import peak_memory
from hearthlm.runtime.sampler import Sampler


@dataclass(frozen=True)
class SpeedMeasurement:
    """Hold what one combination reached: the median of its rounds.

    `prefill_tokens_per_s` is of one prompt read alone, `first_token_s` how long that took, the first token of the
    answer included. `decode_tokens_per_s` is of all `num_sequences` answers together, each of `num_output_tokens`
    behind a prompt of its own. `prefill_of_limit` is the part of the int8 operations per second that the matrices of
    the prompt's rows took, and `decode_of_limit` the part of the memory's speed that reading weights and caches took;
    None where a limit does not apply: float activations, LiteRT models, limits that were not measured.
    """

    num_threads: int
    num_sequences: int
    num_prompt_tokens: int
    num_output_tokens: int
    prefill_tokens_per_s: float
    first_token_s: float
    decode_tokens_per_s: float
    prefill_of_limit: float | None
    decode_of_limit: float | None


@dataclass(frozen=True)
class SpeedReport:
    """Hold the measurements of one model; `load_s` is the median of its loads, one for each number of threads.

    `peak_rss_bytes` is the most that this process has had in memory when they were done, None where the system does
    not tell. `limits` has an entry for each number of threads, if they were asked for.
    """

    model: str
    kernels: str
    load_s: float
    peak_rss_bytes: int | None
    limits: tuple[MachineLimits, ...]
    measurements: tuple[SpeedMeasurement, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document of `hearthlm bench --json`."""
        return asdict(self)


@dataclass(frozen=True)
class _Combination:
    num_threads: int
    num_sequences: int
    num_prompt_tokens: int


@dataclass(frozen=True)
class _Round:
    prefill_s: float
    decode_s: float


def measure_speed(
    options: LlmInferenceOptions,
    *,
    prompt_lengths: Sequence[int] = (128, 512),
    num_output_tokens: int = 64,
    num_sequences: Sequence[int] = (1,),
    num_threads: Sequence[int] = (),
    rounds: int = 3,
    with_limits: bool = True,
    progress: Callable[[float], None] | None = None,
) -> SpeedReport:
    """Measure every combination of lengths, sequences and threads, after a first round that does not count.

    Prompts are random ids and answers greedy; nothing ends them early, nothing is guessed ahead, and nothing of one
    round is kept for the next. `num_threads` defaults to that of `options`. The limits are measured last, for two
    seconds per number of threads. `progress` receives the part that is done, 0 to 1.
    Raises ValueError, by name, for a number below 1 or a length that the model was not built for.
    """
    threads = tuple(num_threads) or (options.num_threads or default_num_threads(),)
    numbers = (("prompt_lengths", prompt_lengths), ("num_sequences", num_sequences), ("num_threads", threads))
    for name, values in (*numbers, ("num_output_tokens", [num_output_tokens]), ("rounds", [rounds])):
        least = 2 if name == "num_output_tokens" else 1  # the first one is the prompt's
        if not values or min(values) < least:
            raise ValueError(f"{name}: expected at least {least}, got {', '.join(map(str, values)) or 'nothing'}")
    combinations = [_Combination(t, s, p) for t in threads for s in num_sequences for p in prompt_lengths]
    loads: list[float] = []
    costs: list[RowCost | None] = []
    all_rounds: list[list[_Round]] = []
    for count in threads:
        started = time.perf_counter()
        with _Bench(options, count, max(prompt_lengths) + num_output_tokens) as bench:
            loads.append(time.perf_counter() - started)
            costs.append(bench.cost)
            for combination in combinations:
                if combination.num_threads == count:
                    measured = [bench.round(combination, num_output_tokens) for _ in range(rounds + 1)]
                    all_rounds.append(measured[1:])
                    if progress is not None:
                        progress(len(all_rounds) / len(combinations))
    peak_rss_bytes = peak_memory()
    limits = tuple(measure_machine(count) for count in threads) if with_limits else ()
    measurements = []
    for combination, measured in zip(combinations, all_rounds, strict=True):
        index = threads.index(combination.num_threads)
        limit = limits[index] if limits else None
        measurements.append(_measurement(combination, num_output_tokens, measured, costs[index], limit))
    return SpeedReport(
        fspath(options.model_path),
        kernels.instruction_set,
        statistics.median(loads),
        peak_rss_bytes,
        limits,
        tuple(measurements),
    )


class _Bench:
    """Hold a loaded model of which only the token loop is used."""

    def __init__(self, options: LlmInferenceOptions, num_threads: int, num_tokens: int) -> None:
        with open_language_model(options.model_path, text_settings_of(options)) as model:
            max_tokens = max_tokens_of(num_tokens, model.context_length, has_fixed_cache=model.has_fixed_cache)
            lora = options.lora_path
            self._adapter: Adapter | None = None if lora is None else model.open_adapter(lora)
            executor = model.new_executor(executor_settings_of(replace(options, num_threads=num_threads)))
        self.cost = executor.row_cost
        self._engine = Engine(executor, max_tokens=max_tokens, looks_up=False)
        self._generator = np.random.default_rng(0)

    def round(self, combination: _Combination, num_output_tokens: int) -> _Round:
        """Read a prompt for each sequence, one after the other, and then make all answers together."""
        shape = combination.num_sequences, combination.num_prompt_tokens
        prompts = self._generator.integers(0, self._engine.executor.vocab_size, shape).tolist()
        states = [self._engine.new_state(adapter=self._adapter) for _ in prompts]
        prefills, contexts = [], []
        for state, ids in zip(states, prompts, strict=True):
            generation = self._prepare(state, ids, 1)
            self._engine.submit(ids, [generation])
            first = generation.take()
            generation.join()
            assert first is not None and generation.finished is not None
            prefills.append(generation.finished.prefill_s)
            contexts.append([*ids, first])
        generations = [self._prepare(s, ids, num_output_tokens - 1) for s, ids in zip(states, contexts, strict=True)]
        started = time.perf_counter()
        for ids, generation in zip(contexts, generations, strict=True):
            self._engine.submit(ids, [generation])
        for generation in generations:
            generation.join()
        decode_s = time.perf_counter() - started
        for state in states:
            state.close()
        return _Round(statistics.median(prefills), decode_s)

    def _prepare(self, state: State, ids: Sequence[int], num_output_tokens: int) -> Generation:
        samplers = [Sampler(top_k=1)]
        return self._engine.prepare(state, ids, samplers=samplers, stop_ids=(), max_output_tokens=num_output_tokens)[0]

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        self._engine.close()


def _measurement(
    combination: _Combination,
    num_output_tokens: int,
    rounds: Sequence[_Round],
    cost: RowCost | None,
    limit: MachineLimits | None,
) -> SpeedMeasurement:
    prefill_s = statistics.median(r.prefill_s for r in rounds)
    decode_s = statistics.median(r.decode_s for r in rounds)
    steps_per_s = (num_output_tokens - 1) / decode_s
    prefill_rate = combination.num_prompt_tokens / prefill_s
    prefill_of_limit = decode_of_limit = None
    if cost is not None and limit is not None:
        middle = combination.num_prompt_tokens + num_output_tokens // 2
        step_bytes = cost.weight_bytes + combination.num_sequences * cost.cache_bytes(middle)
        decode_of_limit = steps_per_s * step_bytes / 1e9 / limit.read_gb_per_s
        if cost.is_int8:
            prefill_of_limit = prefill_rate * 2 * cost.num_layer_weights / 1e12 / limit.int8_tops
    return SpeedMeasurement(
        combination.num_threads,
        combination.num_sequences,
        combination.num_prompt_tokens,
        num_output_tokens,
        prefill_rate,
        prefill_s,
        combination.num_sequences * steps_per_s,
        prefill_of_limit,
        decode_of_limit,
    )
