"""Serve models over HTTP in the form of OpenAI's API: `create_app` makes an ASGI app, `serve` runs it.

Needs `pip install "hearthlm[server]"`.
"""

from __future__ import annotations

try:
    import msgspec as _msgspec  # noqa: F401
    import starlette as _starlette  # noqa: F401
except ImportError as error:
    raise ImportError(f'the server needs {error.name}: pip install "hearthlm[server]"') from error

from hearthlm.server.app import create_app
from hearthlm.server.options import ServerOptions
from hearthlm.server.served_model import ServedModel

__all__ = ["ServedModel", "ServerOptions", "create_app"]
