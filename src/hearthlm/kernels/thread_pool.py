"""The threads that kernels share their work among."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hearthlm.kernels import _native
else:
    try:
        from hearthlm.kernels import _native
    except ImportError:  # `hearthlm.kernels` says so
        _native = None


class ThreadPool:
    """Own `num_threads` - 1 workers; the caller of a kernel is the remaining one.

    Workers start with the first call that has enough to share, spin briefly after each call and then sleep. Calls from
    several threads take turns. After `close` the caller works alone.
    """

    __slots__ = ("native", "num_threads")

    def __init__(self, num_threads: int) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads: expected at least 1, got {num_threads}")
        self.num_threads = num_threads
        self.native = None if _native is None else _native.ThreadPool(num_threads)

    def close(self) -> None:
        """End the workers; may be called twice."""
        if self.native is not None:
            self.native.close()

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
