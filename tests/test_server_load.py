"""Many clients at once: every one is answered or told to come back, as if it had been alone, and nothing is left."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest
from serving import JSON, ServerProcess

import hearthlm
from hearthlm.demo import model_path

PROMPTS = [f"Tell me a story about a {who}." for who in ("fox", "boat", "king", "snail", "kite", "owl", "baker", "cat")]
MALFORMED: list[bytes] = [
    b"{",
    b"",
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": "a"}], "temperature": -1}',
    b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1e308}',
    b'{"messages": [{"role": "user", "content": "' + b"fox " * 5000 + b'"}]}',
]


class Load:
    """Send requests of every kind from many threads, and keep what came back."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[Any] = []
        self.texts: dict[tuple[str, int], set[str]] = {}

    def run(self, num_clients: int, num_requests: int) -> None:
        numbers = iter(range(num_requests))

        def client() -> None:
            with httpx.Client(base_url=self._server.url, timeout=300) as http:
                while True:
                    with self._lock:
                        number = next(numbers, None)
                    if number is None:
                        return
                    try:
                        outcome = self._request(http, random.Random(number))
                    except Exception as error:
                        outcome = "failed"
                        self.wrong.append(repr(error))
                    with self._lock:
                        self.outcomes[outcome] += 1
                    if outcome == "told to come back":
                        time.sleep(0.2)

        threads = [threading.Thread(target=client) for _ in range(num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _request(self, http: httpx.Client, generator: random.Random) -> str:
        draw = generator.random()
        if draw < 0.1:
            answer = http.post("/v1/chat/completions", content=generator.choice(MALFORMED), headers=JSON)
            if answer.status_code != 400 or "message" not in answer.json()["error"]:
                self.wrong.append((answer.status_code, answer.text[:200]))
            return "malformed"
        prompt, seed = generator.choice(PROMPTS), generator.randrange(4)
        body = {"messages": [{"role": "user", "content": prompt}], "seed": seed, "max_tokens": 40}
        if draw < 0.3:
            with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                for _ in answer.iter_bytes():
                    break
            return "dropped"
        if draw < 0.6:
            with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
            if answer.status_code == 429:
                return "told to come back"
            chunks = [json.loads(line[6:]) for line in lines[:-1]]
            text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
            if answer.status_code != 200 or lines[-1] != "data: [DONE]":
                self.wrong.append((answer.status_code, lines[-1:]))
        else:
            answer = http.post("/v1/chat/completions", json=body)
            if answer.status_code == 429:
                if int(answer.headers["retry-after"]) < 1:
                    self.wrong.append("no Retry-After")
                return "told to come back"
            if answer.status_code != 200:
                self.wrong.append((answer.status_code, answer.text[:200]))
            text = answer.json()["choices"][0]["message"]["content"]
        with self._lock:
            self.texts.setdefault((prompt, seed), set()).add(text)
        return "answered"


@pytest.mark.parametrize(("num_clients", "num_requests"), [(16, 120), pytest.param(64, 1000, marks=pytest.mark.slow)])
def test_every_client_gets_what_it_would_get_alone(num_clients: int, num_requests: int) -> None:
    """A fifth leaves in the middle of a stream, a tenth sends what is wrong."""
    options = ("--max-tokens", "512", "--parallel", "8", "--queue", "32", "--prefix-cache-mb", "8")
    with ServerProcess(*options) as server:
        Load(server).run(num_clients, num_requests // 4)
        server.wait_until_idle()
        memory, files = server.rss_bytes(), server.num_files()
        load = Load(server)
        load.run(num_clients, num_requests)
        server.wait_until_idle()
        assert load.wrong == []
        assert load.outcomes.total() == num_requests
        assert load.outcomes["answered"] > 0.1 * num_requests
        assert server.rss_bytes() - memory < 24 << 20
        assert server.num_files() <= files + 2
        assert server.metric("busy_slots") == server.metric("waiting_requests") == 0
    with hearthlm.LlmInference.create_from_options(hearthlm.LlmInferenceOptions(model_path(), max_tokens=512)) as llm:
        for (prompt, seed), texts in load.texts.items():
            alone = llm.generate(
                [{"role": "user", "content": prompt}],
                hearthlm.LlmInferenceSessionOptions(random_seed=seed, max_output_tokens=40),
            )
            assert texts == {alone.texts[0]}


def test_hundreds_of_requests_leave_the_memory_as_it_was() -> None:
    """One after the other: what an answer takes is given back."""
    with ServerProcess("--max-tokens", "256", "--prefix-cache-mb", "4") as server:
        for _ in range(100):
            assert server.chat(max_tokens=4).status_code == 200
        memory = server.rss_bytes()
        for _ in range(400):
            assert server.chat(max_tokens=4).status_code == 200
        assert server.rss_bytes() - memory < 8 << 20
