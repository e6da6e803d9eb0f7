"""Requests that nobody should send, each with the status that answers it; the server goes on."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import JSON, ServerProcess, error_of, read_all, status_of

from hearthlm.server.page import content_security_policy
from hearthlm.server.requests import ChatRequest, CompletionRequest

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--max-tokens", "2048", "--parallel", "4", "--queue", "16", "--read-timeout", "1") as process:
        yield process


@pytest.fixture(autouse=True)
def lives_on(server: ServerProcess) -> Iterator[None]:
    """After every test the next request is answered, and no slot is taken."""
    yield
    assert server.process.poll() is None
    server.wait_until_idle()
    assert server.chat(max_tokens=1).status_code == 200


def request(
    method: str = "POST", path: str = CHAT, host: str | None = "localhost", body: bytes = b"", *more: str
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), "Connection: close", *more]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def refused(answer: bytes) -> tuple[int, Any]:
    """Return the status and the code of an answer, which has to be an error in OpenAI's form."""
    error = error_of(answer)
    assert error.keys() == {"message", "type", "param", "code"}
    return status_of(answer), error["code"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "evil-localhost",
        "localhost.",
        "127.0.0.1.nip.io",
        "127.0.0.2",
        "10.0.0.1",
        "[::2]",
        "[::1",
        "localhost:port",
        "localhost:8080:8080",
        "user@localhost",
        "localhost/evil",
        "0x7f000001",
        "2130706433",
        "",
        ":8080",
        "localhost evil.example",
        "lоcalhost".encode().decode("latin-1"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
def test_another_host_is_refused(server: ServerProcess, host: str, path: str) -> None:
    assert refused(server.raw(request("GET", path, host)))[0] in (400, 403)


def test_no_host_and_two_hosts_are_refused(server: ServerProcess) -> None:
    assert status_of(server.raw(request("GET", "/health", None))) == 400
    assert status_of(server.raw(b"GET /health HTTP/1.0\r\n\r\n")) == 403
    assert status_of(server.raw(request("GET", "/health", "localhost", b"", "Host: localhost"))) == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "localhost:1", "127.0.0.1:65535"])
def test_this_machines_own_names_are_answered(server: ServerProcess, host: str) -> None:
    assert status_of(server.raw(request("GET", "/health", host))) == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://localhost",
        "http://localhost:1",
        "http://localhost.evil.example",
        "file://",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_another_origin_is_refused(server: ServerProcess, origin: str, method: str) -> None:
    answer = server.raw(request(method, "/v1/models", "localhost", b"", f"Origin: {origin}"))
    assert refused(answer) == (403, "origin_not_allowed")
    assert b"access-control" not in answer.lower()


def test_the_own_origin_is_answered_and_nothing_is_shared_with_others(server: ServerProcess) -> None:
    answer = server.raw(request("GET", "/v1/models", "localhost", b"", "Origin: http://localhost"))
    assert status_of(answer) == 200
    assert b"access-control" not in answer.lower()


def test_allowed_names_and_origins() -> None:
    with ServerProcess("--allow-host", "Pi.local", "--allow-origin", "https://chat.example") as server:
        assert status_of(server.raw(request("GET", "/health", "pi.local:80"))) == 200
        assert status_of(server.raw(request("GET", "/health", "pi.local.evil.example"))) == 403
        allowed = {"Origin": "https://chat.example"}
        answer = server.client.get("/v1/models", headers=allowed)
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
        before = server.client.options(CHAT, headers=allowed | {"Access-Control-Request-Method": "POST"})
        assert before.status_code == 204
        assert "content-type" in before.headers["access-control-allow-headers"].lower()
        assert server.client.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403


