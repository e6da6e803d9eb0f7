"""Batches and a server on a Ray cluster of this machine: what its actors answer, and what a killed one costs.

Run by `make test-ray`.
"""

from __future__ import annotations

import json
import os
import runpy
import secrets
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hearthlm
from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions
from hearthlm.batch import row_seed
from hearthlm.demo import model_path

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's own

OPTIONS = {"max_output_tokens": 12, "random_seed": 5}
NUM_ROWS = 48


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray makes one and keeps it in the home folder
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    for _ in range(4):  # it gives its own processes 30 s to start, which a busy machine may need for reading them
        try:
            ray.init(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
            break
        except Exception:
            ray.shutdown()
    assert ray.is_initialized()
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def rows() -> list[dict[str, Any]]:
    names = ("fox", "lantern", "clock", "sailor", "owl", "garden")
    return [{"key": f"row {i}", "prompt": f"Tell me a story about a {names[i % 6]}."} for i in range(NUM_ROWS)]


def answers(predictor: Any, source: list[dict[str, Any]], actors: int, **arguments: Any) -> dict[str, dict[str, Any]]:
    """Return the answers by key."""
    import ray

    given = {"model": str(model_path()), "options": OPTIONS, "max_tokens": 128, "max_at_once": 4} | arguments
    dataset = ray.data.from_items(source, override_num_blocks=12).map_batches(
        predictor,
        fn_constructor_kwargs=given,
        batch_size=4,
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    found = {row["key"]: row for row in dataset.take_all()}
    assert len(found) == len(source)
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """Return the texts of all rows, each computed by itself and without Ray."""
    with LlmInference.create_from_options(LlmInferenceOptions(model_path(), max_tokens=128)) as llm:
        return {
            row["key"]: llm.generate(
                row["prompt"], LlmInferenceSessionOptions(max_output_tokens=12, random_seed=row_seed(5, row["key"]))
            ).texts[0]
            for row in rows()
        }


@pytest.mark.parametrize("actors", [1, 2])
def test_any_number_of_actors_gives_the_same_answers(actors: int, alone: dict[str, str]) -> None:
    from hearthlm.integrations.ray import BatchPredictor

    found = answers(BatchPredictor, rows(), actors)
    assert {key: row["text"] for key, row in found.items()} == alone
    assert all(row["error"] == "" and row["num_output_tokens"] > 0 for row in found.values())
    assert found["row 3"]["seed"] == row_seed(5, "row 3")


def test_a_killed_worker_costs_no_row(alone: dict[str, str], tmp_path: Path) -> None:
    from hearthlm.integrations.ray import BatchPredictor

    class Mortal(BatchPredictor):
        """Write down who has worked, and be killed, once in all, in the middle of the third batch of one actor."""

        num_batches = 0

        def __call__(self, batch: Any) -> dict[str, Any]:
            (tmp_path / f"{os.getpid()}.worked").touch()
            self.num_batches += 1
            if self.num_batches == 3:
                try:
                    os.close(os.open(tmp_path / "killed", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    found = answers(Mortal, rows(), 2)
    assert (tmp_path / "killed").exists()
    assert len(list(tmp_path.glob("*.worked"))) >= 2
    assert {key: row["text"] for key, row in found.items()} == alone


def test_a_document_that_fails_is_a_row_with_an_error() -> None:
    from hearthlm.integrations.ray import BatchPredictor

    source = [*rows()[:8], {"key": "long", "prompt": "word " * 1000}, {"key": "none", "prompt": None}]
    found = answers(BatchPredictor, source, 2)
    assert "max_tokens is 128" in found["long"]["error"]
    assert "neither" in found["none"]["error"]
    assert found["long"]["text"] == ""
    assert [row["error"] for key, row in found.items() if key.startswith("row")] == [""] * 8


def test_without_a_key_the_prompt_is_one(alone: dict[str, str]) -> None:
    from hearthlm.integrations.ray import BatchPredictor

    predictor = BatchPredictor(str(model_path()), OPTIONS, max_tokens=128, threads=1)
    prompts = [row["prompt"] for row in rows()[:2]]
    result = predictor({"prompt": prompts})
    assert result["seed"].tolist() == [row_seed(5, prompt) for prompt in prompts]
    messages = [[{"role": "user", "content": "Hello", "name": None}]]
    assert predictor({"messages": messages})["error"] == [""]
    with pytest.raises(ValueError, match="the columns text would be overwritten"):
        predictor({"prompt": prompts, "text": prompts})
    with pytest.raises(ValueError, match="expected a column prompt or messages, got body"):
        predictor({"body": prompts})


def test_an_actor_uses_the_threads_it_is_given_and_the_memory_it_reserves() -> None:
    from hearthlm.integrations.ray import BatchPredictor, actor_memory

    class Reporter(BatchPredictor):
        def __call__(self, batch: Any) -> dict[str, Any]:
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak = int(fields["VmHWM"].split()[0]) << 10
            answered = super().__call__(batch)
            return {
                **answered,
                "threads": [self._llm.num_threads] * len(batch["key"]),
                "peak": [peak] * len(batch["key"]),
            }

    found = answers(Reporter, rows()[:12], 1)
    assert {row["threads"] for row in found.values()} == {1}
    assert max(row["peak"] for row in found.values()) < actor_memory(model_path(), max_tokens=128, max_at_once=4)
    assert {row["threads"] for row in answers(Reporter, rows()[:12], 1, threads=2).values()} == {2}


def test_the_example_sums_up_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet

    example = Path(__file__).parent.parent / "examples" / "ray_summaries.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(example.parent / "passages"), str(tmp_path / "summaries")])
    runpy.run_path(str(example))["main"]()
    table = pyarrow.parquet.read_table(tmp_path / "summaries").to_pylist()
    assert {row["key"] for row in table} == {"bees.txt", "harbour.txt", "train.txt"}
    assert all(row["error"] == "" and row["text"] for row in table)
    printed = capsys.readouterr().out
    assert all(f"{row['key']}: {row['text']}" in printed for row in table)


def test_ray_serve_answers_as_the_server_does() -> None:
    from ray import serve

    from hearthlm.integrations.ray import serve_app

    app = serve_app(model_path(), threads=1, max_tokens=128, num_replicas=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    try:
        serve.run(app, name="hearthlm", route_prefix="/")
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": "Tell me a story about a fox."}],
            "seed": 3,
            "max_tokens": 20,
        }
        whole = json.loads(post(port, body))
        streamed = post(port, body | {"stream": True}).decode()
    finally:
        serve.shutdown()
    text = whole["choices"][0]["message"]["content"]
    assert whole["usage"]["completion_tokens"] == 20
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]) == text
    with LlmInference.create_from_options(LlmInferenceOptions(model_path(), max_tokens=128)) as llm:
        options = LlmInferenceSessionOptions(random_seed=3, max_output_tokens=20)
        assert llm.generate(body["messages"], options).texts[0] == text


def post(port: int, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    for _ in range(20):
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise AssertionError(error.read()) from None
            time.sleep(1)
    raise AssertionError("it was never loaded")


def test_the_memory_to_reserve_grows_with_what_is_decoded_together() -> None:
    from hearthlm.integrations.ray import WORKER_BYTES, actor_memory

    few, many = (actor_memory(model_path(), max_at_once=count) for count in (1, 16))
    assert WORKER_BYTES < few < many
    estimate = hearthlm.estimate_memory(LlmInferenceOptions(model_path()), num_sequences=16)
    assert many == pytest.approx(estimate.model_bytes + WORKER_BYTES, rel=0.01)
