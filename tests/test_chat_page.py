"""The chat page, in a real browser, on the real server; only what no model can be made to say is put into its mouth.

What needs the browser is run by `make test-web`.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import hearthlm
from hearthlm.demo import model_path
from hearthlm.server import ServedModel, ServerOptions, create_app

playwright = pytest.importorskip("playwright.sync_api", reason="`make test-web` installs playwright")
Page = Any

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "outputs" / "0.10.14"
AXE = ROOT / "tests" / "web" / "node_modules" / "axe-core" / "axe.min.js"
STORY = "Tell me a story about a brave little boat."

pytestmark = pytest.mark.web


# The server and the browser


class Server:
    """Serve on a port of its own, on a thread of its own."""

    def __init__(self, models: Any, port: int = 0, **options: Any) -> None:
        self._models = models
        self._options = ServerOptions(**options)
        self.port = port
        self.start()

    def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            create_app(self._models, self._options), log_config=None, ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def num_busy(self) -> int:
        """Return how many answers are being made."""
        with urllib.request.urlopen(f"{self.url}metrics") as response:
            return sum(int(n) for n in re.findall(r"^hearthlm_busy_slots\{.*\} (\d+)", response.read().decode(), re.M))


@pytest.fixture(scope="module")
def llm() -> Iterator[hearthlm.LlmInference]:
    options = hearthlm.LlmInferenceOptions(model_path=model_path(), max_tokens=4096, num_threads=1)
    with hearthlm.LlmInference.create_from_options(options) as llm:
        yield llm


@pytest.fixture(scope="module")
def server(llm: hearthlm.LlmInference) -> Iterator[Server]:
    server = Server(llm)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is missing; on Debian: apt-get install -y chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """Open pages, and tell afterwards what went wrong in them, and whom they asked."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self.contexts: list[Any] = []
        self.problems: list[str] = []
        self.urls: list[str] = []

    def open(self, server: Server, *, is_ready: bool = True, **settings: Any) -> Page:
        context = self._browser.new_context(**settings)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self._note(message))
        page.on("request", lambda request: self.urls.append(request.url))
        page.goto(server.url)
        if is_ready:
            page.wait_for_selector("#model:enabled")
        return page

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.problems.append(message.text)


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    watched = Watched(browser)
    yield watched
    for context in watched.contexts:
        context.close()
    assert watched.problems == []


@pytest.fixture
def page(watched: Watched, server: Server) -> Iterator[Page]:
    yield watched.open(server)
    assert all(re.match(rf"{server.url}|data:|blob:{server.url}", url) for url in watched.urls), watched.urls


@pytest.fixture(scope="module")
def open_page(browser: Any, server: Server) -> Iterator[tuple[Watched, Page]]:
    watched = Watched(browser)
    yield watched, watched.open(server)
    watched.contexts[0].close()


@pytest.fixture
def talk(open_page: tuple[Watched, Page]) -> Iterator[Page]:
    """Return a page that other tests have used: what they have in common is what the model is made to say."""
    watched, page = open_page
    page.unroute_all()
    page.click("#new")
    yield page
    assert watched.problems == []
    assert all("example" not in url for url in watched.urls)


def until(page: Page, holds: str, arg: Any = None) -> None:
    """Wait until a JavaScript expression holds; Playwright's own way would need the policy to allow `eval`."""
    deadline = time.monotonic() + 20
    while not page.evaluate(holds, arg):
        assert time.monotonic() < deadline, f"it never became true that {holds}"
        page.wait_for_timeout(10)


def send(page: Page, text: str) -> None:
    page.fill("#draft", text)
    page.wait_for_selector("#send:enabled")
    page.press("#draft", "Enter")


def ask(page: Page, text: str) -> str:
    """Send a message and return the answer as it is shown."""
    count = page.locator(".facts").count()
    send(page, text)
    until(page, "count => document.querySelectorAll('.facts').length > count", count)
    return str(page.locator(".answer").last.inner_text())


def bodies(page: Page) -> list[dict[str, Any]]:
    """Return a list to which the body of every request for an answer will be added."""
    found: list[dict[str, Any]] = []
    page.on("request", lambda r: found.append(r.post_data_json) if "completions" in r.url else None)
    return found


def never_end(page: Page, llm: hearthlm.LlmInference) -> None:
    """Forbid the tokens that end an answer: it goes on until it is stopped or the context is full."""
    bias = {str(i): -100 for i in llm.stop_ids}

    def forbid(route: Any) -> None:
        route.continue_(post_data=json.dumps(route.request.post_data_json | {"logit_bias": bias}))

    page.route("**/v1/chat/completions", forbid)