def test_a_network_address_answers_to_addresses_and_allowed_names_only() -> None:
    key = {"Authorization": "Bearer k"}
    with ServerProcess("--host", "0.0.0.0", environment={"HEARTHLM_API_KEY": "k"}) as server:
        for host, status in (("192.168.1.7:8080", 200), ("[fe80::1]", 200), ("pi.local", 403), ("evil.example", 403)):
            assert server.client.get("/v1/models", headers={**key, "Host": host}).status_code == status


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/json",
        "application/jsonp",
        "application/json-seq",
        "application",
        "json",
        "*/*",
        "application/xml; application/json",
        "text/plain;application/json",
    ],
)
def test_another_content_type_is_refused(server: ServerProcess, kind: str) -> None:
    answer = server.client.post(CHAT, content=json.dumps({"messages": MESSAGES}), headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_json_by_any_of_its_names_is_taken(server: ServerProcess) -> None:
    for kind in ("application/json", "Application/JSON", "application/json; charset=utf-8"):
        body = json.dumps({"messages": MESSAGES, "max_tokens": 1})
        assert server.client.post(CHAT, content=body, headers={"Content-Type": kind}).status_code == 200
    assert server.post(CHAT, "{}", **{"Content-Encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "TRACE", "PROPFIND"])
def test_another_method_is_refused(server: ServerProcess, method: str) -> None:
    answer = server.client.request(method, CHAT)
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]
    assert (
        server.client.request(
            method if method not in ("GET", "HEAD") else "POST", "/v1/models", headers=JSON, content=b"{}"
        ).status_code
        == 405
    )


def test_a_path_that_there_is_not(server: ServerProcess) -> None:
    for path in ("/v1/nothing", "/v1/models/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//", "/V1/models"):
        status, _ = refused(server.raw(request("GET", path)))
        assert status == 404, path


@pytest.mark.parametrize("size", [17 << 10, 64 << 10, 1 << 20])
@pytest.mark.parametrize("where", ["value", "name", "path", "many"])
def test_a_long_header_is_refused(server: ServerProcess, size: int, where: str) -> None:
    more = {
        "value": ["X: " + "a" * size],
        "name": ["X" * size + ": a"],
        "path": [],
        "many": ["X: " + "a" * 100] * (size // 105),
    }[where]
    path = "/health?" + "a" * size if where == "path" else "/health"
    with server.connection() as bare:
        try:
            bare.sendall(request("GET", path, "localhost", b"", *more))
        except (BrokenPipeError, ConnectionResetError):
            return  # it closed before it had read all
        if answer := read_all(bare):
            assert refused(answer)[0] == 431


def test_a_large_body_is_refused(server: ServerProcess) -> None:
    limit = 4 << 20
    fits = json.dumps({"messages": MESSAGES, "max_tokens": 1, "unknown": "a" * (limit - 200)})
    assert len(fits) < limit
    assert server.post(CHAT, fits).status_code == 200
    headers = "Content-Type: application/json"
    said = request("POST", CHAT, "localhost", b"", headers, f"Content-Length: {limit + 1}")
    assert refused(server.raw(said)) == (413, "body_too_large")
    for length in ("99999999999999999999999", "-1", "1e3", "0x10", "5, 6"):
        answer = server.raw(request("POST", CHAT, "localhost", b"", headers, f"Content-Length: {length}"))
        assert status_of(answer) in (400, 413)
    with server.connection() as bare:  # in chunks, so that it is not known before
        bare.sendall(request("POST", CHAT, "localhost", b"", headers, "Transfer-Encoding: chunked"))
        try:
            for _ in range(5):
                bare.sendall(b"100000\r\n" + b"a" * (1 << 20) + b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return
        assert refused(read_all(bare))[0] == 413


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-1\r\n{}\r\n0\r\n\r\n",
        b"ffffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}abc\r\n0\r\n\r\n",
        b"2 \x00\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_chunks_that_lie_are_refused(server: ServerProcess, body: bytes) -> None:
    head = request("POST", CHAT, "localhost", b"", "Content-Type: application/json", "Transfer-Encoding: chunked")
    answer = server.raw(head + body)
    assert answer == b"" or 400 <= status_of(answer) < 500


def test_a_body_in_chunks_is_read(server: ServerProcess) -> None:
    def chunks() -> Iterator[bytes]:
        for part in json.dumps({"messages": MESSAGES, "max_tokens": 1}):
            yield part.encode()

    assert server.client.post(CHAT, content=chunks(), headers=JSON).status_code == 200


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server: ServerProcess, junk: bytes) -> None:
    with server.connection() as bare:
        bare.sendall(junk)
        bare.shutdown(socket.SHUT_WR)
        answer = read_all(bare)
    assert answer == b"" or 400 <= status_of(answer) < 500


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"nonsense", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"messages": [{"role": "\xff"}]}', "invalid_json"),
        (b"[" * 10_000 + b"]" * 10_000, "invalid_value"),
        (b'{"messages": [{}], "deep": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "invalid_json"),
        (b'{"messages": [{"content": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}]}", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"7", "invalid_value"),
        (b"{}", "invalid_value"),
        (b'{"messages": []}', "invalid_value"),
        (b'{"messages": {}}', "invalid_value"),
        (b'{"messages": [7]}', "invalid_value"),
        (b'{"messages": [{}]}', "invalid_value"),
        (b'{"messages": [{"role": "user"}]}', "invalid_value"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', "invalid_value"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "unsupported_content"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "a"}], "model": 7}', "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "a"}], "model": "../../etc/passwd"}', "model_not_found"),
        (b'{"messages": [{"role": "user", "content": "a"}], "stop": ""}', "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "a"}], "stop": [7]}', "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"x": 1}}', "invalid_value"),
        (b'{"messages": [{"role": "user", "content": "a"}], "logit_bias": {"999999": 1}}', "invalid_value"),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "xml"}}',
            "response_format_unsupported",
        ),
    ],
)
def test_a_body_that_is_wrong_is_refused(server: ServerProcess, body: bytes, code: str) -> None:
    answer = server.post(CHAT, body)
    assert answer.status_code == (404 if code == "model_not_found" else 400), answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert len(error["message"]) < 1000


