"""What the handlers of one server share: its models, its options, what is running, and what it has counted."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import HTTPConnection

import hearthlm
from hearthlm.server.admission import Ticket
from hearthlm.server.jobs import Item, Running, ServerStopping
from hearthlm.server.metrics import Metrics
from hearthlm.server.options import ServerOptions
from hearthlm.server.served_model import ModelTable, Target


class Service:
    """Hold the state of one server; it belongs to one event loop."""

    def __init__(self, models: ModelTable, options: ServerOptions) -> None:
        self.models = models
        self.options = options
        self.running = Running()
        self.metrics = Metrics()

    @classmethod
    def of(cls, connection: HTTPConnection) -> Service:
        service = connection.app.state.service
        assert isinstance(service, Service)
        return service

    def enter(self, target: Target, num_responses: int) -> Ticket:
        """Take a place in a model's line; raises ApiError where it is full, or the server is about to stop."""
        if self.running.is_draining:
            raise ServerStopping
        return target.admission.enter(num_responses)

    async def counted(
        self, target: Target, items: AsyncGenerator[Item, None], ticket: Ticket
    ) -> AsyncGenerator[Item, None]:
        """Pass items on, and count what they took."""
        num_tokens = 0
        try:
            async with contextlib.aclosing(items):
                async for item in items:
                    step = item[1]
                    if isinstance(step, hearthlm.GenerationResult):
                        self.metrics.count_result(target.id, step, ticket.waited_s)
                    else:
                        num_tokens += len(step.token_ids)
                    yield item
        finally:
            self.metrics.count_tokens(target.id, num_tokens)
