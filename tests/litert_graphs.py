"""A language model small enough to be computed by hand, as a LiteRT graph of every shape that exporters give one.

Its logits are W (sum over all positions p so far of KEYS[token at p] + p VALUES[token at p]). What is in the cache are
whole numbers, so that float16 and int8 hold them exactly, and a token in the wrong place shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

VOCAB, DIM, CAPACITY = 24, 8, 32
_GENERATOR = np.random.default_rng(7)
KEYS = _GENERATOR.integers(-3, 4, (VOCAB, DIM)).astype(np.float32)
VALUES = _GENERATOR.integers(-1, 2, (VOCAB, DIM)).astype(np.float32)
LOGITS = (_GENERATOR.integers(-2, 3, (VOCAB, DIM)) / 64).astype(np.float32)

_TYPES = {"float32": 0, "float16": 1, "int32": 2, "int64": 4, "bool": 6, "int8": 9}


def expected_logits(ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits after each of `ids`, [len(ids), VOCAB]."""
    positions = np.arange(len(ids), dtype=np.float32)[:, None]
    rows = np.cumsum(KEYS[list(ids)] + positions * VALUES[list(ids)], axis=0)
    logits: NDArray[np.float32] = rows @ LOGITS.T
    return logits


@dataclass
class _Graph:
    """One subgraph under construction; constants go into the model's buffers."""

    model: Any
    codes: dict[int, int]
    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)

    def tensor(self, shape: Sequence[int], dtype: str, data: NDArray[Any] | None = None, scale: float = 0.0) -> int:
        from ai_edge_litert import schema_py_generated as schema

        buffer = 0
        if data is not None:
            buffer = len(self.model.buffers)
            self.model.buffers.append(schema.BufferT(data=np.frombuffer(data.tobytes(), np.uint8)))
        tensor = schema.TensorT(shape=list(shape), type=_TYPES[dtype], buffer=buffer, name=f"t{len(self.tensors)}")
        if scale:
            tensor.quantization = schema.QuantizationParametersT(scale=[scale], zeroPoint=[0])
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, values: Any, dtype: str = "int32") -> int:
        array = np.asarray(values, dtype)
        return self.tensor(array.shape, dtype, array)

    def shape(self, tensor: int) -> list[int]:
        return list(self.tensors[tensor].shape)

    def op(self, code: int, inputs: Sequence[int], output: int, kind: int = 0, options: Any = None) -> int:
        from ai_edge_litert import schema_py_generated as schema

        index = self.codes.setdefault(code, len(self.codes))
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=index,
                inputs=list(inputs),
                outputs=[output],
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )
        return output

    def reshape(self, x: int, shape: Sequence[int]) -> int:
        kind = next(name for name, number in _TYPES.items() if number == self.tensors[x].type)
        return self.op(22, [x, self.constant(shape)], self.tensor(shape, kind))

    def cast(self, x: int, dtype: str) -> int:
        from ai_edge_litert import schema_py_generated as schema

        options = schema.CastOptionsT(inDataType=self.tensors[x].type, outDataType=_TYPES[dtype])
        return self.op(53, [x], self.tensor(self.shape(x), dtype), 37, options)

    def binary(self, code: int, kind: int, options: Any, a: int, b: int, dtype: str = "float32") -> int:
        shape = np.broadcast_shapes(tuple(self.shape(a)), tuple(self.shape(b)))
        return self.op(code, [a, b], self.tensor(shape, dtype), kind, options)


