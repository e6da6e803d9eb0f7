"""The attributes of a composite operator: a flexbuffer that holds one map of names to numbers.

Format: https://flatbuffers.dev/flexbuffers/. It is read from its end: the width of the root, its type, its value, which
for a map is the distance back to its values. Before those lie their number, the width of the keys and the distance to
them; after them one type for each.
"""

from __future__ import annotations

import struct

from hearthlm.errors import CorruptFileError, UnsupportedModelError

MAX_BYTES = 4096
MAX_ENTRIES = 64

_MAP, _KEY_VECTOR_WIDTHS = 9, (1, 2, 4, 8)
_NUMBERS = {1: "bhiq", 2: "BHIQ", 3: " efd", 26: "BHIQ"}  # signed, unsigned, float and truth, by the width's logarithm


def read_attributes(data: bytes | memoryview, where: str) -> dict[str, int | float | bool]:
    """Return the map in `data`; `where` begins every error.

    Raises CorruptFileError for bytes that contradict the format, UnsupportedModelError for values that are no numbers.
    """
    data = bytes(data[: MAX_BYTES + 1])
    if not 3 <= len(data) <= MAX_BYTES:
        raise CorruptFileError(f"{where}: expected 3 to {MAX_BYTES} bytes, got {len(data)}")

    def unsigned(position: int, width: int) -> int:
        if position < 0 or position + width > len(data):
            raise CorruptFileError(f"{where}: offset {position} lies outside of {len(data)} bytes")
        return int.from_bytes(data[position : position + width], "little")

    root_width, packed = data[-1], data[-2]
    if root_width not in _KEY_VECTOR_WIDTHS or packed >> 2 != _MAP:
        raise UnsupportedModelError(f"{where}: expected a map, got type {packed >> 2} of width {root_width}")
    root = len(data) - 2 - root_width
    width, values = 1 << (packed & 3), root - unsigned(root, root_width)
    count = unsigned(values - width, width)
    keys_width = unsigned(values - 2 * width, width)
    if count > MAX_ENTRIES or keys_width not in _KEY_VECTOR_WIDTHS:
        raise CorruptFileError(f"{where}: expected at most {MAX_ENTRIES} entries, got {count} of width {keys_width}")
    at = values - 3 * width
    keys = at - unsigned(at, width)
    if unsigned(keys - keys_width, keys_width) != count:
        raise CorruptFileError(f"{where}: there are {count} values, but not as many names")
    attributes: dict[str, int | float | bool] = {}
    for i in range(count):
        at = keys + i * keys_width
        begin = at - unsigned(at, keys_width)
        unsigned(begin, 1)
        if (end := data.find(b"\0", begin)) < 0:
            raise CorruptFileError(f"{where}: a name does not end")
        name = data[begin:end].decode("utf-8", "replace")
        kind = unsigned(values + count * width + i, 1)
        layout = _NUMBERS.get(kind >> 2, "    ")[width.bit_length() - 1]
        if layout == " ":
            raise UnsupportedModelError(f"{where}: {name[:80]!r}: expected a number, got type {kind >> 2}")
        unsigned(values + i * width, width)
        (value,) = struct.unpack_from(f"<{layout}", data, values + i * width)
        attributes[name] = bool(value) if kind >> 2 == 26 else value
    return attributes