NUMBERS = (
    "NaN", "Infinity", "-Infinity", "-1", "-0.5", "1e308", "-1e308", "1e999", "9223372036854775807",
    "9223372036854775808", "18446744073709551616", "1" + "0" * 400, '"1"', "true", "[]", "{}", "0.1.2", "0x10", "1.5",
)  # fmt: skip
NUMERIC = {
    CHAT: (ChatRequest, ("n", "seed", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
                         "presence_penalty", "frequency_penalty", "repetition_penalty", "top_logprobs")),
    "/v1/completions": (CompletionRequest, ("n", "max_tokens", "temperature", "top_p", "logprobs")),
}  # fmt: skip
# What is in range all the same: a fraction where one is meant, an integer where any is.
GOOD = {
    ("temperature", "1.5"), ("presence_penalty", "-1"), ("presence_penalty", "-0.5"), ("presence_penalty", "1.5"),
    ("frequency_penalty", "-1"), ("frequency_penalty", "-0.5"), ("frequency_penalty", "1.5"),
    ("repetition_penalty", "1.5"), ("seed", "9223372036854775807"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "field"), [(path, field) for path, (_, fields) in NUMERIC.items() for field in fields]
)
def test_every_number_out_of_range_is_refused_by_its_name(server: ServerProcess, path: str, field: str) -> None:
    for number in NUMBERS:
        about = '"messages": [{"role": "user", "content": "a"}]' if path == CHAT else '"prompt": "a"'
        limit = "" if field in ("max_tokens", "max_completion_tokens") else ', "max_tokens": 1'
        answer = server.post(path, f'{{{about}{limit}, "{field}": {number}}}')
        if (field, number) in GOOD:
            assert answer.status_code == 200, (number, answer.text)
            continue
        assert answer.status_code == 400, (field, number, answer.text)
        error = answer.json()["error"]
        assert error["code"] == "invalid_json" or error["param"] == field, (number, error)


