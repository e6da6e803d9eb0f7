"""Who may work at once, who waits in line, and who is told to come back later."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from hearthlm.server.errors import ApiError


class Admission:
    """Give a model's slots, one for each response that is decoded, to requests in the order of their coming.

    It belongs to one event loop.
    """

    def __init__(self, num_slots: int, max_waiting: int) -> None:
        self.num_slots = num_slots
        self._max_waiting = max_waiting
        self._num_free = num_slots
        self._line: deque[Ticket] = deque()
        self._mean_s = 1.0  # that a request holds its slots, the latest counting most

    @property
    def num_busy(self) -> int:
        return self.num_slots - self._num_free

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    def enter(self, num_responses: int) -> Ticket:
        """Take a place in line; raises ApiError (429) where the line is full."""
        ticket = Ticket(self, min(num_responses, self.num_slots))
        if not self._line and ticket.num_slots <= self._num_free:
            self._admit(ticket)
        elif len(self._line) >= self._max_waiting:
            after_s = min(60, max(1, round(self._mean_s * (1 + len(self._line) / self.num_slots))))
            raise ApiError(
                429,
                f"{self.num_busy} answers are being made and {len(self._line)} requests wait: try again in {after_s} s",
                code="queue_full",
                headers={"Retry-After": str(after_s)},
            )
        else:
            self._line.append(ticket)
        return ticket

    def _admit(self, ticket: Ticket) -> None:
        self._num_free -= ticket.num_slots
        ticket.admitted_at = time.monotonic()
        ticket.admitted.set()

    def _leave(self, ticket: Ticket) -> None:
        if ticket.admitted_at is None:
            self._line.remove(ticket)
        else:
            self._num_free += ticket.num_slots
            self._mean_s += 0.2 * (time.monotonic() - ticket.admitted_at - self._mean_s)
        while self._line and self._line[0].num_slots <= self._num_free:
            self._admit(self._line.popleft())


class Ticket:
    """Stand for one request; `leave` gives back what it has, its place in line or its slots."""

    def __init__(self, admission: Admission, num_slots: int) -> None:
        self._admission = admission
        self.num_slots = num_slots
        self.entered_at = time.monotonic()
        self.admitted_at: float | None = None
        self.admitted = asyncio.Event()
        self._has_left = False

    @property
    def waited_s(self) -> float:
        return (self.admitted_at or time.monotonic()) - self.entered_at

    def leave(self) -> None:
        if not self._has_left:
            self._has_left = True
            self._admission._leave(self)