def toy_model(
    *,
    lengths: Sequence[int] = (4, 8),
    cache: Literal["float32", "float16", "int8"] = "float32",
    mask: Literal["float32", "float16", "bool"] | None = None,
    names: tuple[str, str, str] = ("tokens", "input_pos", "mask"),
    cache_names: tuple[str, str] = ("kv_cache_k_0", "kv_cache_v_0"),
    transposed: bool = False,
    num_decoded: int = 1,
    in_place: bool = True,
) -> bytes:
    """Return the `.tflite`. With `in_place` False the old cache is read by more than the update of a slice."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT(
        version=3, operatorCodes=[], subgraphs=[], description="toy", buffers=[schema.BufferT()], signatureDefs=[]
    )
    codes: dict[int, int] = {}
    entries = [(f"prefill_{length}", length, 1) for length in lengths] + [("decode", 1, num_decoded)]
    for number, (name, length, batch) in enumerate(entries):
        g = _Graph(model, codes)
        inputs = {names[0]: g.tensor([batch, length], "int32"), names[1]: g.tensor([length], "int32")}
        tokens, positions = inputs.values()
        if mask is not None:
            shape = [1, length, 1, CAPACITY] if names[2] == "attn_mask" else [1, 1, length, CAPACITY]
            inputs[names[2]] = g.tensor(shape, mask)
        key_shape = [1, batch, CAPACITY, DIM] if transposed else [batch, CAPACITY, 1, DIM]
        value_shape = [1, batch, DIM, CAPACITY] if transposed else [batch, CAPACITY, 1, DIM]
        scale = 1.0 if cache == "int8" else 0.0
        outputs = {}
        read = []
        for side, (cache_name, shape) in enumerate(zip(cache_names, (key_shape, value_shape), strict=True)):
            old = inputs[cache_name] = g.tensor(shape, cache, scale=scale)
            table = g.constant((KEYS, VALUES)[side], "float32")
            rows = g.op(36, [table, tokens], g.tensor([batch, length, DIM], "float32"), 23, schema.GatherOptionsT())
            if side == 1:
                scaled = g.reshape(g.cast(positions, "float32"), [1, length, 1])
                rows = g.binary(18, 21, schema.MulOptionsT(), rows, scaled)
            axis = 1
            if transposed and side == 1:
                rows = g.op(39, [rows, g.constant([0, 2, 1])], g.tensor([batch, DIM, length], "float32"))
                axis = 3
            elif transposed:
                axis = 2
            update = g.reshape(rows, [length if i == axis else n for i, n in enumerate(shape)])
            if cache == "float16":
                update = g.cast(update, "float16")
            elif cache == "int8":
                update = g.op(
                    114, [update], g.tensor(g.shape(update), "int8", scale=scale), 89, schema.QuantizeOptionsT()
                )
            first = g.op(65, [positions, g.constant([0]), g.constant([1])], g.tensor([1], "int32"))
            zero = g.constant([0])
            start = g.op(
                2, [first if i == axis else zero for i in range(4)], g.tensor([4], "int32"), 10,
                schema.ConcatenationOptionsT(axis=0),
            )  # fmt: skip
            new = g.op(151, [old, update, start], g.tensor(shape, cache, scale=scale))
            outputs[cache_name] = new
            pasts = [new] if in_place else [new, old]
            for i, past in enumerate(pasts):
                if cache == "float16":
                    past = g.cast(past, "float32")
                elif cache == "int8":
                    past = g.op(6, [past], g.tensor(shape, "float32"), 38, schema.DequantizeOptionsT())
                if transposed and side == 1:
                    past = g.reshape(past, [batch, DIM, CAPACITY])
                    past = g.op(39, [past, g.constant([0, 2, 1])], g.tensor([batch, CAPACITY, DIM], "float32"))
                else:
                    past = g.reshape(past, [batch, CAPACITY, DIM])
                if i == 1:
                    past = g.binary(18, 21, schema.MulOptionsT(), past, g.constant([0.0], "float32"))
                read.append(past)
        if name == "decode":
            if mask is None:
                every = g.constant(np.arange(CAPACITY).reshape(1, CAPACITY))
                seen = g.binary(63, 0, None, every, g.reshape(positions, [length, 1]), "bool")
            elif mask == "bool":
                seen = inputs[names[2]]
            else:
                given = inputs[names[2]] if mask == "float32" else g.cast(inputs[names[2]], "float32")
                seen = g.binary(62, 0, None, given, g.constant([-1.0], "float32"), "bool")
            weights = g.reshape(g.cast(seen, "float32"), [1, length, CAPACITY])
            total = read[0]
            for past in read[1:]:
                total = g.binary(0, 11, schema.AddOptionsT(), total, past)
            # One product for each sequence, as BATCH_MATMUL of LiteRT broadcasts only some shapes.
            tiled = g.tensor([batch, length, CAPACITY], "float32")
            summed = g.op(
                126, [g.op(69, [weights, g.constant([batch, 1, 1])], tiled), total],
                g.tensor([batch, length, DIM], "float32"), 101, schema.BatchMatMulOptionsT(),
            )  # fmt: skip
            flat = g.reshape(summed, [batch * length, DIM])
            product = g.op(
                9, [flat, g.constant(LOGITS, "float32")], g.tensor([batch * length, VOCAB], "float32"), 8,
                schema.FullyConnectedOptionsT(),
            )  # fmt: skip
            outputs["logits"] = g.reshape(product, [batch, length, VOCAB])
        model.subgraphs.append(
            schema.SubGraphT(
                tensors=g.tensors,
                inputs=[*inputs.values()],
                outputs=[*outputs.values()],
                operators=g.operators,
                name=name,
            )
        )
        maps = [[schema.TensorMapT(name=n, tensorIndex=i) for n, i in side.items()] for side in (inputs, outputs)]
        model.signatureDefs.append(
            schema.SignatureDefT(inputs=maps[0], outputs=maps[1], signatureKey=name, subgraphIndex=number)
        )
    model.operatorCodes = [
        schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=_VERSIONS.get(code, 1))
        for code in codes
    ]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


_VERSIONS = {6: 2, 53: 1, 114: 1}