def say(page: Page, *pieces: str, finish_reason: str = "stop", timings: dict[str, float] | None = None) -> None:
    """Let the next answers be these pieces, in the form in which the server sends an answer."""

    def event(value: dict[str, Any]) -> str:
        return f"data: {json.dumps({'object': 'chat.completion.chunk', 'seed': 7, **value})}\n\n"

    chunks = [event({"choices": [{"index": 0, "delta": {"content": p}, "finish_reason": None}]}) for p in pieces]
    chunks.append(event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]}))
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    chunks.append(event({"choices": [], "usage": usage, **({"timings": timings} if timings else {})}))
    body = ": a comment\n\n" + "".join(chunks) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))


# Answers


def test_an_answer_is_shown_while_it_is_being_made(page: Page, llm: hearthlm.LlmInference) -> None:
    never_end(page, llm)
    send(page, STORY)
    until(page, "document.querySelector('.answer .text')?.textContent.length > 40")
    assert page.get_attribute("#log", "aria-busy") == "true"
    shown = page.locator(".answer .text").text_content()
    until(page, "n => document.querySelector('.answer .text').textContent.length > n", len(shown) + 40)
    assert page.locator(".answer .text").text_content().startswith(shown[:-8])
    page.press("body", "Escape")


def test_a_whole_answer_says_what_it_took(page: Page) -> None:
    answer = ask(page, STORY)
    assert len(answer) > 100
    facts = page.locator(".facts").inner_text()
    assert re.fullmatch(r"\d+\.\d\d s to first token · [\d.,]+ tokens/s · \d+ tokens", facts)
    page.wait_for_selector(r"#count >> text=/^\d+ of 4,096 tokens$/")
    about = page.get_attribute(".facts", "title")
    assert re.fullmatch(r"demo, prompt of \d+ tokens, seed \d+", about)


@pytest.mark.parametrize(("decode_s", "rate"), [(0.5, "8.0"), (0.002, "2,000")])
def test_the_rate_is_the_servers_own(decode_s: float, rate: str, talk: Page) -> None:
    """How the pieces of an answer come together on their way says nothing of how fast it was made."""
    say(talk, "Five tokens at once.", timings={"decode_s": decode_s})
    ask(talk, "How fast?")
    assert f" · {rate} tokens/s · 5 tokens" in talk.locator(".facts").inner_text()


def test_stop_frees_the_server_and_keeps_what_was_said(page: Page, server: Server, llm: hearthlm.LlmInference) -> None:
    never_end(page, llm)
    send(page, STORY)
    page.wait_for_selector(".answer .text")
    assert server.num_busy() == 1
    page.click("#send[aria-label=Stop]")
    page.wait_for_selector(".facts >> text=stopped")
    assert page.locator(".answer").inner_text()
    deadline = time.monotonic() + 20
    while server.num_busy():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    page.unroute("**/v1/chat/completions")
    assert ask(page, "Write a short story about Mira and a lost key.")


def test_another_answer_is_kept_beside_the_first(page: Page) -> None:
    sent = bodies(page)
    first = ask(page, STORY)
    page.click("[aria-label='Answer again']")
    page.wait_for_selector("text=2 / 2")
    second = page.locator(".answer").inner_text()
    assert second != first  # other seeds
    assert sent[0]["messages"] == sent[1]["messages"] == [{"role": "user", "content": STORY}]
    page.click("[aria-label='Earlier answer']")
    assert page.locator(".answer").inner_text() == first
    assert page.evaluate("document.activeElement.ariaLabel") != "Earlier answer"  # there is none before the first
    ask(page, "Thank you.")
    assert sent[2]["messages"][1] == {"role": "assistant", "content": first}


def test_the_last_message_can_be_edited(page: Page) -> None:
    sent = bodies(page)
    ask(page, "Tell me a story about a fox.")
    ask(page, "Tell me a story about a cat.")
    page.locator(".user").last.hover()
    page.click("[aria-label='Edit message']")
    box = page.locator(".edit textarea")
    assert box.input_value() == "Tell me a story about a cat."
    box.fill("Tell me a story about an owl.")
    box.press("Enter")
    page.wait_for_selector("text=about an owl")
    until(page, "document.querySelectorAll('.facts').length === 2")
    assert [m["content"] for m in sent[2]["messages"][::2]] == [
        "Tell me a story about a fox.",
        "Tell me a story about an owl.",
    ]
    assert page.locator(".said").all_inner_texts() == [m["content"] for m in sent[2]["messages"][::2]]


def test_a_new_chat_knows_nothing_of_the_old_one(page: Page) -> None:
    sent = bodies(page)
    ask(page, STORY)
    page.click("#new")
    assert page.locator(".turn").count() == 0
    ask(page, "Tell me a story about a fox.")
    assert len(sent[1]["messages"]) == 1
    assert page.locator(".chat").count() == 2


