"""What an operator decides about a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class ServerOptions:
    """Say whom a server answers, and how much it takes on.

    `address` is where it listens; one that other machines reach needs an `api_key`. `allowed_hosts` are names that a
    request's Host may give beside localhost and IP addresses of the kind of `address`; `allowed_origins` are web pages,
    such as "https://chat.example", that may read answers (CORS). Up to `max_parallel_responses` of each model are
    decoded together, up to `max_waiting_requests` wait for that, and whoever comes then is told to come later (429).
    `read_timeout_s` is how long a request may take to arrive, `write_timeout_s` how long a client may take nothing,
    `grace_s` how long answers may still go on once the server is told to stop. Raises ValueError, by name, for what is
    out of range.
    """

    address: str = "127.0.0.1"
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_parallel_responses: int = 8
    max_waiting_requests: int = 64
    max_connections: int = 1024
    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 16 << 10
    read_timeout_s: float = 30.0
    write_timeout_s: float = 60.0
    grace_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("max_parallel_responses", "max_connections", "max_body_bytes", "max_header_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.max_waiting_requests < 0:
            raise ValueError(f"max_waiting_requests: expected at least 0, got {self.max_waiting_requests}")
        for name in ("read_timeout_s", "write_timeout_s", "grace_s"):
            if not 0 < getattr(self, name) < 86_400:
                raise ValueError(f"{name}: expected seconds above 0 and below a day, got {getattr(self, name)}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError("api_key: expected printable ASCII characters")
        if not self.is_loopback and self.api_key is None:
            raise ValueError(
                f"address: {self.address} can be reached from other machines, and there is no API key: set one, or "
                "listen on 127.0.0.1"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.address == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.address.strip("[]")).is_loopback
        except ValueError:
            return False
