"""The operators of LiteRT that a language model is made of: what each may be given, and what comes out.

Numbers and options: tensorflow/compiler/mlir/lite/schema/schema.fbs. Each rule says which types and shapes are
understood and returns those of the outputs, as LiteRT's kernel computes them; whoever checks a file compares them with
the ones that the file declares. Shapes are known before anything runs: whatever decides about one is a constant, and
there are no loops, no branches and no custom operators.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any, NoReturn

from hearthlm.errors import CorruptFileError, UnsupportedModelError
from hearthlm.formats.flatbuffer import Table

TYPE_NAMES = (
    "FLOAT32", "FLOAT16", "INT32", "UINT8", "INT64", "STRING", "BOOL", "INT16", "COMPLEX64", "INT8",
    "FLOAT64", "COMPLEX128", "UINT64", "RESOURCE", "VARIANT", "UINT32", "UINT16", "INT4", "BFLOAT16", "INT2", "UINT4",
    "FLOAT8_E4M3FN", "FLOAT8_E5M2",
)  # fmt: skip
FLOAT32, FLOAT16, INT32, UINT8, INT64, BOOL, INT16, INT8, INT4 = 0, 1, 2, 3, 4, 6, 7, 9, 17
BITS: Mapping[int, int] = {
    FLOAT32: 32, FLOAT16: 16, INT32: 32, UINT8: 8, INT64: 64, BOOL: 8, INT16: 16, INT8: 8, INT4: 4
}  # fmt: skip

MAX_RANK = 5  # of what operators read and write; some kernels take no more
MAX_ELEMENTS = 2**31 - 1  # of a tensor: kernels count in 32 bits
COMPOSITE = 206
# What exporters give a name, so that a delegate may compute it in one step; each brings the graph that says the same.
KNOWN_COMPOSITES = frozenset(
    f"odml.{name}"
    for name in (
        "rms_norm", "layer_norm", "group_norm", "scaled_dot_product_attention", "update_kv_cache",
        "update_external_kv_cache", "cache_update", "runtime_bmm",
    )
)  # fmt: skip

Shape = tuple[int, ...]
Result = Sequence[tuple[int, Shape]]  # type and shape of each output


@dataclass(frozen=True, slots=True)
class Quantization:
    """Say how the integers of a tensor are read: one scale, one for each index of `axis`, or one for each block."""

    num_scales: int
    axis: int
    zero_points_are_zero: bool
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Say what a tensor is; `data` are the bytes of a constant, None for what is computed or put in."""

    type: int
    shape: Shape
    data: memoryview | None = None
    quantization: Quantization | None = None

    @property
    def is_constant(self) -> bool:
        return self.data is not None

    @property
    def num_bytes(self) -> int:
        return tensor_bytes(self.type, self.shape)

    def __str__(self) -> str:
        return f"{type_name(self.type)}{list(self.shape)}"


def tensor_bytes(kind: int, shape: Shape) -> int:
    """Return how many bytes a tensor of this type and shape takes."""
    return (math.prod(shape) * BITS[kind] + 7) // 8


def type_name(number: int) -> str:
    """Return what the schema calls a type."""
    return TYPE_NAMES[number] if 0 <= number < len(TYPE_NAMES) else f"TYPE_{number}"