def test_answers_and_code_are_copied_as_they_came(watched: Watched, server: Server) -> None:
    page = watched.open(server, permissions=["clipboard-read", "clipboard-write"])
    say(page, "A **list**:\n\n```python\nx = 1\n\nif x:\n    pass\n```\n")
    ask(page, "Code, please.")
    page.click("[aria-label='Copy code']")
    page.wait_for_selector("#live >> text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "x = 1\n\nif x:\n    pass"
    page.click("[aria-label='Copy answer']")
    until(page, "async () => (await navigator.clipboard.readText()).startsWith('A **list**:')")


def test_two_chats_are_answered_at_once(page: Page, llm: hearthlm.LlmInference) -> None:
    never_end(page, llm)
    send(page, STORY)
    page.wait_for_selector(".answer .text")
    page.click("#new")
    page.unroute("**/v1/chat/completions")
    assert ask(page, "Tell me a story about a fox.")
    assert page.locator(".chat.busy").count() == 1
    page.click(".chat.busy .open")
    assert page.get_attribute("#send", "aria-label") == "Stop"
    page.click("#send")
    page.wait_for_selector(".facts >> text=stopped")


# Settings


def test_settings_reach_the_request_and_can_be_reset(page: Page) -> None:
    sent = bodies(page)
    page.click("#open-settings")
    values = {"max_tokens": "7", "temperature": "0.4", "top_k": "12", "top_p": "0.9", "seed": "42"}
    for name, value in values.items():
        page.fill(f"#{name}", value)
    page.fill("#stop", "###\n\\n\\n")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    ask(page, STORY)
    body = sent[0]
    assert {name: body[name] for name in values} == {name: float(value) for name, value in values.items()}
    assert body["stop"] == ["###", "\n\n"]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "seed 42" in page.get_attribute(".facts", "title")
    assert "cut at the limit" in page.locator(".facts").inner_text()

    page.reload()
    page.wait_for_selector("#model:enabled")
    page.click("#open-settings")
    assert {name: page.input_value(f"#{name}") for name in values} == values
    page.click("[aria-label='Reset Top k']")
    assert page.input_value("#top_k") == ""
    assert page.get_attribute("#top_k", "placeholder") == "40"
    page.click("#reset")
    assert all(page.input_value(f"#{name}") == "" for name in [*values, "stop", "system"])
    page.keyboard.press("Escape")
    ask(page, "Tell me a story about a fox.")
    assert set(sent[1]) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", "2.5"), ("top_p", "0"), ("top_k", "-1"), ("max_tokens", "0"), ("seed", "1.5")]
)
def test_a_setting_out_of_range_is_said_and_not_sent(name: str, value: str, page: Page) -> None:
    sent = bodies(page)
    page.click("#open-settings")
    page.fill(f"#{name}", value)
    assert page.get_attribute(f"#{name}", "aria-invalid") == "true"
    assert page.locator(f"#{name}-hint.wrong").inner_text()
    page.keyboard.press("Escape")
    ask(page, STORY)
    assert name not in sent[0]


def test_a_raw_prompt_goes_on_without_turns(page: Page) -> None:
    sent: list[tuple[str, Any]] = []
    page.on("request", lambda r: sent.append((r.url, r.post_data_json)) if "completions" in r.url else None)
    page.click("#open-settings")
    page.check("#raw")
    page.fill("#max_tokens", "20")
    page.keyboard.press("Escape")
    first = ask(page, "Once there was a boat. ")
    ask(page, " The end of it was")
    urls, prompts = [url for url, _ in sent], [body["prompt"] for _, body in sent]
    assert all(url.endswith("/v1/completions") for url in urls)
    assert prompts[0] == "Once there was a boat. "
    assert prompts[1].startswith(prompts[0]) and prompts[1].endswith(" The end of it was")
    assert first.strip() in prompts[1]


@pytest.fixture(scope="module")
def two_models(llm: hearthlm.LlmInference) -> Iterator[Server]:
    with hearthlm.LlmInference.create_from_model_path(GOLDEN / "gemma_2b_gpu_lora.bin") as toy:
        adapter = toy.load_lora(GOLDEN / "gemma_2b_gpu_lora_lora.bin")
        server = Server([ServedModel(llm), ServedModel(toy, "toy", {"letters": adapter})])
        yield server
        server.stop()


def test_models_and_adapters_can_be_chosen(watched: Watched, two_models: Server) -> None:
    page = watched.open(two_models)
    sent = bodies(page)
    page.click("#model")
    assert "demo" in page.locator("#rows").inner_text()
    page.select_option("#choose", "toy")
    rows = page.locator("#rows").inner_text()
    assert "letters (rank 4)" in rows and "GEMMA_2B" in rows
    page.keyboard.press("Escape")
    page.click("#open-settings")
    page.select_option("#adapter", label="letters")
    page.fill("#max_tokens", "5")
    page.keyboard.press("Escape")
    assert page.locator("#model .tag").inner_text() == "letters"
    ask(page, "abc")
    assert sent[0]["model"] == "toy:letters"


