"""The block layout of matrices in MediaPipe's GPU files, to and from rows.

Element (o, i) of a matrix [out, in] lies at `((i // 4) * (out / 4) + o // 4) * 16 + (i % 4) * 4 + o % 4`: an array
[in / 4][out / 4][i % 4][o % 4]. An int8 byte is q XOR 0x80, an int4 nibble q + 8, the even position in the low one.

A block is a 4 x 4 transpose of what its four rows hold, and transposing it in registers leaves whole words to be
moved: for int8 a uint32 (four bytes of one row), for int4 a uint16 (four nibbles of one row).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PANEL_BLOCKS = 256  # with 256 rows a panel stays in the cache while it is transposed
_PANEL_ROWS = 256
_CHUNK_BYTES = 1 << 23
_STRIPE_BYTES = 1 << 26


def rows_from_blocks(
    blocks: NDArray[Any], shape: tuple[int, int], on_read: Callable[[int, int], None] | None = None
) -> NDArray[Any]:
    """Return the rows of a matrix `shape` = (out, in), both multiples of 4, from its blocks.

    `blocks` is flat: int8 gives int8 [out, in]; uint8 (two int4 a byte) gives uint8 [out, in / 2]; float16 and float32
    give the same type [out, in]. Beside the result it needs a few MiB. `on_read(first, last)` is told, for every 64 MiB
    or so, which bytes of `blocks` are done with.
    """
    rows, columns = shape
    if blocks.dtype.kind == "f":
        return blocks.reshape(columns // 4, rows // 4, 4, 4).transpose(1, 3, 0, 2).reshape(shape)
    is_int8 = blocks.dtype == np.int8
    word = np.uint32 if is_int8 else np.uint16
    words_per_block = 2 if is_int8 else 1
    source = blocks.view(np.uint64).reshape(columns // 4, rows // 4, words_per_block)
    result = np.empty((rows, columns // 4), word)
    row_bytes = 8 * words_per_block * (rows // 4)  # of four columns
    stripe = max(32, min(_PANEL_BLOCKS, _STRIPE_BYTES // row_bytes))
    for first in range(0, columns // 4, stripe):
        last = min(first + stripe, columns // 4)
        for first_row in range(0, rows, _PANEL_ROWS):
            last_row = min(first_row + _PANEL_ROWS, rows)
            panel = np.array(source[first:last, first_row // 4 : last_row // 4])
            _transpose_blocks(panel)
            result[first_row:last_row, first:last] = panel.view(word).reshape(last - first, last_row - first_row).T
        if on_read is not None:
            on_read(first * row_bytes, last * row_bytes)
    return result.view(blocks.dtype)


def blocks_from_rows(rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield, piece by piece, the flat blocks of a matrix whose rows are given as `rows_from_blocks` returns them."""
    if rows.dtype.kind == "f":
        out, columns = rows.shape
        yield rows.reshape(out // 4, 4, columns // 4, 4).transpose(2, 0, 3, 1).ravel()
        return
    words = rows.view(np.uint32 if rows.dtype == np.int8 else np.uint16)
    out, blocks = words.shape
    step = max(1, _CHUNK_BYTES // (out * words.itemsize))
    for first in range(0, blocks, step):
        columns = words[:, first : first + step]
        moved = np.empty((columns.shape[1], out), words.dtype)
        for row in range(0, out, _PANEL_ROWS):
            moved[:, row : row + _PANEL_ROWS] = columns[row : row + _PANEL_ROWS].T
        panel = moved.view(np.uint64).reshape(len(moved), out // 4, -1)
        _transpose_blocks(panel)
        yield panel.ravel().view(rows.dtype)


def _transpose_blocks(panel: NDArray[np.uint64]) -> None:
    """Transpose every 4 x 4 block in place: bytes in `panel` [..., 2], whose sign bit flips, or nibbles in [..., 1]."""
    if panel.shape[-1] == 1:
        _swap_bits(panel, 12, 0x0000F0F00000F0F0)
        _swap_bits(panel, 24, 0x00000000FF00FF00)
        return
    panel ^= np.uint64(0x8080808080808080)
    _swap_bits(panel, 24, 0x000000000000FF00 | 0x00000000FF000000)
    upper, lower = panel[..., 0], panel[..., 1]
    swapped = (upper >> np.uint64(16) ^ lower) & np.uint64(0x0000FFFF0000FFFF)
    lower ^= swapped
    swapped <<= np.uint64(16)
    upper ^= swapped


def _swap_bits(words: NDArray[np.uint64], distance: int, mask: int) -> None:
    """Exchange the bits of `mask` with those `distance` higher, in every word."""
    swapped = words >> np.uint64(distance)
    swapped ^= words
    swapped &= np.uint64(mask)
    words ^= swapped
    swapped <<= np.uint64(distance)
    words ^= swapped
