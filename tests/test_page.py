"""What the file of the chat page may hold, and the policy it is sent with; test_chat_page.py tries it in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from hearthlm.server.page import page_response

PAGE = resources.files("hearthlm.server").joinpath("page.html").read_text(encoding="utf-8")


def element(name: str) -> str:
    """Return what is in the only element of a name."""
    (text,) = re.findall(rf"<{name}\b[^>]*>(.*?)</{name}>", PAGE, re.DOTALL)
    return str(text)


def test_it_is_small() -> None:
    assert len(PAGE.encode()) < 60_000


def test_it_names_no_address_of_anything_to_load() -> None:
    addresses = set(re.findall(r"\bhttps?://[\w.]+[^\s'\"`)]*", PAGE))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a language, which nobody asks for
    assert not re.search(r"\b(?:src|srcset|action|poster)=|@import|url\(|\bimport[ (]|sendBeacon|WebSocket", PAGE)


def test_nothing_but_its_script_and_style_could_run() -> None:
    markup = PAGE.replace(element("script"), "").replace(element("style"), "")
    assert not re.search(r"<[^>]*\s(?:on\w+|style)=", markup)
    assert '<script type="module">' in markup and markup.count("<style>") == 1


def test_its_script_makes_no_markup_of_strings() -> None:
    makers = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|srcdoc"
    assert not re.search(
        rf"{makers}|\beval\(|\bFunction\(|set(?:Timeout|Interval)\([\"'`]|javascript:", element("script")
    )


def test_the_policy_names_its_script_and_its_style() -> None:
    response = page_response()
    assert response is not None
    assert response.body == PAGE.encode()
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(element(name).encode()).digest()).decode()
        assert policy[f"{name}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]