def test_what_the_model_is_can_be_read(page: Page, llm: hearthlm.LlmInference) -> None:
    page.click("#model")
    rows = page.locator("#rows").inner_text()
    assert isinstance(llm.info, hearthlm.ModelInfo)
    assert f"{llm.info.num_parameters:,}" in rows
    assert f"{llm.max_tokens:,} tokens" in rows
    assert "CPU, 1 thread" in rows


def test_tokens_are_counted_while_one_writes(page: Page, llm: hearthlm.LlmInference) -> None:
    page.fill("#draft", STORY)
    own, whole = len(llm.tokenizer.encode(STORY)), len(llm.chat_format.encode([{"role": "user", "content": STORY}]))
    page.wait_for_selector(f"#count >> text={own} tokens · {whole} of 4,096")
    page.fill("#draft", "boat " * 4200)
    page.wait_for_selector("#meter.over")
    assert "too long" in page.locator("#count").inner_text()


# What models may say


HOSTILE = [
    "<script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    "**<svg onload=window.harmed=1>**",
    "`<iframe src=javascript:parent.harmed=1>`",
    "```html\n<script>window.harmed = 1</script>\n```",
    "| a |\n|---|\n| <img src=x onerror=window.harmed=1> |",
    "# <style>* { display: none }</style>",
    "</div></article><script>window.harmed = 1</script>",
    "[click](javascript:window.harmed=1) [x](JaVaScRiPt:harmed=1) [y](data:text/html,<script>harmed=1</script>)",
    '[a](https://example.invalid/" onmouseover="window.harmed=1)',
    "![x](https://example.invalid/pixel.png) ![y](//example.invalid/z.png)",
    "<think><img src=x onerror=window.harmed=1></think>done",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_says_stays_text(text: str, talk: Page) -> None:
    say(talk, *text)
    ask(talk, text)
    answer = talk.locator(".answer")
    made = answer.evaluate("node => [...node.querySelectorAll('*')].map((n) => n.localName)")
    kinds = {"script", "img", "iframe", "style", "link", "object", "embed", "form", "input", "video", "base", "meta"}
    assert kinds.isdisjoint(made)
    attributes = answer.evaluate(
        "node => [...node.querySelectorAll('*')].flatMap((n) => n.localName === 'path' ? [] : n.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")]
    links = answer.evaluate("node => [...node.querySelectorAll('a')].map((a) => [a.protocol, a.target, a.rel])")
    assert all(link == ["https:", "_blank", "noopener noreferrer nofollow"] for link in links)
    talk.wait_for_timeout(50)
    assert talk.evaluate("window.harmed") is None
    assert talk.locator(".said").text_content() == text
    if "<" in text:
        assert "<" in answer.text_content()


