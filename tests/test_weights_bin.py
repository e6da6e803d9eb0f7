"""MediaPipe's .bin is read as its converter wrote it, written as it is read, and refused by name where it lies."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hearthlm.errors import (
    CorruptFileError,
    HearthLMError,
    TensorMismatchError,
    TruncatedFileError,
    UnsupportedModelError,
)
from hearthlm.formats import detect_format
from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.formats.flatbuffer import Fields, Scalar, build_flatbuffer
from hearthlm.formats.gpu_layout import blocks_from_rows, rows_from_blocks
from hearthlm.formats.llm_parameters_pb2 import DESCRIPTOR, LlmModelType, LlmParameters
from hearthlm.formats.tensor_plan import TensorPlan
from hearthlm.formats.weights_bin import (
    MAX_HEAD_BYTES,
    WeightsBin,
    is_weights_bin,
    write_weights_bin,
)
from hearthlm.quantization import WeightMatrix, dequantize, pack_int4, quantize, unpack_int4

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, dict[str, Any]] = {
    f"{version}/{Path(output).stem}": case
    for version, cases in json.loads((GOLDEN / "cases.json").read_text()).items()
    for case in cases["conversions"].values()
    for output in case["outputs"]
}
MODELS = {name: case for name, case in CASES.items() if not name.endswith("_lora_lora") and "renamed_lora" not in name}
LORAS = {name: case for name, case in CASES.items() if name.endswith(("_lora_lora", "renamed_lora"))}


def open_golden(name: str) -> WeightsBin:
    return WeightsBin.open(GOLDEN / "outputs" / f"{name}.bin")


# Names of the checkpoints' tensors, {} standing for the layer, by what they are in a .bin.

LAYER = "params.lm.transformer.x_layers_{}."
GEMMA = {
    "params.lm.softmax.logits_ffn.w": "model.embed_tokens.weight",
    "params.lm.final_ln.scale": "model.norm.weight",
    LAYER + "pre_layer_norm.scale": "model.layers.{}.input_layernorm.weight",
    LAYER + "self_attention.q.w": "model.layers.{}.self_attn.q_proj.weight",
    LAYER + "self_attention.k.w": "model.layers.{}.self_attn.k_proj.weight",
    LAYER + "self_attention.v.w": "model.layers.{}.self_attn.v_proj.weight",
    LAYER + "self_attention.post.w": "model.layers.{}.self_attn.o_proj.weight",
    LAYER + "ff_layer.pre_layer_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    LAYER + "ff_layer.ffn_layer1.w": "model.layers.{}.mlp.up_proj.weight",
    LAYER + "ff_layer.ffn_layer1_gate.w": "model.layers.{}.mlp.gate_proj.weight",
    LAYER + "ff_layer.ffn_layer2.w": "model.layers.{}.mlp.down_proj.weight",
}
GEMMA2 = {
    **GEMMA,
    LAYER + "post_layer_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    LAYER + "ff_layer.pre_layer_norm.scale": "model.layers.{}.pre_feedforward_layernorm.weight",
    LAYER + "ff_layer.post_layer_norm.scale": "model.layers.{}.post_feedforward_layernorm.weight",
}
STABLELM = {
    **GEMMA,
    "params.lm.token_embedding.w": "model.embed_tokens.weight",
    "params.lm.softmax.logits_ffn.w": "lm_head.weight",
    "params.lm.final_ln.bias": "model.norm.bias",
    LAYER + "pre_layer_norm.bias": "model.layers.{}.input_layernorm.bias",
    LAYER + "ff_layer.pre_layer_norm.bias": "model.layers.{}.post_attention_layernorm.bias",
}
PHI_2 = {
    "params.lm.token_embedding.w": "model.embed_tokens.weight",
    "params.lm.softmax.logits_ffn.linear.w": "lm_head.weight",
    "params.lm.softmax.logits_ffn.bias.b": "lm_head.bias",
    "params.lm.final_ln.scale": "model.final_layernorm.weight",
    "params.lm.final_ln.bias": "model.final_layernorm.bias",
    LAYER + "pre_layer_norm.scale": "model.layers.{}.input_layernorm.weight",
    LAYER + "pre_layer_norm.bias": "model.layers.{}.input_layernorm.bias",
}
FALCON = {
    "params.lm.token_embedding.w": "transformer.word_embeddings.weight",
    "params.lm.softmax.logits_ffn.w": "lm_head.weight",
    "params.lm.final_ln.scale": "transformer.ln_f.weight",
    "params.lm.final_ln.bias": "transformer.ln_f.bias",
    LAYER + "pre_layer_norm.scale": "transformer.h.{}.input_layernorm.weight",
    LAYER + "pre_layer_norm.bias": "transformer.h.{}.input_layernorm.bias",
    LAYER + "ff_layer.pre_layer_norm.scale": "transformer.h.{}.post_attention_layernorm.weight",
    LAYER + "ff_layer.pre_layer_norm.bias": "transformer.h.{}.post_attention_layernorm.bias",
}
for part, phi, falcon in [
    ("self_attention.post", "self_attn.dense", "self_attention.dense"),
    ("ff_layer.ffn_layer1", "mlp.fc1", "mlp.dense_h_to_4h"),
    ("ff_layer.ffn_layer2", "mlp.fc2", "mlp.dense_4h_to_h"),
    ("self_attention.q", "self_attn.q_proj", "self_attention.query_key_value"),
    ("self_attention.k", "self_attn.k_proj", "self_attention.query_key_value"),
    ("self_attention.v", "self_attn.v_proj", "self_attention.query_key_value"),
]:
    for suffix, kind in [(".linear.w", "weight"), (".bias.b", "bias")]:
        PHI_2[LAYER + part + suffix] = f"model.layers.{{}}.{phi}.{kind}"
        FALCON[LAYER + part + suffix] = f"transformer.h.{{}}.{falcon}.{kind}"
TABLES = {
    "GEMMA_2B": GEMMA,
    "GEMMA2_2B": GEMMA2,
    "STABLELM_4E1T_3B": STABLELM,
    "PHI_2": PHI_2,
    "FALCON_RW_1B": FALCON,
}


def expected_tensors(name: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the name in the .bin and the checkpoint's float32 values of every tensor of a golden file."""
    case = CASES[name]
    checkpoint = Checkpoint.open(GOLDEN.joinpath(case["cfg"]["input_ckpt"]))
    dims = case["dims"]
    for in_bin, in_checkpoint in TABLES[case["model_type"]].items():
        if case["cfg"]["backend"] == "gpu" and case["model_type"] in ("STABLELM_4E1T_3B", "FALCON_RW_1B"):
            in_bin = in_bin.replace("ff_layer.pre_layer_norm", "post_layer_norm")
        for layer in range(dims["L"]) if "{}" in in_bin else [0]:
            source = in_checkpoint.format(layer)
            if "query_key_value" in source:
                which = [f".{part}." in in_bin for part in "qkv"].index(True)
                fused = as_float(checkpoint, source)
                values = fused.reshape(dims["N"], 3, dims["H"], *fused.shape[1:])[:, which]
                yield in_bin.format(layer), values.reshape(-1, *fused.shape[1:])
            else:
                yield in_bin.format(layer), as_float(checkpoint, source)