def test_a_number_out_of_range_is_told_as_it_was_sent(server: ServerProcess) -> None:
    long = "9" * 5000
    for field, sent in (("temperature", "3.50"), ("temperature", "-1e308"), ("top_k", "-7"), ("top_k", long)):
        error = server.post(CHAT, f'{{"{field}": {sent}, "messages": [{{}}]}}').json()["error"]
        assert error["message"].endswith(f", got {sent[:30]}"), error
    deep = b'{"temperature": 3, "messages": [{}], "deep": ' + b"[" * 10_000
    assert server.post(CHAT, deep).status_code == 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
        ("suffix", "a"),
        ("best_of", 3),
        ("store", True),
    ],
)
def test_what_is_known_and_not_supported_is_refused_by_its_name(server: ServerProcess, field: str, value: Any) -> None:
    answer = server.chat(**{field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


def test_what_is_not_known_or_asks_for_nothing_is_passed_over(server: ServerProcess) -> None:
    extra = {"user": "me", "metadata": {"a": "b"}, "store": False, "modalities": ["text"], "whatever": [1, {"a": None}]}
    assert server.chat(**extra, max_tokens=1).status_code == 200


def test_no_field_names_a_file(server: ServerProcess) -> None:
    """Whatever looks like a path is a name that there is not."""
    for path in ("/v1/embeddings", "/tokenize", "/detokenize", "/v1/completions"):
        body = {"model": "/etc/passwd", "input": "a", "text": "a", "tokens": [5], "prompt": "a"}
        assert server.post(path, body).status_code == 404
    assert server.client.get("/v1/models//etc/passwd").status_code == 404


def test_a_client_that_sends_slowly_is_cut_off(server: ServerProcess) -> None:
    """A header, a body and nothing at all, a byte at a time: each ends after the time for reading."""
    head = request("POST", CHAT, "localhost", b"", "Content-Type: application/json", "Content-Length: 1000")
    for text, status in ((head, 408), (head[:-2], 408), (b"", None)):
        begun = time.monotonic()
        with server.connection() as bare:
            bare.sendall(text)
            answer = b""
            bare.settimeout(0.3)
            while time.monotonic() - begun < 30:
                try:
                    if not (data := bare.recv(65536)):
                        break
                    answer += data
                except TimeoutError:
                    if text:
                        bare.sendall(b"a")
                except ConnectionResetError:
                    break
            else:
                pytest.fail("it was not cut off")
        assert (status_of(answer) if answer else None) == status


def test_a_client_that_says_it_will_send_no_more_has_left(server: ServerProcess) -> None:
    """A half-closed connection: the only sign that a client gives who closes its window."""
    before = server.metric("output_tokens_total")
    body = json.dumps({"messages": MESSAGES, "max_tokens": 2000}).encode()
    with server.connection() as bare:
        bare.sendall(request("POST", CHAT, "localhost", body, "Content-Type: application/json"))
        bare.shutdown(socket.SHUT_WR)
        assert read_all(bare) == b""
        server.wait_until_idle()
    assert server.metric("output_tokens_total") - before < 2000


def drop(server: ServerProcess, generator: random.Random) -> None:
    """Leave at some point: in the header, in the body, while a prompt is read, in an answer, at its end."""
    content = "fox " * generator.choice((1, 400))
    body = json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 50, "stream": True}).encode()
    whole = request("POST", CHAT, "localhost", body, "Content-Type: application/json")
    head = whole.index(b"\r\n\r\n")
    where = generator.randrange(5)
    with server.connection() as bare:
        if where == 0:
            bare.sendall(whole[: generator.randrange(1, head)])
        elif where == 1:
            bare.sendall(whole[: generator.randrange(head + 4, len(whole))])
        else:
            bare.sendall(whole)
            if where == 3:
                bare.recv(generator.randrange(1, 2000))
            elif where == 4:
                received = b""
                while b"[DONE]" not in received and (data := bare.recv(4096)):
                    received += data
        if generator.random() < 0.5:  # with a reset rather than an end
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_clients_that_drop_at_any_point_leave_nothing_behind(server: ServerProcess, count: int) -> None:
    generator = random.Random(5)
    server.wait_until_idle()
    before = server.num_files()
    threads = []
    for _ in range(count):
        thread = threading.Thread(target=drop, args=(server, random.Random(generator.random())))
        thread.start()
        threads.append(thread)
        if len(threads) == 8:
            threads.pop(0).join()
    for thread in threads:
        thread.join()
    server.wait_until_idle()
    deadline = time.monotonic() + 30
    while server.num_files() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.num_files() <= before + 1


def test_two_hundred_at_once_are_answered_or_told_to_come_back() -> None:
    statuses: list[int] = []
    with ServerProcess("--parallel", "4", "--queue", "16") as server:

        def ask() -> None:
            body = {"messages": MESSAGES, "max_tokens": 10}
            statuses.append(httpx.post(server.url + CHAT, json=body, timeout=300).status_code)

        threads = [threading.Thread(target=ask) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(statuses) == 200
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 20


def test_the_pages_policy_names_its_own_script_and_style_only() -> None:
    page = b"<html><style>a{}</style><script>let a = 1;</script><script type='module'>b</script></html>"
    policy = content_security_policy(page)
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; connect-src 'self'; script-src 'sha256-")
    assert policy.count("'sha256-") == 3
    assert "frame-ancestors 'none'" in policy