MARKDOWN = [
    ("one\ntwo", "<p>one<br>two</p>"),
    ("one\n\ntwo", "<p>one</p><p>two</p>"),
    ("**bold** *lean* ~~gone~~ `code`", "<p><strong>bold</strong> <em>lean</em> <del>gone</del> <code>code</code></p>"),
    ("***both***", "<p><strong><em>both</em></strong></p>"),
    ("*a **b** c*", "<p><em>a <strong>b</strong> c</em></p>"),
    ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
    (r"\*not lean\*", "<p>*not lean*</p>"),
    ("`` a`b ``", "<p><code>a`b</code></p>"),
    ("**never closed", "<p>**never closed</p>"),
    ("# One\n### Three #", "<h3>One</h3><h5>Three</h5>"),
    ("#hash", "<p>#hash</p>"),
    ("- a\n- b\n  - c\n- d", "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li><li><p>d</p></li></ul>"),
    ("1. a\n\n2. b", "<ol><li><p>a</p></li><li><p>b</p></li></ol>"),
    ("3) a\n4) b", "<ol><li><p>a</p></li><li><p>b</p></li></ol>"),
    ("* a\n\n  more\n* b", "<ul><li><p>a</p><p>more</p></li><li><p>b</p></li></ul>"),
    ("It is 1984.\n1984. A year.", "<p>It is 1984.<br>1984. A year.</p>"),
    ("- a\n\nb", "<ul><li><p>a</p></li></ul><p>b</p>"),
    ("1. a\n- b", "<ol><li><p>a</p></li></ol><ul><li><p>b</p></li></ul>"),
    ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
    ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    ("| a | b |\n|:--|--:|\n| 1 | `x\\|y` |", "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr>"
     "<td>1</td><td><code>x|y</code></td></tr></tbody></table></div>"),
    ("a | b\nnot a table", "<p>a | b<br>not a table</p>"),
    ("see https://a.example/b_c_d.", "<p>see <a>https://a.example/b_c_d</a>.</p>"),
    ("<https://a.example/x>, a <b>", "<p><a>https://a.example/x</a>, a &lt;b&gt;</p>"),
    ("- [ ] a\n- [x] b [ ]", "<ul><li><p>☐ a</p></li><li><p>☑ b [ ]</p></li></ul>"),
    ("(https://a.example/x)", "<p>(<a>https://a.example/x</a>)</p>"),
    ("[a *b*](https://a.example/(x))", "<p><a>a <em>b</em></a></p>"),
    ("[a](b.html)", "<p>[a](b.html)</p>"),
    ("![cat](https://a.example/cat.png)", "<p><a>Image: cat</a></p>"),
    ("a < b && c > d", "<p>a &lt; b &amp;&amp; c &gt; d</p>"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MARKDOWN)
def test_markdown(text: str, expected: str, talk: Page) -> None:
    say(talk, *text)  # a letter at a time: what is shown at the end must not depend on what was shown before
    ask(talk, "Markdown, please.")
    shown = talk.locator(".md").inner_html()
    assert re.sub(r"<(\w+) [^>]*>", r"<\1>", shown) == expected


def test_code_blocks(talk: Page) -> None:
    say(talk, "```js\na **b**\n\n  <c>\n```\n~~~\n```\n~~~\n````\nopen ``` end")
    ask(talk, "Code, please.")
    assert talk.locator(".code code").all_text_contents() == ["a **b**\n\n  <c>", "```", "open ``` end"]
    assert talk.locator("figcaption").all_inner_texts() == ["js", "text", "text"]


@pytest.mark.parametrize(
    "text",
    [
        *("*a " * 20_000, "**a" * 12_000, "_a" * 15_000, "~~x" * 9_000, "`" * 19_999, "[" * 20_000, "![" * 9_000),
        *("> " * 9_000, "- " * 9_000 + "a", "1. a\n" * 4_000, "\n" * 20_000, "https://a" * 4_000),
        "|a" * 9_000 + "\n" + "|-" * 9_000,
    ],
    ids=lambda text: text[:4],
)
def test_no_text_takes_the_page_long(text: str, talk: Page) -> None:
    say(talk, text)
    ask(talk, "Something odd, please.")
    assert talk.locator(".md").count() == 1


def test_thoughts_are_folded_away(talk: Page) -> None:
    say(talk, "<think>\nHm.\n</think>\n\nIt is **four**.")
    assert ask(talk, "2 + 2?").split() == ["Thoughts", "It", "is", "four."]
    talk.click("summary")
    assert talk.locator(".think div").inner_text() == "Hm."


def test_a_source_can_be_looked_at(talk: Page) -> None:
    say(talk, "**four**")
    assert ask(talk, "2 + 2?") == "four"
    talk.click("[aria-label='Show source']")
    assert talk.locator(".answer").inner_text() == "**four**"
    assert talk.evaluate("document.activeElement.ariaLabel") == "Show formatted"


def test_right_to_left_text_runs_from_right_to_left(talk: Page) -> None:
    say(talk, "مرحبا بالعالم\n\nHello world")
    ask(talk, "שלום עולם")
    assert talk.evaluate("getComputedStyle(document.querySelector('.said')).direction") == "rtl"
    directions = "[...document.querySelectorAll('.md p')].map((p) => getComputedStyle(p).direction)"
    assert talk.evaluate(directions) == ["rtl", "ltr"]


# Kept chats


def test_chats_survive_a_reload(page: Page) -> None:
    answer = ask(page, STORY)
    page.reload()
    page.click(f".chat .open >> text={STORY}")
    assert page.locator(".answer").inner_text() == answer
    assert "tokens/s" in page.locator(".facts").inner_text()


def test_an_answer_that_is_cut_off_by_a_reload_is_kept(page: Page, llm: hearthlm.LlmInference) -> None:
    never_end(page, llm)
    send(page, STORY)
    until(page, "document.querySelector('.answer .text')?.textContent.length > 200")
    page.wait_for_timeout(2500)
    page.reload()
    page.click(".chat .open")
    assert len(page.locator(".answer").inner_text()) > 200


def test_a_deleted_chat_can_be_had_back_for_a_while(page: Page) -> None:
    ask(page, STORY)
    page.click(f"[aria-label='Delete chat: {STORY}']")
    assert page.locator(".turn").count() == 0
    page.click("#banner >> text=Undo")
    assert page.locator(".turn").count() == 2
    page.click(f"[aria-label='Delete chat: {STORY}']")
    page.reload()
    page.wait_for_selector("#chats .none")


def test_chats_go_to_a_file_and_come_back(page: Page, tmp_path: Path) -> None:
    answer = ask(page, STORY)
    page.click("#open-settings")
    with page.expect_download() as download:
        page.click("#export")
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    assert json.loads(file.read_text())["chats"][0]["messages"][0] == {"role": "user", "text": STORY}
    page.click("#delete-all")
    page.click("#delete-all >> text=Really delete 1 chat")
    page.wait_for_selector("#chats .none")
    page.reload()
    page.wait_for_selector("#chats .none")
    page.set_input_files("#file", file)
    page.wait_for_selector("#banner >> text=1 chat imported.")
    page.click(f".chat .open >> text={STORY}")
    assert page.locator(".answer").inner_text() == answer
    page.set_input_files("#file", file)
    page.wait_for_selector("#banner >> text=here already")
    assert page.locator(".chat").count() == 1


def _chat(**changes: Any) -> str:
    answers = [{"text": "b", "tokens": 1}]
    chat = {
        "id": "a",
        "changed": 5,
        "messages": [{"role": "user", "text": "a"}, {"role": "assistant", "answers": answers, "chosen": 0}],
    }
    return json.dumps({"format": "hearthlm-chats", "version": 1, "chats": [chat | changes]})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        '{"chats": []}',
        _chat(id=7),
        _chat(id="a b"),
        _chat(id=["a"]),
        _chat(changed="5"),
        _chat(messages=[]),
        _chat(messages={"length": 1}),
        _chat(messages=[{"role": "assistant", "answers": [{"text": "b"}], "chosen": 0}]),
        _chat(messages=[{"role": "user", "text": 5}]),
        _chat(messages=[{"role": "user", "text": "a"}, {"role": "assistant", "answers": [{"text": "b"}], "chosen": 1}]),
        _chat(messages=[{"role": "user", "text": "a"}, {"role": "assistant", "answers": [{"text": {}}], "chosen": 0}]),
        _chat(messages=[{"role": "user", "text": "a"}, {"role": "assistant", "answers": "bb", "chosen": "length"}]),
    ],
)
def test_a_file_of_something_else_changes_nothing(content: str, page: Page) -> None:
    page.set_input_files("#file", {"name": "x.json", "mimeType": "application/json", "buffer": content.encode()})
    page.wait_for_selector("#banner.alert >> text=Nothing was imported")
    assert page.locator(".chat").count() == 0


