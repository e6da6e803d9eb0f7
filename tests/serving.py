"""A real server in a process of its own, for tests that talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

JSON = {"Content-Type": "application/json"}


class ServerProcess:
    """Run `hearthlm serve` on a free port; use as a context manager."""

    def __init__(self, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "hearthlm", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
        assert self.process.stderr is not None
        self.said = ""
        while (found := re.search(r"on (http://\S+)", self.said)) is None:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.url = found.group(1)
        self.port = int(self.url.rpartition(":")[2])
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return self.client.post(path, content=content, headers={**JSON, **headers})

    def chat(self, **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "Tell me a story about a fox."}]
        return self.post("/v1/chat/completions", {"messages": messages, "max_tokens": 5, **body})

    def metric(self, name: str) -> float:
        """Return the sum of a figure over its labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"hearthlm_{name}[ {{]", line))

    def wait_until_idle(self, within_s: float = 30) -> None:
        """Wait until no slot is taken and nobody waits."""
        deadline = time.monotonic() + within_s
        while self.metric("busy_slots") or self.metric("waiting_requests"):
            assert time.monotonic() < deadline, self.client.get("/metrics").text
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found.group(1)) << 10

    def num_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @contextlib.contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """Yield a bare connection, for what no client would send."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as bare:
            yield bare

    def raw(self, request: bytes) -> bytes:
        """Send bytes and return all that comes back until the server closes."""
        with self.connection() as bare:
            bare.sendall(request)
            return read_all(bare)


def read_all(bare: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := bare.recv(65536):
            received += data
    return received


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error_of(answer: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return error
