"""The chat page: one file of the package, with a policy that lets nothing run but its own script and style."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from starlette.responses import Response

_ELEMENT = re.compile(rb"<(script|style)(?:\s[^>]*)?>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)


def page_response(folder: str = "hearthlm.server") -> Response | None:
    """Return the page with its headers, None where the package has none."""
    file = resources.files(folder).joinpath("page.html")
    if not file.is_file():
        return None
    page = file.read_bytes()
    headers = {
        "Content-Security-Policy": content_security_policy(page),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)


def content_security_policy(page: bytes) -> str:
    """Return the policy of a page whose scripts and styles are all in it: each is named by its hash."""
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for kind, text in _ELEMENT.findall(page):
        digest = base64.b64encode(hashlib.sha256(text.replace(b"\r\n", b"\n")).digest()).decode()
        hashes[kind.lower()].append(f"'sha256-{digest}'")
    return "; ".join(
        [
            "default-src 'none'",
            "connect-src 'self'",
            "script-src " + (" ".join(hashes[b"script"]) or "'none'"),
            "style-src " + (" ".join(hashes[b"style"]) or "'none'"),
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