def test_what_a_file_says_stays_text(page: Page) -> None:
    harm = "<img src=x onerror=window.harmed=1>"
    answers = [{"text": harm, "model": harm, "finish": harm, "seed": harm, "tokens": harm, "onclick": harm}]
    content = _chat(messages=[{"role": "user", "text": harm}, {"role": "assistant", "answers": answers, "chosen": 0}])
    page.set_input_files("#file", {"name": "x.json", "mimeType": "application/json", "buffer": content.encode()})
    page.click(".chat .open")
    assert page.locator(".answer").inner_text() == harm
    assert page.locator("#log img, #chats img").count() == 0
    assert page.evaluate("window.harmed") is None


# Errors


def test_the_page_goes_on_when_the_server_is_back(watched: Watched, llm: hearthlm.LlmInference) -> None:
    server = Server(llm)
    page = watched.open(server)
    ask(page, STORY)
    server.stop()
    send(page, "Tell me a story about a fox.")
    page.wait_for_selector("#banner.alert >> text=The server does not answer")
    assert page.is_disabled("#send")
    assert page.locator(".said").last.inner_text() == "Tell me a story about a fox."
    server.start()
    page.click("#banner >> text=Try again", timeout=30_000)
    until(page, "document.querySelectorAll('.facts').length === 2")
    assert page.is_hidden("#banner")
    server.stop()


def test_a_busy_server_is_asked_again(watched: Watched, llm: hearthlm.LlmInference) -> None:
    server = Server(llm, max_parallel_responses=1, max_waiting_requests=0)
    other, page = watched.open(server), watched.open(server)
    never_end(other, llm)
    send(other, STORY)
    other.wait_for_selector(".answer .text")
    send(page, "Tell me a story about a fox.")
    page.wait_for_selector("#banner.alert >> text=/The server is busy. Trying again in \\d+ second/")
    other.click("#send")
    other.wait_for_selector(".facts")
    page.wait_for_selector(".facts", timeout=30_000)
    assert page.is_hidden("#banner")
    server.stop()


def test_a_chat_that_is_too_long_says_so(watched: Watched) -> None:
    options = hearthlm.LlmInferenceOptions(model_path=model_path(), max_tokens=64, num_threads=1)
    with hearthlm.LlmInference.create_from_options(options) as small:
        server = Server(small)
        page = watched.open(server)
        send(page, "boat " * 100)
        page.wait_for_selector("#banner.alert >> text=This is longer than the model can read")
        page.click("#banner >> text=New chat")
        assert page.locator(".turn").count() == 0
        assert ask(page, "Hello")
        server.stop()