@dataclass(frozen=True, slots=True)
class Call:
    """One operator of a graph, as a rule sees it; `where` begins every error."""

    where: str
    inputs: Sequence[TensorInfo | None]
    outputs: Sequence[TensorInfo]
    options: Mapping[str, Any]

    def refuse(self, text: str) -> NoReturn:
        """Raise for what contradicts itself."""
        raise CorruptFileError(f"{self.where}: {text}")

    def unsupported(self, text: str) -> NoReturn:
        """Raise for what may be sound, and is not understood."""
        raise UnsupportedModelError(f"{self.where}: {text}")

    def input(self, index: int, *types: int, min_rank: int = 0, max_rank: int = MAX_RANK) -> TensorInfo:
        """Return an input that must be there, of one of `types`."""
        found = self.inputs[index]
        if found is None:
            self.refuse(f"input {index} is left out")
        if found.type not in types:
            self.unsupported(f"input {index}: expected {' or '.join(map(type_name, types))}, got {found}")
        if not min_rank <= len(found.shape) <= max_rank:
            self.unsupported(f"input {index}: expected {min_rank} to {max_rank} dimensions, got {found}")
        return found

    def constants(self, index: int, *, like: Sequence[int] = (INT32, INT64), count: int | None = None) -> Shape:
        """Return the integers of an input that decides about shapes: a constant vector, or a single number."""
        found = self.input(index, *like, max_rank=1)
        if found.data is None:
            self.unsupported(f"input {index}: expected a constant, since it decides about the shape")
        numbers = math.prod(found.shape)
        if numbers > 64 or (count is not None and numbers != count):
            self.refuse(f"input {index}: expected {'at most 64' if count is None else count} numbers, got {found}")
        return struct.unpack_from(f"<{numbers}{'i' if found.type == INT32 else 'q'}", found.data)

    def axis(self, value: int, rank: int, what: str = "axis") -> int:
        """Return an axis counted from 0; a negative one counts from the end."""
        if not -rank <= value < rank:
            self.refuse(f"{what}: expected {-rank} to {rank - 1}, got {value}")
        return value % rank

    def same_type(self, *tensors: TensorInfo) -> int:
        for a, b in pairwise(tensors):
            if a.type != b.type:
                self.refuse(f"expected inputs of one type, got {a} and {b}")
        return tensors[0].type

    def broadcast(self, *shapes: Shape) -> Shape:
        """Return the shape of an operator on each element, in which a dimension of 1 is repeated."""
        found = []
        for sizes in zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1):
            size = max(sizes)
            if any(s not in (1, size) for s in sizes):
                self.refuse(f"the shapes {', '.join(str(list(s)) for s in shapes)} do not fit together")
            found.append(size)
        return tuple(reversed(found))


Rule = Callable[[Call], Result]


@dataclass(frozen=True, slots=True)
class Operator:
    """Say what an operator takes.

    `options` is the number of its options in the union BuiltinOptions, 0 where it has none, and `fields` are theirs:
    name and layout by index, "[" for a vector of int32. Inputs from `min_inputs` to `max_inputs`.
    """

    name: str
    rule: Rule
    min_inputs: int
    max_inputs: int
    num_outputs: int | None = 1  # None: the rule decides
    options: int = 0
    fields: Sequence[tuple[str, str]] = ()


_NUMBERS = (FLOAT32, INT32, INT64)
_MOVED = (FLOAT32, FLOAT16, INT32, INT64, INT16, INT8, UINT8, BOOL)  # by operators that only move bytes
_INDEX = (INT32, INT64)
_ACTIVATIONS = (0, 1, 2, 3)  # none, relu, relu from -1 to 1, relu6


def _unary(*types: int) -> Rule:
    def rule(call: Call) -> Result:
        x = call.input(0, *types)
        return [(x.type, x.shape)]

    return rule


def _binary(*types: int, result: int | None = None) -> Rule:
    def rule(call: Call) -> Result:
        a, b = call.input(0, *types), call.input(1, *types)
        kind = call.same_type(a, b)
        if (activation := call.options.get("activation", 0)) not in _ACTIVATIONS:
            call.unsupported(f"fused activation {activation}: expected one of {_ACTIVATIONS}")
        if activation and kind != FLOAT32:
            call.unsupported(f"a fused activation on {type_name(kind)}")
        return [(kind if result is None else result, call.broadcast(a.shape, b.shape))]

    return rule


def _reduction(*types: int) -> Rule:
    def rule(call: Call) -> Result:
        x = call.input(0, *types, min_rank=1)
        axes = [call.axis(value, len(x.shape)) for value in call.constants(1, like=(INT32,))]
        if len(set(axes)) != len(axes) or not axes:
            call.refuse(f"expected different axes, got {axes}")
        if call.options.get("keep_dims"):
            return [(x.type, tuple(1 if i in axes else size for i, size in enumerate(x.shape)))]
        return [(x.type, tuple(size for i, size in enumerate(x.shape) if i not in axes))]

    return rule


