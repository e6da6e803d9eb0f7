"""`/metrics`: what a server has done, in the text format of Prometheus; labels are its own models only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import hearthlm
from hearthlm.server.admission import Admission


class Metrics:
    """Count what was done since the server began."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self._output_tokens: Counter[str] = Counter()
        self._prompt_tokens: Counter[str] = Counter()
        self._cached_tokens: Counter[str] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()  # by model and finish reason
        self._seconds: Counter[tuple[str, str]] = Counter()  # by model and phase

    def count_request(self, path: str, status: int) -> None:
        self._requests[path, status] += 1

    def count_tokens(self, model: str, num_output: int) -> None:
        self._output_tokens[model] += num_output

    def count_result(self, model: str, result: hearthlm.GenerationResult, waited_s: float) -> None:
        self._prompt_tokens[model] += result.num_prompt_tokens
        self._cached_tokens[model] += result.num_cached_tokens
        for reason in result.finish_reasons:
            self._answers[model, reason] += 1
        for phase, seconds in (("queue", waited_s), ("prefill", result.prefill_s), ("decode", result.decode_s)):
            self._seconds[model, phase] += seconds  # type: ignore[assignment]

    def text(self, admissions: Iterable[tuple[str, Admission]]) -> str:
        """Return all figures; those of `admissions` are of this moment."""
        lines: list[str] = []

        def add(name: str, kind: str, about: str, values: Iterable[tuple[dict[str, object], float]]) -> None:
            lines.append(f"# HELP hearthlm_{name} {about}")
            lines.append(f"# TYPE hearthlm_{name} {kind}")
            for labels, value in values:
                inside = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in labels.items())
                lines.append(f"hearthlm_{name}{{{inside}}} {value:.10g}" if inside else f"hearthlm_{name} {value:.10g}")

        lines_of = list(admissions)
        add(
            "http_requests_total",
            "counter",
            "Requests answered.",
            [({"path": path, "status": status}, n) for (path, status), n in sorted(self._requests.items())],
        )
        add(
            "responses_total",
            "counter",
            "Answers that came to an end.",
            [({"model": m, "finish_reason": reason}, n) for (m, reason), n in sorted(self._answers.items())],
        )
        for name, about, counts in (
            ("prompt_tokens_total", "Tokens of prompts.", self._prompt_tokens),
            ("cached_tokens_total", "Tokens of prompts that were not computed again.", self._cached_tokens),
            ("output_tokens_total", "Tokens of answers, also of those whose client left.", self._output_tokens),
        ):
            add(name, "counter", about, [({"model": m}, n) for m, n in sorted(counts.items())])
        add(
            "seconds_total",
            "counter",
            "Seconds that answers spent waiting in line, reading prompts, and being made.",
            [({"model": m, "phase": phase}, n) for (m, phase), n in sorted(self._seconds.items())],
        )
        add("busy_slots", "gauge", "Responses being made.", [({"model": m}, a.num_busy) for m, a in lines_of])
        add(
            "slots", "gauge", "Responses that can be made together.", [({"model": m}, a.num_slots) for m, a in lines_of]
        )
        add("waiting_requests", "gauge", "Requests in line.", [({"model": m}, a.num_waiting) for m, a in lines_of])
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