def test_a_server_with_a_key_asks_for_it(watched: Watched, llm: hearthlm.LlmInference) -> None:
    server = Server(llm, api_key="open sesame")
    page = watched.open(server, is_ready=False)
    page.click("#banner >> text=Enter key")
    assert page.evaluate("document.activeElement.id") == "key"
    page.fill("#key", "wrong")
    page.keyboard.press("Tab")
    page.wait_for_selector("#banner:not([hidden])", state="attached")
    page.fill("#key", "open sesame")
    page.keyboard.press("Tab")
    page.wait_for_selector("#model:enabled")
    page.keyboard.press("Escape")
    assert ask(page, STORY)
    page.reload()
    page.wait_for_selector("#model:enabled")
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")
    server.stop()


def test_an_answer_that_breaks_off_is_kept_and_said(page: Page) -> None:
    error = {"error": {"message": "the server is stopping", "type": "server_error", "code": "server_stopping"}}
    chunk = {"choices": [{"index": 0, "delta": {"content": "Once there"}, "finish_reason": None}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: {json.dumps(error)}\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    send(page, STORY)
    page.wait_for_selector("#banner.alert >> text=The server is stopping")
    assert page.locator(".answer").inner_text() == "Once there"
    assert "broken off" in page.locator(".facts").inner_text()
    page.unroute("**/v1/chat/completions")
    page.click("#banner >> text=Try again")
    page.wait_for_selector("text=2 / 2")


def test_a_refused_request_shows_the_servers_words(page: Page) -> None:
    error = {"error": {"message": "system: this model's template <b>takes</b> no system prompt", "code": None}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json=error))
    send(page, STORY)
    page.wait_for_selector("#banner.alert >> text=System: this model's template <b>takes</b> no system prompt")


# Safety of the page itself


def test_the_policy_lets_nothing_run_but_the_pages_own_script(watched: Watched, server: Server) -> None:
    page = watched.open(server)
    page.evaluate(
        """() => {
            window.refused = [];
            document.addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
            for (const [kind, text] of [["script", "window.harmed = 1"], ["style", "body { display: none }"]]) {
                const node = document.createElement(kind);
                node.textContent = text;
                document.head.append(node);
            }
            const image = document.createElement("img");
            image.src = "https://example.invalid/pixel.png";
            image.setAttribute("onerror", "window.harmed = 1");
            document.body.append(image);
            document.querySelector("#draft").setAttribute("style", "display: none");
        }"""
    )
    until(page, "refused.length >= 5")
    assert page.evaluate("window.harmed") is None
    assert page.is_visible("#draft")
    wanted = ["img-src", "script-src-attr", "script-src-elem", "style-src-attr", "style-src-elem"]
    assert sorted(page.evaluate("refused")) == wanted
    assert [problem for problem in watched.problems if "Content Security Policy" not in problem] == []
    watched.problems.clear()


# People


def test_it_can_be_used_by_keyboard_alone(page: Page, llm: hearthlm.LlmInference) -> None:
    focused = "document.activeElement.id || document.activeElement.ariaLabel"
    assert page.evaluate(focused) == "draft"
    page.keyboard.type("Tell me a story")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("about a fox.")
    assert page.input_value("#draft") == "Tell me a story\nabout a fox."
    page.wait_for_selector("#send:enabled")
    page.keyboard.press("Enter")
    page.wait_for_selector(".facts")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == "Edit message"
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "draft"
    never_end(page, llm)
    page.keyboard.type(STORY)
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.answer')[1]?.textContent.length > 20")
    page.keyboard.press("Escape")
    page.wait_for_selector(".facts >> text=stopped")

    page.keyboard.press("Tab")  # from the box backwards and forwards, every control is reached and seen
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focused))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate(focused) in ("draft", None, ""), page.evaluate(focused)
    assert {
        "fold",
        "new",
        "model",
        "theme",
        "open-settings",
        "scroller",
        "draft",
        "Copy answer",
        "Answer again",
    } <= reached
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('dialog').id") == "settings"
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "open-settings"
    page.keyboard.press("/")
    assert page.evaluate(focused) == "draft"
    page.keyboard.press("Alt+n")
    assert page.locator(".turn").count() == 0


def test_enter_within_an_input_method_does_not_send(page: Page) -> None:
    page.fill("#draft", "こんにちは")
    page.evaluate(
        """() => {
            for (const more of [{ isComposing: true }, { keyCode: 229 }]) {
                const event = new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...more });
                document.querySelector("#draft").dispatchEvent(event);
            }
        }"""
    )
    assert page.input_value("#draft") == "こんにちは"
    assert page.locator(".turn").count() == 0