def _fully_connected(call: Call) -> Result:
    x = call.input(0, FLOAT32, min_rank=1)
    weights = call.input(1, FLOAT32, INT8, INT4, min_rank=2, max_rank=2)
    out, columns = weights.shape
    bias = call.inputs[2] if len(call.inputs) > 2 else None
    if bias is not None and (bias.type != FLOAT32 or bias.shape != (out,)):
        call.refuse(f"bias: expected FLOAT32[{out}], got {bias}")
    if call.options.get("weights_format"):
        call.unsupported("weights_format: expected 0")
    if (activation := call.options.get("activation", 0)) not in _ACTIVATIONS:
        call.unsupported(f"fused activation {activation}: expected one of {_ACTIVATIONS}")
    if call.options.get("quantized_bias_type", 0) not in (FLOAT32, INT32):
        call.unsupported("quantized_bias_type: expected FLOAT32 or INT32")
    if weights.type != FLOAT32:
        _check_quantized_rows(call, weights)
    keep = call.options.get("keep_num_dims")
    if keep and x.shape[-1] != columns:
        call.refuse(f"a matrix of {columns} columns does not fit {x}")
    if math.prod(x.shape) % columns:
        call.refuse(f"a matrix of {columns} columns does not fit {x}")
    return [(FLOAT32, (*x.shape[:-1], out) if keep else (math.prod(x.shape) // columns, out))]


def _check_quantized_rows(call: Call, weights: TensorInfo) -> None:
    """Refuse weights whose scales kernels do not read: one for the matrix, for each row, or for each block of one."""
    found = weights.quantization
    if not weights.is_constant:
        call.unsupported(f"quantised weights that are no constant: {weights}")
    if found is None:
        call.refuse(f"the weights {weights} have no scales")
    if not found.zero_points_are_zero:
        call.unsupported(f"the weights {weights} have zero points other than 0")
    if found.num_scales > 1 and found.axis != 0:
        call.unsupported(f"the scales of {weights} belong to axis {found.axis}, expected 0")
    if weights.type == INT4 and weights.shape[-1] % 2:
        call.unsupported(f"expected rows of an even number of values, got {weights}")
    if found.block_size and weights.type != INT4:
        call.unsupported(f"blocks of scales on {weights}: expected INT4")


def _embedding_lookup(call: Call) -> Result:
    ids = call.input(0, INT32, min_rank=1, max_rank=1)
    table = call.input(1, FLOAT32, INT8, INT4, min_rank=2, max_rank=2)
    if table.type != FLOAT32:
        _check_quantized_rows(call, table)
    return [(FLOAT32, (*ids.shape, *table.shape[1:]))]


def _batch_matmul(call: Call) -> Result:
    a, b = call.input(0, FLOAT32, min_rank=2), call.input(1, FLOAT32, min_rank=2)
    rows, inner = a.shape[-2:][::-1] if call.options.get("adj_x") else a.shape[-2:]
    other, columns = b.shape[-2:][::-1] if call.options.get("adj_y") else b.shape[-2:]
    if inner != other:
        call.refuse(f"{a} and {b} cannot be multiplied")
    return [(FLOAT32, (*call.broadcast(a.shape[:-2], b.shape[:-2]), rows, columns))]


def _softmax(call: Call) -> Result:
    x = call.input(0, FLOAT32, min_rank=1, max_rank=4)
    if not 0 < call.options.get("beta", 0.0) < math.inf:
        call.refuse(f"beta: expected a positive number, got {call.options.get('beta', 0.0)}")
    return [(x.type, x.shape)]


def _concatenation(call: Call) -> Result:
    tensors = [call.input(i, *_MOVED, min_rank=1) for i in range(len(call.inputs))]
    kind, first = call.same_type(*tensors), tensors[0].shape
    axis = call.axis(call.options.get("axis", 0), len(first))
    if call.options.get("activation", 0):
        call.unsupported("a fused activation")
    for tensor in tensors:
        if len(tensor.shape) != len(first) or any(
            a != b for i, (a, b) in enumerate(zip(tensor.shape, first, strict=True)) if i != axis
        ):
            call.refuse(f"{tensor} cannot be put beside {tensors[0]} along axis {axis}")
    return [(kind, (*first[:axis], sum(t.shape[axis] for t in tensors), *first[axis + 1 :]))]


def _pack(call: Call) -> Result:
    tensors = [call.input(i, *_MOVED, max_rank=MAX_RANK - 1) for i in range(len(call.inputs))]
    kind, shape = call.same_type(*tensors), tensors[0].shape
    if call.options.get("count", 0) != len(tensors) or any(t.shape != shape for t in tensors):
        call.refuse(f"expected {call.options.get('count', 0)} inputs of one shape, got {', '.join(map(str, tensors))}")
    axis = call.axis(call.options.get("axis", 0), len(shape) + 1)
    return [(kind, (*shape[:axis], len(tensors), *shape[axis:]))]


def _unpack(call: Call) -> Result:
    x = call.input(0, *_MOVED, min_rank=1)
    axis = call.axis(call.options.get("axis", 0), len(x.shape))
    if call.options.get("count", 0) != x.shape[axis]:
        call.refuse(f"count: expected {x.shape[axis]}, got {call.options.get('count', 0)}")
    return [(x.type, x.shape[:axis] + x.shape[axis + 1 :])] * x.shape[axis]


def _pad(call: Call) -> Result:
    x = call.input(0, FLOAT32, INT32, INT64, INT8, UINT8, BOOL, min_rank=1)
    padding = call.input(1, *_INDEX, min_rank=2, max_rank=2)
    if padding.shape != (len(x.shape), 2) or padding.data is None:
        call.unsupported(f"input 1: expected a constant of shape [{len(x.shape)}, 2], got {padding}")
    count = 2 * len(x.shape)
    numbers = struct.unpack_from(f"<{count}{'i' if padding.type == INT32 else 'q'}", padding.data)
    if not all(0 <= n <= MAX_ELEMENTS for n in numbers):
        call.refuse(f"input 1: expected paddings from 0, got {list(numbers)}")
    if len(call.inputs) > 2:
        value = call.input(2, x.type)
        if math.prod(value.shape) != 1:
            call.refuse(f"input 2: expected one number, got {value}")
    return [(x.type, tuple(n + numbers[2 * i] + numbers[2 * i + 1] for i, n in enumerate(x.shape)))]


def _slice(call: Call) -> Result:
    x = call.input(0, *_MOVED, min_rank=1)
    begin = call.constants(1, count=len(x.shape))
    size = call.constants(2, count=len(x.shape))
    found = []
    for b, s, whole in zip(begin, size, x.shape, strict=True):
        length = whole - b if s == -1 else s
        if not 0 <= b < whole or not 0 < length <= whole - b:
            call.refuse(f"from {list(begin)}, {list(size)} lies outside of {x}")
        found.append(length)
    return [(x.type, tuple(found))]


def _strided_slice(call: Call) -> Result:
    x = call.input(0, *_MOVED, min_rank=1)
    rank = len(x.shape)
    begin, end, strides = (call.constants(i, like=(INT32,), count=rank) for i in (1, 2, 3))
    masks = {name: call.options.get(name, 0) for name in ("begin", "end", "ellipsis", "new_axis", "shrink")}
    if masks["ellipsis"] or masks["new_axis"] or call.options.get("offset"):
        call.unsupported("expected no ellipsis, new axes or offsets")
    if any(not 0 <= mask < 1 << rank for mask in masks.values()):
        call.refuse(f"masks: expected bits for {rank} dimensions, got {masks}")
    found = []
    for i, whole in enumerate(x.shape):
        if strides[i] < 1:
            call.unsupported(f"strides: expected positive ones, got {list(strides)}")
        first = 0 if masks["begin"] >> i & 1 else begin[i]
        last = whole if masks["end"] >> i & 1 else end[i]
        first, last = (n + whole if n < 0 else n for n in (first, last))
        if masks["shrink"] >> i & 1:
            if not 0 <= first < whole or strides[i] != 1:
                call.refuse(f"index {first} lies outside of {x}")
            continue
        if not 0 <= first < last <= whole:
            call.refuse(f"from {first} to {last} lies outside of axis {i} of {x}")
        found.append(-(-(last - first) // strides[i]))
    return [(x.type, tuple(found))]


def _gather(call: Call) -> Result:
    x = call.input(0, FLOAT32, INT32, INT64, INT8, BOOL, min_rank=1)
    indices = call.input(1, *_INDEX)
    axis = call.axis(call.options.get("axis", 0), len(x.shape))
    if call.options.get("batch_dims", 0):
        call.unsupported("batch_dims: expected 0")
    return [(x.type, x.shape[:axis] + indices.shape + x.shape[axis + 1 :])]


def _gather_nd(call: Call) -> Result:
    x = call.input(0, FLOAT32, INT32, INT64, INT8, BOOL, min_rank=1)
    indices = call.input(1, *_INDEX, min_rank=1)
    depth = indices.shape[-1]
    if depth > len(x.shape):
        call.refuse(f"{depth} indices do not fit {x}")
    return [(x.type, indices.shape[:-1] + x.shape[depth:])]


_CAST = (FLOAT32, FLOAT16, INT32, INT64, INT16, INT8, UINT8, BOOL)


def _cast(call: Call) -> Result:
    x = call.input(0, *_CAST)
    target = call.outputs[0].type
    if target not in _CAST:
        call.unsupported(f"a cast to {type_name(target)}")
    return [(target, x.shape)]


def _broadcast_to(call: Call) -> Result:
    x = call.input(0, FLOAT32, INT32, INT64, INT8, BOOL)
    shape = call.constants(1)
    if len(shape) < len(x.shape) or min(shape, default=1) < 1 or call.broadcast(x.shape, shape) != shape:
        call.refuse(f"{x} cannot be repeated to {list(shape)}")
    return [(x.type, shape)]


def _tile(call: Call) -> Result:
    x = call.input(0, FLOAT32, INT32, INT64, INT8, BOOL, min_rank=1)
    times = call.constants(1, count=len(x.shape))
    if min(times) < 1:
        call.refuse(f"expected at least one repetition, got {list(times)}")
    return [(x.type, tuple(n * t for n, t in zip(x.shape, times, strict=True)))]


def _transpose(call: Call) -> Result:
    x = call.input(0, FLOAT32, FLOAT16, INT32, INT64, INT16, INT8, UINT8, BOOL, min_rank=1)
    order = [call.axis(i, len(x.shape)) for i in call.constants(1, like=(INT32,), count=len(x.shape))]
    if sorted(order) != [*range(len(x.shape))]:
        call.refuse(f"expected an order of {len(x.shape)} axes, got {order}")
    return [(x.type, tuple(x.shape[i] for i in order))]


def _reshape(call: Call) -> Result:
    x = call.input(0, *_MOVED, max_rank=8)
    if len(call.inputs) > 1:
        wanted = call.constants(1, like=(INT32,))
    elif "new_shape" in call.options:
        wanted = call.options["new_shape"]
    else:
        call.unsupported("expected a constant shape")
    known = math.prod(n for n in wanted if n != -1)
    total = math.prod(x.shape)
    if min(wanted, default=1) < -1 or wanted.count(-1) > 1 or 0 in wanted or total % known:
        call.refuse(f"{x} cannot be reshaped to {list(wanted)}")
    shape = tuple(total // known if n == -1 else n for n in wanted)
    if math.prod(shape) != total:
        call.refuse(f"{x} cannot be reshaped to {list(wanted)}")
    return [(x.type, shape)]


def _expand_dims(call: Call) -> Result:
    x = call.input(0, *_MOVED, max_rank=MAX_RANK - 1)
    axis = call.axis(call.constants(1, count=1)[0], len(x.shape) + 1)
    return [(x.type, (*x.shape[:axis], 1, *x.shape[axis:]))]


def _squeeze(call: Call) -> Result:
    x = call.input(0, *_MOVED)
    dims = call.options.get("dims", ()) or tuple(i for i, n in enumerate(x.shape) if n == 1)
    axes = {call.axis(i, len(x.shape)) for i in dims}
    if any(x.shape[i] != 1 for i in axes):
        call.refuse(f"axes {sorted(axes)} of {x} are not of length 1")
    return [(x.type, tuple(n for i, n in enumerate(x.shape) if i not in axes))]


def _split(call: Call) -> Result:
    x = call.input(1, FLOAT32, INT32, INT8, INT16, UINT8, min_rank=1)
    axis = call.axis(call.constants(0, like=(INT32,), count=1)[0], len(x.shape))
    count = call.options.get("count", 0)
    if count < 1 or count != len(call.outputs) or x.shape[axis] % count:
        call.refuse(f"{x} cannot be split into {count} equal parts along axis {axis}, for {len(call.outputs)} outputs")
    return [(x.type, (*x.shape[:axis], x.shape[axis] // count, *x.shape[axis + 1 :]))] * count


def _select(call: Call) -> Result:
    condition = call.input(0, BOOL)
    a, b = (call.input(i, FLOAT32, INT32, INT64, INT8, BOOL) for i in (1, 2))
    kind = call.same_type(a, b)
    if a.shape != b.shape or (condition.shape not in ((), a.shape) and condition.shape != a.shape[:1]):
        call.refuse(f"{condition}, {a} and {b} do not fit together")
    return [(kind, a.shape)]


def _select_v2(call: Call) -> Result:
    condition = call.input(0, BOOL)
    a, b = (call.input(i, FLOAT32, INT32, INT64, INT8, BOOL) for i in (1, 2))
    return [(call.same_type(a, b), call.broadcast(condition.shape, a.shape, b.shape))]


def _dynamic_update_slice(call: Call) -> Result:
    x = call.input(0, FLOAT32, FLOAT16, INT32, INT64, INT16, INT8, BOOL, min_rank=1)
    update = call.input(1, x.type, min_rank=len(x.shape), max_rank=len(x.shape))
    start = call.input(2, *_INDEX, min_rank=1, max_rank=1)
    if start.shape != (len(x.shape),) or any(u > n for u, n in zip(update.shape, x.shape, strict=True)):
        call.refuse(f"{update} at {start} does not fit into {x}")
    return [(x.type, x.shape)]


def _cumsum(call: Call) -> Result:
    x = call.input(0, *_NUMBERS, min_rank=1)
    call.axis(call.constants(1, like=(INT32,), count=1)[0], len(x.shape))
    return [(x.type, x.shape)]


def _arg_max(call: Call) -> Result:
    x = call.input(0, FLOAT32, INT32, min_rank=1)
    axis = call.axis(call.constants(1, count=1)[0], len(x.shape))
    kind = call.options.get("type", INT64)
    if kind not in _INDEX:
        call.refuse(f"output_type: expected INT32 or INT64, got {type_name(kind)}")
    return [(kind, x.shape[:axis] + x.shape[axis + 1 :])]


def _top_k(call: Call) -> Result:
    x = call.input(0, FLOAT32, INT32, min_rank=1)
    (k,) = call.constants(1, like=(INT32,), count=1)
    if not 0 < k <= x.shape[-1]:
        call.refuse(f"k: expected 1 to {x.shape[-1]}, got {k}")
    return [(x.type, (*x.shape[:-1], k)), (INT32, (*x.shape[:-1], k))]


def _fill(call: Call) -> Result:
    shape = call.constants(0)
    value = call.input(1, FLOAT32, INT32, INT64, BOOL, INT8, max_rank=0)
    if min(shape, default=1) < 1 or len(shape) > MAX_RANK:
        call.refuse(f"a tensor of shape {list(shape)} cannot be filled")
    return [(value.type, shape)]


def _range(call: Call) -> Result:
    start, limit, step = (call.constants(i, like=(INT32,), count=1)[0] for i in range(3))
    if step == 0 or len(range(start, limit, step)) == 0:
        call.refuse(f"there is nothing from {start} to {limit} in steps of {step}")
    return [(INT32, (len(range(start, limit, step)),))]


def _dequantize(call: Call) -> Result:
    x = call.input(0, FLOAT16, INT8, UINT8, INT16, INT4)
    if x.type != FLOAT16 and x.quantization is None:
        call.refuse(f"{x} has no scales")
    if x.quantization is not None and x.quantization.block_size:
        call.unsupported(f"{x} has blocks of scales")
    return [(FLOAT32, x.shape)]


def _quantize(call: Call) -> Result:
    x = call.input(0, FLOAT32)
    y = call.outputs[0]
    if y.type not in (INT8, UINT8, INT16):
        call.unsupported(f"the output is {y}, expected INT8, UINT8 or INT16")
    if y.quantization is None or y.quantization.num_scales != 1:
        call.refuse(f"{y}: expected one scale")
    return [(y.type, x.shape)]


_ACTIVATION = ("activation", "B")

OPERATORS: Mapping[int, Operator] = {
    0: Operator("ADD", _binary(*_NUMBERS), 2, 2, options=11, fields=[_ACTIVATION, ("pot_scale_int16", "?")]),
    2: Operator("CONCATENATION", _concatenation, 1, 1024, options=10, fields=[("axis", "i"), _ACTIVATION]),
    6: Operator("DEQUANTIZE", _dequantize, 1, 1, options=38),
    7: Operator("EMBEDDING_LOOKUP", _embedding_lookup, 2, 2),
    8: Operator("FLOOR", _unary(FLOAT32), 1, 1),
    9: Operator(
        "FULLY_CONNECTED", _fully_connected, 2, 3, options=8,
        fields=[_ACTIVATION, ("weights_format", "B"), ("keep_num_dims", "?"), ("asymmetric_inputs", "?"),
                ("quantized_bias_type", "B")],
    ),
    14: Operator("LOGISTIC", _unary(FLOAT32), 1, 1),
    18: Operator("MUL", _binary(*_NUMBERS), 2, 2, options=21, fields=[_ACTIVATION]),
    19: Operator("RELU", _unary(FLOAT32), 1, 1),
    21: Operator("RELU6", _unary(FLOAT32), 1, 1),
    22: Operator("RESHAPE", _reshape, 1, 2, options=17, fields=[("new_shape", "[")]),
    25: Operator("SOFTMAX", _softmax, 1, 1, options=9, fields=[("beta", "f")]),
    28: Operator("TANH", _unary(FLOAT32), 1, 1),
    34: Operator("PAD", _pad, 2, 2, options=22),
    36: Operator("GATHER", _gather, 2, 2, options=23, fields=[("axis", "i"), ("batch_dims", "i")]),
    39: Operator("TRANSPOSE", _transpose, 2, 2, options=26),
    40: Operator("MEAN", _reduction(FLOAT32), 2, 2, options=27, fields=[("keep_dims", "?")]),
    41: Operator("SUB", _binary(*_NUMBERS), 2, 2, options=28, fields=[_ACTIVATION, ("pot_scale_int16", "?")]),
    42: Operator("DIV", _binary(FLOAT32), 2, 2, options=29, fields=[_ACTIVATION]),
    43: Operator("SQUEEZE", _squeeze, 1, 1, options=30, fields=[("dims", "[")]),
    45: Operator(
        "STRIDED_SLICE", _strided_slice, 4, 4, options=32,
        fields=[("begin", "i"), ("end", "i"), ("ellipsis", "i"), ("new_axis", "i"), ("shrink", "i"), ("offset", "?")],
    ),
    47: Operator("EXP", _unary(FLOAT32), 1, 1, options=33),
    48: Operator("TOPK_V2", _top_k, 2, 2, num_outputs=2, options=34),
    49: Operator("SPLIT", _split, 2, 2, num_outputs=None, options=35, fields=[("count", "i")]),
    53: Operator("CAST", _cast, 1, 1, options=37, fields=[("from", "b"), ("to", "b")]),
    55: Operator("MAXIMUM", _binary(*_NUMBERS), 2, 2, options=39),
    56: Operator("ARG_MAX", _arg_max, 2, 2, options=40, fields=[("type", "b")]),
    57: Operator("MINIMUM", _binary(*_NUMBERS), 2, 2, options=39),
    58: Operator("LESS", _binary(*_NUMBERS, result=BOOL), 2, 2, options=41),
    59: Operator("NEG", _unary(*_NUMBERS), 1, 1, options=42),
    60: Operator("PADV2", _pad, 3, 3, options=43),
    61: Operator("GREATER", _binary(*_NUMBERS, result=BOOL), 2, 2, options=44),
    62: Operator("GREATER_EQUAL", _binary(*_NUMBERS, result=BOOL), 2, 2, options=45),
    63: Operator("LESS_EQUAL", _binary(*_NUMBERS, result=BOOL), 2, 2, options=46),
    64: Operator("SELECT", _select, 3, 3, options=47),
    65: Operator("SLICE", _slice, 3, 3, options=48),
    66: Operator("SIN", _unary(FLOAT32), 1, 1),
    69: Operator("TILE", _tile, 2, 2, options=51),
    70: Operator("EXPAND_DIMS", _expand_dims, 2, 2, options=52),
    71: Operator("EQUAL", _binary(*_NUMBERS, BOOL, result=BOOL), 2, 2, options=53),
    72: Operator("NOT_EQUAL", _binary(*_NUMBERS, BOOL, result=BOOL), 2, 2, options=54),
    73: Operator("LOG", _unary(FLOAT32), 1, 1),
    74: Operator("SUM", _reduction(FLOAT32, INT32), 2, 2, options=27, fields=[("keep_dims", "?")]),
    75: Operator("SQRT", _unary(FLOAT32), 1, 1),
    76: Operator("RSQRT", _unary(FLOAT32), 1, 1),
    78: Operator("POW", _binary(FLOAT32), 2, 2, options=56),
    82: Operator("REDUCE_MAX", _reduction(FLOAT32, INT32), 2, 2, options=27, fields=[("keep_dims", "?")]),
    83: Operator("PACK", _pack, 1, 1024, options=59, fields=[("count", "i"), ("axis", "i")]),
    84: Operator("LOGICAL_OR", _binary(BOOL), 2, 2, options=60),
    86: Operator("LOGICAL_AND", _binary(BOOL), 2, 2, options=62),
    87: Operator("LOGICAL_NOT", _unary(BOOL), 1, 1, options=63),
    88: Operator("UNPACK", _unpack, 1, 1, num_outputs=None, options=64, fields=[("count", "i"), ("axis", "i")]),
    89: Operator("REDUCE_MIN", _reduction(FLOAT32, INT32), 2, 2, options=27, fields=[("keep_dims", "?")]),
    91: Operator("REDUCE_ANY", _reduction(BOOL), 2, 2, options=27, fields=[("keep_dims", "?")]),
    92: Operator("SQUARE", _unary(FLOAT32), 1, 1, options=66),
    94: Operator("FILL", _fill, 2, 2, options=68),
    96: Operator("RANGE", _range, 3, 3, options=73),
    99: Operator("SQUARED_DIFFERENCE", _binary(FLOAT32), 2, 2, options=76),
    101: Operator("ABS", _unary(FLOAT32), 1, 1, options=78),
    104: Operator("CEIL", _unary(FLOAT32), 1, 1),
    107: Operator("GATHER_ND", _gather_nd, 2, 2, options=83),
    108: Operator("COS", _unary(FLOAT32), 1, 1, options=84),
    114: Operator("QUANTIZE", _quantize, 1, 1, options=89),
    116: Operator("ROUND", _unary(FLOAT32), 1, 1),
    123: Operator("SELECT_V2", _select_v2, 3, 3, options=98),
    126: Operator(
        "BATCH_MATMUL", _batch_matmul, 2, 2, options=101,
        fields=[("adj_x", "?"), ("adj_y", "?"), ("asymmetric_inputs", "?")],
    ),
    128: Operator("CUMSUM", _cumsum, 2, 2, options=102, fields=[("exclusive", "?"), ("reverse", "?")]),
    130: Operator("BROADCAST_TO", _broadcast_to, 2, 2, options=104),
    140: Operator("REDUCE_ALL", _reduction(BOOL), 2, 2, options=27, fields=[("keep_dims", "?")]),
    150: Operator("GELU", _unary(FLOAT32), 1, 1, options=116, fields=[("approximate", "?")]),
    151: Operator("DYNAMIC_UPDATE_SLICE", _dynamic_update_slice, 3, 3, options=117),
}  # fmt: skip


def read_options(operator: Operator, table: Table | None) -> dict[str, Any]:
    """Return the options of a call by name; what is absent is not among them, and means 0."""
    options: dict[str, Any] = {}
    for index, (name, layout) in enumerate(operator.fields if table is not None else ()):
        assert table is not None
        if layout == "[":
            if table.has(index):
                options[name] = table.integers(index)
        else:
            options[name] = table.scalar(index, _LAYOUTS[layout])
    return options


_LAYOUTS = {layout: struct.Struct(f"<{layout}") for layout in "Bbif?"}