def as_float(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    if len(checkpoint.shape(name)) == 1:
        return checkpoint.vector(name)
    return dequantize(checkpoint.matrix(name))


# Reading MediaPipe's files


@pytest.mark.parametrize("name", MODELS)
def test_golden_weights_are_those_of_the_checkpoint(name: str) -> None:
    case = CASES[name]
    config = case["cfg"]
    with open_golden(name) as file:
        seen = set()
        for tensor, values in expected_tensors(name):
            seen.add(tensor)
            if values.ndim == 1:
                np.testing.assert_array_equal(file.vector(tensor, len(values)), values, err_msg=tensor)
                continue
            matrix = file.matrix(tensor, values.shape)
            assert matrix.scales is not None
            assert (matrix.zero_points is not None) == (
                config["backend"] == "gpu" and not config.get("is_symmetric", True)
            )
            if config["backend"] == "cpu" and not config.get("is_symmetric", True):
                continue  # the file does not hold what it would take
            error = np.abs(dequantize(matrix) - values)
            step = matrix.scales[:, None]
            if config.get("use_mse_quant"):
                rms = np.sqrt(np.mean(values**2, axis=1))
                np.testing.assert_allclose(matrix.scales, 0.37755 * rms + 1e-12, rtol=1e-5)
                assert np.all((error <= step * 0.5001) | (np.abs(values) > 7 * step)), tensor
            else:
                assert np.all(error <= step * 0.5001), tensor
        others = {tensor for tensor in file.tensors if not tensor.endswith(("_scale", "_zp", ".sum_i"))}
        assert seen == others


@pytest.mark.parametrize("name", MODELS)
def test_golden_heads_are_understood(name: str) -> None:
    case = CASES[name]
    with open_golden(name) as file:
        assert file.model_type == LlmModelType.Value(f"LLM_MODEL_TYPE_{case['model_type']}")
        assert file.backend == case["cfg"]["backend"]
        assert file.parameters.vocab_size == case["dims"]["V"]
        assert file.parameters.transformer_parameters.embedding_dim == case["dims"]["D"]
        assert file.parameters.transformer_parameters.num_stacks == case["dims"]["L"]
        assert file.extra is None
        assert file.tokenizer is not None
        if "hftok" not in name:
            assert file.tokenizer == (GOLDEN / case["cfg"]["vocab_model_file"]).read_bytes()
        file.verify()
    path = GOLDEN / "outputs" / f"{name}.bin"
    assert is_weights_bin(path.read_bytes())
    assert detect_format(path) == "weights_bin"


@pytest.mark.parametrize("name", MODELS)
def test_dropped_zero_points_are_seen(name: str) -> None:
    config = CASES[name]["cfg"]
    with open_golden(name) as file:
        quantized = [tensor.name for tensor in file.tensors.values() if tensor.type in ("INT8", "INT4")]
        dropped = config["backend"] == "cpu" and not config.get("is_symmetric", True)
        assert file.lost_zero_points() == (quantized if dropped else [])


@pytest.mark.parametrize("name", LORAS)
def test_golden_lora_files_hold_the_adapter(name: str) -> None:
    config = CASES[name]["cfg"]
    adapter = Checkpoint.open(GOLDEN / config["lora_ckpt"])
    is_phi = "phi" in name
    with open_golden(name) as file:
        assert file.lora_rank == config["lora_rank"]
        for layer in range(CASES[name]["dims"]["L"]):
            for part in "q", "k", "v", "post":
                if is_phi:
                    source = f"model.layers.{layer}.self_attention.{part}.lora_{{}}.linear.w"
                else:
                    projection = "o_proj" if part == "post" else f"{part}_proj"
                    source = f"base_model.model.model.layers.{layer}.self_attn.{projection}.lora_{{}}.weight"
                sides = ("right", "left") if part == "post" else ("left", "right")  # and swaps these names
                for side, factor in zip(sides, "AB", strict=True):
                    values = dequantize(adapter.matrix(source.format(factor)))
                    if part == "post":  # MediaPipe takes the transposed values for those of another shape
                        values = values.T.reshape(values.shape)
                        values = values.T if is_phi else values
                    tensor = f"{LAYER.format(layer)}self_attention.{part}.w_prime_{side}"
                    matrix = file.matrix(tensor, (values.shape[0], values.shape[1]))
                    assert matrix.dtype == ("float32" if is_phi else "float16")
                    np.testing.assert_array_equal(dequantize(matrix), values.astype(matrix.dtype), err_msg=tensor)


# Writing


def plans_of(file: WeightsBin) -> list[TensorPlan]:
    """Return plans that write again what `file` holds."""
    plans = []
    for name, tensor in file.tensors.items():
        scales = file.tensors.get(f"{name}_quantized_scale")
        if name.endswith(("_quantized_scale", "_quantized_zp", ".sum_i")):
            continue
        if scales is not None:
            rows = scales.num_bytes // 4
            matrix = file.matrix(name, (rows, tensor.num_bytes * (2 if tensor.type == "INT4" else 1) // rows))
        elif ".w_prime_" in name:
            matrix = file.matrix(name, (4, tensor.num_bytes // (16 if file.model_type == 11 else 8)))
        else:
            vector = file.vector(name, tensor.num_bytes // 4)
            shape = tensor.shape if file.backend == "cpu" else vector.shape
            plans.append(TensorPlan.of(name, vector, shape))
            continue
        plans.append(TensorPlan.of(name, matrix))
    return plans


@pytest.mark.parametrize("name", CASES)
def test_golden_files_are_written_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "again.bin"
    with open_golden(name) as golden:
        assert golden.backend in ("cpu", "gpu")
        write_weights_bin(
            path,
            golden.parameters,
            golden.model_type,
            plans_of(golden),
            tokenizer=golden.tokenizer,
            backend=golden.backend,  # type: ignore[arg-type]
            lora_rank=golden.lora_rank,
            with_sum=any(tensor.endswith(".sum_i") for tensor in golden.tensors),
        )
        source = (GOLDEN / "outputs" / f"{name}.bin").read_bytes()
        written = path.read_bytes()
        assert len(written) % (64 if golden.backend == "cpu" else 65536) == 0
        with WeightsBin.open(path) as file:
            assert set(file.tensors) == set(golden.tensors)
            for before, after in ((golden.tensors[tensor], file.tensors[tensor]) for tensor in golden.tensors):
                assert (before.type, before.shape) == (after.type, after.shape)
                assert (
                    source[before.offset : before.offset + before.num_bytes]
                    == written[after.offset : after.offset + after.num_bytes]
                ), before.name
                assert after.offset % (64 if file.backend == "cpu" else 256) == 0
            assert file.parameters == golden.parameters
            assert file.tokenizer == golden.tokenizer
            assert (file.model_type, file.backend, file.lora_rank) == (
                golden.model_type,
                golden.backend,
                golden.lora_rank,
            )
            if file.backend == "gpu":
                first = min(tensor.offset for tensor in golden.tensors.values())
                assert min(tensor.offset for tensor in file.tensors.values()) == first


def random_matrix(shape: tuple[int, int], bits: int, seed: int = 0) -> WeightMatrix:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return WeightMatrix("float32", shape, values) if bits == 32 else quantize(values, bits)


PARAMETERS = LlmParameters(vocab_size=8, start_token_id=2, stop_tokens=["<eos>"])


def write(path: Path, plans: Sequence[TensorPlan], **options: Any) -> Path:
    write_weights_bin(path, PARAMETERS, 6, plans, **{"tokenizer": b"pieces", **options})
    return path


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 3), (4, 4), (8, 12), (7, 6), (300, 41)])
def test_cpu_matrices_of_any_shape_come_back(bits: int, shape: tuple[int, int], tmp_path: Path) -> None:
    matrix = random_matrix(shape, bits)
    path = write(tmp_path / "m.bin", [TensorPlan.of("a.w", matrix)])
    with WeightsBin.open(path) as file:
        read = file.matrix("a.w", shape)
        np.testing.assert_array_equal(dequantize(read), dequantize(matrix))
        assert file.tensors["a.w"].num_bytes == (shape[0] * shape[1] * bits + 7) // 8


@pytest.mark.parametrize("dtype", ["int4", "int8", "float16", "float32"])
@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (12, 8), (4100, 8), (8, 1028)])
def test_gpu_matrices_come_back_in_rows(dtype: str, shape: tuple[int, int], tmp_path: Path) -> None:
    if dtype.startswith("int"):
        matrix = random_matrix(shape, int(dtype[3:]))
        zero_points = np.linspace(-3, 3, shape[0], dtype=np.float32)
        matrix = WeightMatrix(matrix.dtype, shape, matrix.data, matrix.scales, zero_points)
    else:
        values = random_matrix(shape, 32).data.astype(dtype)
        matrix = WeightMatrix(dtype, shape, values)  # type: ignore[arg-type]
    before = matrix.data.copy()
    path = write(tmp_path / "m.bin", [TensorPlan.of("a.w", matrix)], backend="gpu")
    np.testing.assert_array_equal(matrix.data, before)
    with WeightsBin.open(path) as file:
        file.verify()
        read = file.matrix("a.w", shape)
        assert read.dtype == dtype
        np.testing.assert_array_equal(dequantize(read), dequantize(matrix))
        assert ("a.w.sum_i" in file.tensors) == dtype.startswith("int")
    assert path.stat().st_size % 65536 == 0


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (64, 16), (16, 64)])
def test_the_block_layout_is_the_one_of_the_format(shape: tuple[int, int]) -> None:
    out, columns = shape
    q = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    blocks = q.T.reshape(columns // 4, 4, out // 4, 4).transpose(0, 2, 1, 3).ravel()
    flipped = (blocks.view(np.uint8) ^ np.uint8(0x80)).view(np.int8)
    np.testing.assert_array_equal(np.concatenate(list(blocks_from_rows(q))), flipped)
    np.testing.assert_array_equal(rows_from_blocks(flipped, shape), q)
    nibbles = (blocks & 0x0F).view(np.uint8)
    packed = nibbles[0::2] | nibbles[1::2] << 4
    rows = pack_int4((q & 0x0F) - np.int8(8))
    np.testing.assert_array_equal(np.concatenate(list(blocks_from_rows(rows))), packed)
    np.testing.assert_array_equal(rows_from_blocks(packed, shape), rows)


def test_int4_rows_of_even_length_lie_in_the_file(tmp_path: Path) -> None:
    q = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    matrix = WeightMatrix("int4", (2, 8), pack_int4(q), np.ones(2, np.float32))
    with WeightsBin.open(write(tmp_path / "m.bin", [TensorPlan.of("a.w", matrix)])) as file:
        read = file.matrix("a.w", (2, 8))
        assert not read.data.flags.owndata and not read.data.flags.writeable
        np.testing.assert_array_equal(unpack_int4(read.data, 8), q)
        tensor = file.tensors["a.w"]
        assert path_bytes(tmp_path / "m.bin", tensor.offset, 8) == bytes.fromhex("1032547698badcfe")


def path_bytes(path: Path, offset: int, count: int) -> bytes:
    return path.read_bytes()[offset : offset + count]


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.bin", [TensorPlan.of("a.w", random_matrix((4, 4), 8))])
    with WeightsBin.open(path) as file:
        matrix = file.matrix("a.w", (4, 4))
        before = dequantize(matrix)
    path.unlink()
    np.testing.assert_array_equal(dequantize(matrix), before)
    with pytest.raises(ValueError, match="the file is closed"):
        file.matrix("a.w", (4, 4))


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    plans = [TensorPlan.of("a.w", random_matrix((4, 4), 8)), TensorPlan.of("b.w", random_matrix((4, 8), 4))]
    for backend in "cpu", "gpu":
        extra = {"b": 1, "a": {"y": [1.5, None], "x": "é"}}
        first = write(tmp_path / "1.bin", plans, backend=backend, extra=extra).read_bytes()
        extra = {"a": {"x": "é", "y": [1.5, None]}, "b": 1}
        assert write(tmp_path / "2.bin", plans, backend=backend, extra=extra).read_bytes() == first


def test_extra_metadata_comes_back(tmp_path: Path) -> None:
    extra = {"family": "llama", "nested": {"list": [1, 2.5, None, "text"]}}
    with WeightsBin.open(write(tmp_path / "m.bin", [], extra=extra, tokenizer=None)) as file:
        assert file.extra == extra
        assert file.tokenizer is None


def test_one_tensor_at_a_time_is_produced(tmp_path: Path) -> None:
    alive = 0

    class Counted(WeightMatrix):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def produce(first: int, last: int) -> WeightMatrix:
        nonlocal alive
        assert alive == 0
        alive += 1
        return Counted("float32", (4, 4), np.ones((4, 4), np.float32))

    write(tmp_path / "m.bin", [TensorPlan(f"{i}.w", (4, 4), "float32", produce) for i in range(5)])


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", ["int4", "int8", "float16", "float32"])
def test_pieces_make_the_same_file_as_the_whole(
    dtype: str, backend: str, num_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hearthlm.formats import tensor_plan

    if (dtype, backend) == ("float16", "cpu"):
        pytest.skip("the CPU layout has no float16")
    columns = 41 if (dtype, backend) == ("int4", "cpu") else 44
    values = random_matrix((52, columns), 32).data.astype(np.float16 if dtype == "float16" else np.float32)
    matrix = quantize(values, int(dtype[3:])) if dtype.startswith("int") else WeightMatrix(dtype, values.shape, values)  # type: ignore[arg-type]
    plans = [TensorPlan.of("a.w", matrix), TensorPlan.of("b", np.arange(9, dtype=np.float32))]
    whole = write(tmp_path / "whole.bin", plans, backend=backend).read_bytes()
    monkeypatch.setattr(tensor_plan, "_PIECE_VALUES", 8 * columns)
    written: list[tuple[str, int]] = []
    path = write(
        tmp_path / "pieces.bin", plans, backend=backend, num_threads=num_threads, progress=lambda *p: written.append(p)
    )
    assert path.read_bytes() == whole
    assert [name for name, _ in written] == ["a.w"] * 7 + ["b"]
    with WeightsBin.open(path) as file:
        assert sum(size for name, size in written if name == "a.w") == file.tensors["a.w"].num_bytes


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_a_failure_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"before")

    def fail(first: int, last: int) -> WeightMatrix:
        raise error

    with pytest.raises(error):
        write(path, [TensorPlan.of("a.w", random_matrix((4, 4), 8)), TensorPlan("b.w", (4, 4), "int8", fail)])
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.bin"]


@pytest.mark.parametrize("failing_write", range(13))
def test_a_full_disk_leaves_what_was_there(failing_write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hearthlm.formats import tensor_plan, weights_bin

    path = tmp_path / "m.bin"
    path.write_bytes(b"before")
    countdown = failing_write
    write_at = tensor_plan.write_at

    def write_until_full(*args: Any) -> None:
        nonlocal countdown
        if countdown == 0:
            raise OSError(28, "No space left on device")
        countdown -= 1
        write_at(*args)

    monkeypatch.setattr(weights_bin, "write_at", write_until_full)
    plans = [TensorPlan.of(f"{i}.w", random_matrix((4, 4), 8)) for i in range(4)]  # 8 tensors, 3 entries, the head
    if failing_write < 12:
        with pytest.raises(OSError, match="No space"):
            write(path, plans)
        assert path.read_bytes() == b"before"
    else:
        write(path, plans)
        assert detect_format(path) == "weights_bin"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.bin"]


def never(first: int, last: int) -> WeightMatrix:
    raise AssertionError("a plan that is refused is not produced")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TensorPlan("a", (4, 0), "int8", never), "a: shape: expected positive dimensions"),
        (lambda: TensorPlan("a", (4,), "int8", never), r"a: a tensor \[4\] cannot be stored as int8"),
        (lambda: TensorPlan("a", (4, 4), "bfloat16", never), "cannot be stored as bfloat16"),
        (lambda: TensorPlan("a", (4,), "float32", never, True), "has_zero_points: expected False"),
    ],
)
def test_an_impossible_plan_is_refused(make: Callable[[], TensorPlan], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def wider(first: int, last: int) -> WeightMatrix:
    return random_matrix((4, 8), 8)


def longer(first: int, last: int) -> NDArray[np.float32]:
    return np.zeros(5, np.float32)


def asymmetric(first: int = 0, last: int = 4) -> WeightMatrix:
    matrix = random_matrix((4, 4), 8)
    return WeightMatrix("int8", (4, 4), matrix.data, matrix.scales, np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("plans", "options", "message"),
    [
        ([TensorPlan.of("a.w", random_matrix((4, 4), 8))] * 2, {}, "tensors: 'a.w' appears twice"),
        ([TensorPlan.of("a.w", asymmetric())], {}, "the CPU layout cannot hold zero points"),
        ([TensorPlan("a.w", (4, 4), "float16", asymmetric)], {}, "the CPU layout cannot hold float16"),
        ([TensorPlan.of("a.w", random_matrix((4, 6), 8))], {"backend": "gpu"}, "needs multiples of 4"),
        ([], {"backend": "npu"}, "backend: expected 'cpu' or 'gpu', got 'npu'"),
        ([], {"lora_rank": -1}, "lora_rank: expected an integer of 32 bits, got -1"),
        ([], {"extra": {"version": 1}}, "'version' is the format's own key"),
        ([], {"extra": {"a": float("nan")}}, "not JSON compliant"),
        ([TensorPlan("a.w", (4, 4), "int8", wider)], {}, r"expected a int8 matrix \[4, 4\]"),
        ([TensorPlan("a.w", (4, 4), "int8", asymmetric)], {}, "without zero points, got a int8 matrix .* with zero"),
        ([TensorPlan("a", (4,), "float32", longer)], {}, r"a float32 array \[4\], got an"),
        ([TensorPlan("a", (4,), "float32", asymmetric)], {}, r"a float32 array \[4\], got a int8 matrix"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(
    plans: list[TensorPlan], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "m.bin", plans, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_producer_of_too_few_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hearthlm.formats import weights_bin

    monkeypatch.setattr(weights_bin, "_row_sums", lambda matrix: np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="a.w.sum_i: expected 16 bytes, got 4"):
        write(tmp_path / "m.bin", [TensorPlan.of("a.w", random_matrix((4, 4), 8))], with_sum=True)
    with pytest.raises(ValueError, match="nested more than 32 deep"):
        deep: list[Any] = []
        for _ in range(40):
            deep = [deep]
        write(tmp_path / "m.bin", [], extra={"a": deep})


def test_a_type_without_a_name_and_a_folder_as_target(tmp_path: Path) -> None:
    write_weights_bin(tmp_path / "m.bin", PARAMETERS, 99, [], tokenizer=None)
    with WeightsBin.open(tmp_path / "m.bin") as file:
        assert file.model_type == 99
        assert file.lost_zero_points() == []
    with pytest.raises(FileExistsError, match="expected the name of a file, got a folder"):
        write(tmp_path, [])


def test_a_head_that_readers_would_not_see_whole_is_refused(tmp_path: Path) -> None:
    plans = [TensorPlan("x" * 120 + str(i), (1,), "float32", longer) for i in range(6000)]
    with pytest.raises(UnsupportedModelError, match=f"the first {MAX_HEAD_BYTES} only"):
        write(tmp_path / "m.bin", plans)


# Refusing


Buffer = tuple[int, int]


def head(
    *,
    tensors: Sequence[Fields] = (),
    buffers: Sequence[Buffer] = (),
    metadata: Sequence[tuple[str, int]] = (("odml.infra.proto.LlmParameters", 0), ("backend", 1)),
    operators: bool = False,
    subgraphs: int = 1,
) -> bytes:
    """Build a head whose first two buffers are an empty LlmParameters and b"cpu" at 4096; `buffers` follow them."""
    ranges = [(4096, 0), (4096, 3), *buffers]
    root: dict[int, Any] = {
        0: Scalar("I", 3),
        2: [{0: list(tensors), 4: "X"}] * subgraphs,
        4: [{1: Scalar("Q", offset), 2: Scalar("Q", size)} for offset, size in ranges],
        6: [{0: name, 1: Scalar("I", index)} for name, index in metadata],
    }
    if operators:
        root[1] = [{}]
    return build_flatbuffer(root, b"TFL3")


def tensor(name: str, shape: Sequence[int], type_code: int, buffer: int) -> Fields:
    return {0: tuple(shape), 1: Scalar("B", type_code), 2: Scalar("I", buffer), 3: name}


def save(path: Path, head_bytes: bytes, size: int = 8192, backend: bytes = b"cpu") -> Path:
    data = bytearray(head_bytes.ljust(size, b"\0"))
    data[4096:4099] = backend
    path.write_bytes(data)
    return path


FLOAT32, INT32, INT8, INT4 = 0, 2, 9, 17
SMALL = (4160, 16)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"tensors": [tensor("a", [4], FLOAT32, 9)]}, CorruptFileError, "'a': buffer index 9 is out of range"),
        ({"metadata": [("odml.infra.proto.LlmParameters", 7)]}, CorruptFileError, "buffer index 7 is out of range"),
        ({"metadata": []}, CorruptFileError, "there is no metadata entry odml.infra.proto.LlmParameters"),
        ({"metadata": [("backend", 1)] * 2}, CorruptFileError, "metadata entry 'backend' appears twice"),
        ({"subgraphs": 0}, CorruptFileError, "expected 1 subgraph, got 0"),
        ({"subgraphs": 2}, CorruptFileError, "expected 1 subgraph, got 2"),
        ({"operators": True}, UnsupportedModelError, "LiteRT model with operators"),
        ({"operators": True, "metadata": []}, UnsupportedModelError, "LiteRT model with operators"),
        (
            {"tensors": [tensor("a", [4], FLOAT32, 2)], "buffers": [(8190, 16)]},
            TruncatedFileError,
            "tensor 'a': expected 16 bytes at offset 8190, but the file has 8192",
        ),
        (
            {"tensors": [tensor("a", [4], FLOAT32, 2)], "buffers": [(2**64 - 8, 16)]},
            TruncatedFileError,
            f"expected 16 bytes at offset {2**64 - 8}",
        ),
        (
            {"tensors": [tensor("a", [4], FLOAT32, 2)], "buffers": [(4160, 2**64 - 16)]},
            TruncatedFileError,
            f"expected {2**64 - 16} bytes",
        ),
        (
            {"tensors": [tensor("a", [4], FLOAT32, 2), tensor("b", [4], FLOAT32, 3)], "buffers": [SMALL, (4172, 16)]},
            CorruptFileError,
            "tensor 'b': bytes 4172 to 4188 overlap tensor 'a', which ends at 4176",
        ),
        (
            {"tensors": [tensor("a", [4], FLOAT32, 2), tensor("b", [4], FLOAT32, 2)], "buffers": [SMALL]},
            CorruptFileError,
            "tensor 'b': .* overlap tensor 'a'",
        ),
        (
            {"tensors": [tensor("a", [4], FLOAT32, 2)], "buffers": [(0, 16)]},
            CorruptFileError,
            "tensor 'a': bytes 0 to 16 overlap the head",
        ),
        (
            {"tensors": [tensor("a", [1], FLOAT32, 2), tensor("a", [1], FLOAT32, 3)], "buffers": [SMALL, (4224, 16)]},
            CorruptFileError,
            "tensor 'a' appears twice",
        ),
        (
            {"tensors": [tensor("a", [2**31 - 1] * 4, INT8, 2)], "buffers": [SMALL]},
            CorruptFileError,
            "more than the file's 8192 bytes hold",
        ),
        (
            {"tensors": [tensor("a", [1] * 9, INT8, 2)], "buffers": [SMALL]},
            CorruptFileError,
            "at most 8 dimensions",
        ),
        (
            {"tensors": [tensor("a", [-4, -4], INT8, 2)], "buffers": [SMALL]},
            CorruptFileError,
            r"none negative, got \[-4, -4\]",
        ),
        (
            {"tensors": [tensor("a", [5], FLOAT32, 2)], "buffers": [SMALL]},
            CorruptFileError,
            r"tensor 'a': FLOAT32 \[5\] takes 20 bytes, but its buffer has 16",
        ),
        (
            {"metadata": [("odml.infra.proto.LlmParameters", 2)], "buffers": [(4096, (1 << 20) + 1)]},
            TruncatedFileError,
            "expected 1048577 bytes",
        ),
        (
            {"tensors": [tensor("a", [4], FLOAT32, 2)], "buffers": [(4097, 16)]},
            CorruptFileError,
            "overlap metadata entry backend",
        ),
    ],
)
def test_a_head_that_contradicts_itself_or_the_file_is_refused(
    content: dict[str, Any], error: type[HearthLMError], message: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "m.bin", head(**content))
    with pytest.raises(error, match=message):
        WeightsBin.open(path)


def test_names_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Texts may overlap in a flatbuffer; thousands of bytes of name for every 8 of the file would fill the memory."""
    count, length = 400, 0x0E0E
    tensors = [tensor(f"NAME{i:04}", [1], FLOAT32, 2) for i in range(count)]
    data = bytearray(head(tensors=tensors, buffers=[(1 << 17, 4)]))
    end = len(data)
    slots = {slot + struct.unpack_from("<I", data, slot)[0]: slot for slot in range(8, end - 3, 4)}
    for i in range(count):
        slot = slots[data.index(f"NAME{i:04}".encode()) - 4]
        struct.pack_into("<I", data, slot, end + 8 * i - slot)
    for i in range(count + length // 8 + 1):
        data += struct.pack("<I", length) + f"{i:04}".encode()
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(data).ljust(1 << 18, b"\0"))
    with pytest.raises(CorruptFileError, match="the names of tensors are longer than the head that holds them"):
        WeightsBin.open(path)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 12, 63, 64])
def test_a_short_file_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes((GOLDEN / "outputs/0.10.14/gemma_2b_cpu_int4.bin").read_bytes()[:size])
    with pytest.raises(TruncatedFileError, match=f"there are {size}"):
        WeightsBin.open(path)


@pytest.mark.parametrize("name", ["0.10.35/gemma2_2b_cpu_int8", "0.10.14/phi_2_cpu_hftok"])
def test_every_truncation_is_named(name: str, tmp_path: Path) -> None:
    whole = (GOLDEN / "outputs" / f"{name}.bin").read_bytes()
    path = tmp_path / "m.bin"
    last = max(t.offset + t.num_bytes for t in open_golden(name).tensors.values())
    for size in range(1, last, 53):
        path.write_bytes(whole[:size])
        with pytest.raises(TruncatedFileError):
            WeightsBin.open(path)


def test_an_empty_file_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "m.bin").touch()
    with pytest.raises(TruncatedFileError, match="the file is empty"):
        WeightsBin.open(tmp_path / "m.bin")
    with pytest.raises(IsADirectoryError):
        WeightsBin.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        WeightsBin.open(tmp_path / "missing.bin")


def test_a_device_is_refused() -> None:
    with pytest.raises(OSError, match="expected a regular file"):
        WeightsBin.open("/dev/null")


def test_another_identifier_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.bin", b"\x10\0\0\0TFL2")
    with pytest.raises(CorruptFileError, match="expected b'TFL3' at offset 4, got b'TFL2'"):
        WeightsBin.open(path)


def test_a_head_beyond_the_first_mebibyte_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.bin", struct.pack("<I", MAX_HEAD_BYTES + 64) + b"TFL3", size=2 * MAX_HEAD_BYTES)
    with pytest.raises(TruncatedFileError, match=r"\(its first 1048576 bytes, which must hold the head\): root table"):
        WeightsBin.open(path)


@pytest.mark.parametrize(
    ("entry", "data", "error", "message"),
    [
        ("odml.infra.proto.LlmParameters", b"\x0a\xff", CorruptFileError, "LlmParameters cannot be decoded"),
        ("odml.infra.proto.LlmParameters", bytes(1 << 21), CorruptFileError, "expected at most 1048576 bytes"),
        ("backend", b"npu", UnsupportedModelError, "backend: expected 'cpu' or 'gpu', got b'npu'"),
        ("hearthlm", b"[]", CorruptFileError, "expected a JSON object, got list"),
        ("hearthlm", b"{", CorruptFileError, "not valid JSON"),
        ("hearthlm", b"{}", CorruptFileError, "version: expected a positive integer"),
        ("hearthlm", b'{"version":true}', CorruptFileError, "version: expected a positive integer"),
        ("hearthlm", b'{"version":2}', UnsupportedModelError, "a newer hearthlm wrote this file"),
        ("hearthlm", b'{"version":1,"a":1,"a":2}', CorruptFileError, "the key 'a' appears twice"),
        ("hearthlm", b'{"version":1,"a":NaN}', CorruptFileError, "NaN is not a JSON number"),
        ("hearthlm", b'{"version":1,"a":' + b"[" * 40 + b"]" * 40 + b"}", CorruptFileError, "more than 32 deep"),
        ("hearthlm", b'{"version":1,"a":[' + b"0," * 200_001 + b"0]}", CorruptFileError, "more than 200000 values"),
    ],
)
def test_a_bad_metadata_entry_is_refused(
    entry: str, data: bytes, error: type[HearthLMError], message: str, tmp_path: Path
) -> None:
    metadata = {"odml.infra.proto.LlmParameters": 0, "backend": 1, entry: 2}
    path = save(tmp_path / "m.bin", head(metadata=list(metadata.items()), buffers=[(8192, len(data))]))
    path.write_bytes(path.read_bytes() + data)
    with pytest.raises(error, match=message):
        WeightsBin.open(path)


def matrix_file(path: Path, tensors: Sequence[tuple[str, Sequence[int], int, bytes]], backend: bytes = b"cpu") -> Path:
    """Write a file with these tensors as (name, shape, type, bytes)."""
    buffers = []
    data = b""
    for _, _, _, content in tensors:
        buffers.append((8192 + len(data), len(content)))
        data += content.ljust(64, b"\0")
    fields = [tensor(name, shape, code, 2 + i) for i, (name, shape, code, _) in enumerate(tensors)]
    save(path, head(tensors=fields, buffers=buffers), backend=backend)
    path.write_bytes(path.read_bytes() + data)
    return path


ONES = np.ones(4, np.float32).tobytes()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "there is no tensor 'a.w' among its 0"),
        ([("a.w", [4, 4], INT8, bytes(16))], "tensor 'a.w': its scale tensor 'a.w_quantized_scale' is missing"),
        (
            [("a.w", [4, 4], INT8, bytes(16)), ("a.w_quantized_scale", [3], FLOAT32, ONES[:12])],
            r"'a.w_quantized_scale': expected FLOAT32 \[4\], 16 bytes, got FLOAT32 \[3\], 12 bytes",
        ),
        (
            [("a.w", [4, 4], INT8, bytes(16)), ("a.w_quantized_scale", [4], INT32, ONES)],
            r"expected FLOAT32 \[4\], 16 bytes, got INT32 \[4\], 16 bytes",
        ),
        ([("a.w", [4, 5], INT8, bytes(20))], r"expected a matrix \[4, 4\], 16 bytes, got INT8 \[4, 5\], 20 bytes"),
        ([("a.w", [2, 8], INT8, bytes(16))], r"expected a matrix \[4, 4\], 16 bytes, got INT8 \[2, 8\], 16 bytes"),
        ([("a.w", [4, 4], INT4, bytes(8))], "its scale tensor"),
        ([("a.w", [16], INT32, bytes(64))], "expected FLOAT32, INT8 or INT4, got INT32"),
        ([("a.w", [4, 2], FLOAT32, bytes(32))], r"expected a matrix \[4, 4\], 64 bytes, got FLOAT32 \[4, 2\]"),
        ([("a.w", [4, 4], 77, bytes(16))], r"expected FLOAT32, INT8 or INT4, got TYPE_77 \[4, 4\], 16 bytes"),
    ],
)
def test_a_matrix_that_is_not_what_the_model_needs_is_refused(
    tensors: list[tuple[str, list[int], int, bytes]], message: str, tmp_path: Path
) -> None:
    with (
        WeightsBin.open(matrix_file(tmp_path / "m.bin", tensors)) as file,
        pytest.raises(TensorMismatchError, match=message),
    ):
        file.matrix("a.w", (4, 4))


def test_a_vector_of_another_length_or_type_is_refused(tmp_path: Path) -> None:
    path = matrix_file(tmp_path / "m.bin", [("a", [4], FLOAT32, ONES), ("b", [4], INT32, ONES)])
    with WeightsBin.open(path) as file:
        for name, length in (("a", 5), ("b", 4), ("c", 4)):
            with pytest.raises(TensorMismatchError, match=f"tensor '{name}'"):
                file.vector(name, length)
        np.testing.assert_array_equal(file.vector("a", 4), np.ones(4))
        with pytest.raises(ValueError, match="expected two positive numbers"):
            file.matrix("a", (0, 4))


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    scales = np.array([1, np.inf, 1, np.nan], np.float32).tobytes()
    tensors = [("a.w", [4, 4], INT8, bytes(16)), ("a.w_quantized_scale", [4], FLOAT32, scales)]
    with (
        WeightsBin.open(matrix_file(tmp_path / "m.bin", tensors)) as file,
        pytest.raises(CorruptFileError, match="'a.w_quantized_scale': row 1 is inf"),
    ):
        file.matrix("a.w", (4, 4))


def test_gpu_rows_that_are_no_multiple_of_4_are_refused(tmp_path: Path) -> None:
    path = matrix_file(tmp_path / "m.bin", [("a.w", [12], INT8, bytes(12))], backend=b"gpu")
    with WeightsBin.open(path) as file, pytest.raises(TensorMismatchError, match="to have multiples of 4"):
        file.matrix("a.w", (2, 6))


def test_wrong_sums_are_found(tmp_path: Path) -> None:
    sums = np.array([0, 0, 1, 0], np.int32).tobytes()
    tensors = [
        ("a.w", [4, 4], INT8, bytes(16)),
        ("a.w_quantized_scale", [4], FLOAT32, ONES),
        ("a.w.sum_i", [4], INT32, sums),
    ]
    with WeightsBin.open(matrix_file(tmp_path / "m.bin", tensors)) as file:
        file.matrix("a.w", (4, 4))
        with pytest.raises(CorruptFileError, match="1 of 4 rows do not add up to 'a.w.sum_i'; the first is row 2"):
            file.verify()


@pytest.mark.parametrize("sums", [("a.w.sum_i", [4], FLOAT32, ONES), ("a.w.sum_i", [0], INT32, b"")])
def test_sums_of_another_type_are_refused(sums: tuple[str, list[int], int, bytes], tmp_path: Path) -> None:
    path = matrix_file(tmp_path / "m.bin", [("a.w", [4, 4], INT8, bytes(16)), sums])
    with WeightsBin.open(path) as file, pytest.raises(TensorMismatchError, match="expected INT32"):
        file.verify()


@pytest.mark.parametrize("weight", [("a.w", [4, 4], FLOAT32, ONES * 4), ("a.w", [0, 4], INT8, b"")])
def test_sums_of_what_has_none_are_refused(weight: tuple[str, list[int], int, bytes], tmp_path: Path) -> None:
    path = matrix_file(tmp_path / "m.bin", [weight, ("a.w.sum_i", [4], INT32, ONES)])
    with WeightsBin.open(path) as file, pytest.raises(TensorMismatchError, match="expected INT8 or INT4 of 4 rows"):
        file.verify()


def test_a_tensor_at_an_odd_offset_is_copied_to_where_code_may_read_it(tmp_path: Path) -> None:
    path = save(tmp_path / "m.bin", head(tensors=[tensor("a", [4], FLOAT32, 2)], buffers=[(5001, 16)]))
    data = bytearray(path.read_bytes())
    data[5001:5017] = ONES
    path.write_bytes(data)
    with WeightsBin.open(path) as file:
        vector = file.vector("a", 4)
        assert vector.flags.aligned and not vector.flags.writeable
        np.testing.assert_array_equal(vector, np.ones(4))


def test_a_broken_bin_is_still_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes((GOLDEN / "outputs/0.10.14/gemma_2b_cpu_int4.bin").read_bytes()[:4000])
    assert detect_format(path) == "weights_bin"
    assert not is_weights_bin(b"\x10\0\0\0TFL3" + bytes(100))
    assert not is_weights_bin(b"")


# The message


def test_the_messages_do_not_collide_with_mediapipe() -> None:
    assert DESCRIPTOR.package == "hearthlm.formats"


def test_the_generated_messages_are_those_of_the_proto() -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="needs grpcio-tools")
    from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

    proto = Path(DESCRIPTOR.name)
    source = Path(__file__).parents[1] / "src"
    output = Path(__file__).parent / "descriptors.pb"
    try:
        assert protoc.main(["protoc", f"-I{source}", f"--descriptor_set_out={output}", str(source / proto)]) == 0
        compiled = FileDescriptorSet.FromString(output.read_bytes()).file[0]
    finally:
        output.unlink(missing_ok=True)
    generated = FileDescriptorProto()
    DESCRIPTOR.CopyToProto(generated)
    for message in (compiled, generated):
        _forget_json_names(message)
    assert generated == compiled


def _forget_json_names(message: Any) -> None:
    """protoc writes a name into the descriptor that the generated module leaves out."""
    for field in getattr(message, "field", []):
        field.ClearField("json_name")
    for nested in [*getattr(message, "message_type", []), *getattr(message, "nested_type", [])]:
        _forget_json_names(nested)