def test_a_screen_reader_hears_sentences(page: Page) -> None:
    page.evaluate(
        """() => {
            window.heard = [];
            new MutationObserver((all) => {
                for (const { addedNodes } of all) for (const node of addedNodes) heard.push(node.textContent);
            }).observe(document.querySelector("#live"), { childList: true });
        }"""
    )
    text = "Once there was a little boat on the sea. It was brave, and it sailed far. **The end** is near"
    say(page, *re.findall(r"\S+\s*", text))
    ask(page, STORY)
    assert page.evaluate("heard") == [
        "Once there was a little boat on the sea.",
        "It was brave, and it sailed far. The end is near",
    ]
    assert page.get_attribute("#log", "role") == "log"
    assert page.get_attribute("#log", "aria-live") == "off"
    assert page.get_attribute("#log", "aria-busy") == "false"


def barriers(page: Page) -> list[str]:
    """Return what axe finds, all of its rules."""
    if not AXE.exists():
        pytest.skip("axe-core is missing; `make test-web` installs it, with npm")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")
    return [
        f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 320])
def test_there_are_no_barriers(scheme: str, width: int, watched: Watched, server: Server) -> None:
    page = watched.open(server, color_scheme=scheme, viewport={"width": width, "height": 720}, reduced_motion="reduce")
    assert barriers(page) == []
    texts = [text for text, _ in MARKDOWN if not text.startswith("#")]  # which headings a model skips is its own affair
    say(page, "# A\n\n" + "\n\n".join(texts) + "\n\n```py\n" + "x" * 300 + "\n```\n")
    ask(page, STORY)
    page.click("[aria-label='Answer again']")
    page.wait_for_selector("text=2 / 2")
    assert barriers(page) == []
    page.set_input_files("#file", {"name": "x.json", "mimeType": "application/json", "buffer": b"no"})
    page.wait_for_selector("#banner.alert")
    assert barriers(page) == []
    page.locator(".user").last.hover()
    page.click("[aria-label='Edit message']")
    assert barriers(page) == []
    page.click("#open-settings")
    page.fill("#temperature", "9")
    assert barriers(page) == []
    page.keyboard.press("Escape")
    page.click("#model")
    assert barriers(page) == []
    page.keyboard.press("Escape")
    if width == 320:
        page.click("#unfold")
        assert barriers(page) == []


def test_nothing_is_wider_than_a_narrow_screen(watched: Watched, server: Server) -> None:
    page = watched.open(server, viewport={"width": 320, "height": 568}, has_touch=True, is_mobile=True)

    def overhang() -> list[int]:
        return [
            page.evaluate(
                f"document.querySelector('{name}').scrollWidth - document.querySelector('{name}').clientWidth"
            )
            for name in ("html", "body", "#scroller", "#settings", "#facts", "#side")
        ]

    assert page.is_visible("#hello") and page.evaluate("document.querySelector('#scroller').scrollTop") == 0
    assert overhang() == [0] * 6
    wide = "| " + " | ".join(["column"] * 12) + " |"
    long = [f"{'x' * 300}", f"https://a.example/{'y' * 200}", f"```\n{'z' * 300}\n```"]
    say(page, "\n\n".join([*long, f"{wide}\n{wide.replace('column', '---')}\n{wide}"]))
    ask(page, "w" * 200)
    assert overhang() == [0] * 6
    page.click("#unfold")
    assert page.evaluate("document.activeElement.id") == "fold"
    assert page.evaluate("document.querySelector('main').inert")
    assert overhang() == [0] * 6
    page.click("#veil", position={"x": 310, "y": 300})
    assert page.is_hidden("#side")
    for name in ("#open-settings", "#model"):
        page.click(name)
        assert overhang() == [0] * 6
        page.keyboard.press("Escape")


def test_it_is_dark_where_the_system_is_until_told_otherwise(watched: Watched, server: Server) -> None:
    page = watched.open(server, color_scheme="dark")

    def lightness() -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(value) for value in re.findall(r"\d+", colour)[:3]) // 3

    assert lightness() < 50
    page.click("[aria-label='Use light colours']")
    assert lightness() > 220
    page.reload()
    page.wait_for_selector("[aria-label='Use dark colours']")
    assert lightness() > 220


def test_it_holds_still_where_motion_is_unwelcome(watched: Watched, server: Server, llm: hearthlm.LlmInference) -> None:
    page = watched.open(server, reduced_motion="reduce")
    page.route("**/v1/chat/completions", lambda route: None)  # an answer that does not begin
    send(page, STORY)
    page.wait_for_selector(".waiting")
    assert page.evaluate("document.getAnimations().length") == 0
