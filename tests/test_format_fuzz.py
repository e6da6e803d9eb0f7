"""Mutated files are refused by an error of ours or read whole: in time, and in memory bounded by their size.

`HEARTHLM_FUZZ_CASES=20000 pytest tests/test_format_fuzz.py` runs as many mutations of each format as before a release.
"""

from __future__ import annotations

import json
import math
import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from litert_models import litert_model

from hearthlm.errors import ModelFormatError, UnsupportedModelError
from hearthlm.formats import detect_format
from hearthlm.formats.litert_model import llm_signatures
from hearthlm.formats.litertlm import LiteRtLmFile
from hearthlm.formats.safetensors_file import SafetensorsFile
from hearthlm.formats.task_bundle import METADATA, MODEL, TOKENIZER, TOKENIZER_JSON, TaskBundle, write_task_bundle
from hearthlm.formats.torch_zip import TorchZip
from hearthlm.formats.weights_bin import WeightsBin

GOLDEN = Path(__file__).parent / "golden"
CASES = int(os.environ.get("HEARTHLM_FUZZ_CASES", "2000"))
MAX_SECONDS = 2
MAX_MORE_BYTES = 64 << 20

INTERESTING = [0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**31 + 1]
INTERESTING += [2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 2, 2**64 - 1]

Refused = (ModelFormatError, UnsupportedModelError)


def mutated(data: bytes, head: int, dice: random.Random) -> bytes:
    """Return `data` with a few changes, four of five in its first `head` bytes."""
    result = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
        end = min(head, len(result)) if dice.random() < 0.8 else len(result)
        position = dice.randrange(max(1, end))
        kind = dice.randrange(8)
        if kind <= 1 and result:
            result[position % len(result)] ^= 1 << dice.randrange(8)
        elif kind == 2 and result:
            result[position % len(result)] = dice.randrange(256)
        elif kind <= 4:
            size = dice.choice([2, 4, 4, 8])
            position -= position % dice.choice([1, size])
            value = (dice.choice(INTERESTING) + dice.choice([0, 0, 0, -1, 1])) % 256**size
            result[position : position + size] = value.to_bytes(size, "little")
        elif kind == 5:
            count = dice.randrange(1, 32)
            source = dice.randrange(max(1, end))
            result[position : position + count] = result[source : source + count]
        elif kind == 6:
            count = dice.choice([1, 2, 4, 8, 64])
            if dice.random() < 0.5:
                del result[position : position + count]
            else:
                result[position:position] = bytes(dice.randrange(256) for _ in range(count))
        elif dice.random() < 0.3:
            del result[position:]
    return bytes(result)


def fuzz(seeds: list[tuple[bytes, int]], change: Callable[[bytes, int, random.Random], bytes], path: Path,
         read: Callable[[Path], None]) -> None:  # fmt: skip
    """Read `CASES` mutations of `seeds`, each with the size of its head."""
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for case in range(CASES):
            dice = random.Random(case)
            data = change(*seeds[case % len(seeds)], dice)
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            start = time.perf_counter()
            with suppress(*Refused):
                detect_format(path)
            try:
                read(path)
                outcomes["read"] += 1
            except Refused as error:
                assert str(error), f"case {case}: an error without a message"
                outcomes["refused"] += 1
            except Exception as error:
                error.add_note(f"case {case} of {path.name}")
                raise
            seconds = time.perf_counter() - start
            more = tracemalloc.get_traced_memory()[1] - before
            assert seconds < MAX_SECONDS, f"case {case}: {seconds:.1f} s"
            assert more < len(data) + MAX_MORE_BYTES, f"case {case}: {more >> 20} MiB for a file of {len(data)} bytes"
    finally:
        tracemalloc.stop()
    assert outcomes["read"] > CASES // 100 and outcomes["refused"] > CASES // 100, outcomes


def read_weights_bin(path: Path) -> None:
    with WeightsBin.open(path) as file:
        assert file.parameters is not None
        problems: list[Exception] = []
        _ = file.tokenizer
        for action in (file.verify, file.lost_zero_points):
            try:
                action()
            except Refused as error:
                problems.append(error)
        for name, tensor in file.tensors.items():
            scales = file.tensors.get(f"{name}_quantized_scale")
            try:
                if scales is None or scales.num_bytes < 4:
                    file.vector(name, tensor.num_bytes // 4)
                else:
                    out = scales.num_bytes // 4
                    columns = tensor.num_bytes * (2 if tensor.type == "INT4" else 1) // out
                    matrix = file.matrix(name, (out, max(1, columns)))
                    matrix.data.tobytes()
            except Refused as error:
                problems.append(error)
        if problems:
            raise problems[0]


def test_mutated_weights_bins(tmp_path: Path) -> None:
    names = ["0.10.14/gemma_2b_cpu_a8f4e8", "0.10.14/gemma_2b_gpu_asym_int4", "0.10.21/gemma_2b_gpu_int8"]
    names += ["0.10.35/gemma2_2b_cpu_int4", "0.10.14/gemma_2b_gpu_lora_lora"]
    seeds = []
    for name in names:
        data = (GOLDEN / "outputs" / f"{name}.bin").read_bytes().rstrip(b"\0") + bytes(64)
        with WeightsBin.open(GOLDEN / "outputs" / f"{name}.bin") as file:
            first = min(tensor.offset for tensor in file.tensors.values())
        seeds.append((data, min(first, 8192)))
    fuzz(seeds, mutated, tmp_path / "m.bin", read_weights_bin)


def read_safetensors(path: Path) -> None:
    file = SafetensorsFile.open(path)
    try:
        for name in file.tensors:
            _, values = file.array(name)
            values.tobytes()
    finally:
        file.close()


def mutated_header(data: bytes, head: int, dice: random.Random) -> bytes:
    """Change bytes, or one value of the header's JSON."""
    if dice.random() < 0.5:
        return mutated(data, head, dice)
    header = json.loads(data[8:head])
    entry = header[dice.choice(sorted(header.keys() - {"__metadata__"}))]
    values: list[Any] = [*INTERESTING, -1, -(2**63), 2**64, 1.5, 1e308, None, True]
    values += ["F32", "I64", "\ud800", [], {}, [0] * 70]
    field = dice.choice(["dtype", "shape", "data_offsets"])
    if field == "dtype" or dice.random() < 0.2:
        entry[field] = dice.choice([*values, "F16", "BF16", "F4", "F64"])
    else:
        entry[field][dice.randrange(len(entry[field]))] = dice.choice(values)
    if dice.random() < 0.2:
        header[dice.choice(["", "a", "__metadata__", "../x", "\0", "\ud800"])] = dice.choice([entry, *values])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[head:]


def test_mutated_safetensors(tmp_path: Path) -> None:
    seeds = []
    for name in ("gemma_2b_bf16/model", "gemma_2b_lora_r4/adapter_model"):
        data = (GOLDEN / "inputs" / f"{name}.safetensors").read_bytes()
        seeds.append((data, 8 + int.from_bytes(data[:8], "little")))
    fuzz(seeds, mutated_header, tmp_path / "m.safetensors", read_safetensors)


def read_torch_zip(path: Path) -> None:
    file = TorchZip.open(path)
    try:
        for name in file.tensors:
            try:
                _, values = file.array(name)
            except UnsupportedModelError:
                continue
            assert values.size == math.prod(file.shape(name))
            values.tobytes()
    finally:
        file.close()


def mutated_archive(data: bytes, head: int, dice: random.Random) -> bytes:
    """Change bytes of the pickle, which comes first, or of the directory at the end."""
    if dice.random() < 0.5:
        return mutated(data, head, dice)
    directory = data.index(b"PK\x01\x02")
    return data[:directory] + mutated(data[directory:], len(data) - directory, dice)


def test_mutated_torch_archives(tmp_path: Path) -> None:
    data = (GOLDEN / "inputs/falcon/pytorch_model.bin").read_bytes()
    fuzz([(data, data.index(b"PK\x07\x08"))], mutated_archive, tmp_path / "m.bin", read_torch_zip)


def read_task_bundle(path: Path) -> None:
    with TaskBundle.open(path) as bundle:
        _ = bundle.sentencepiece_model, bundle.tokenizer_json, bundle.parameters.stop_tokens, bundle.llm_metadata
        llm_signatures(bundle.model, "m")
        for name in bundle.entries:
            bytes(bundle.entry(name))


def mutated_bundle(data: bytes, head: int, dice: random.Random) -> bytes:
    """Change the archive's records, or the model inside, and leave each whole in turn."""
    if dice.random() < 0.5:
        return mutated_archive(data, head, dice)
    model = mutated(data[56:head], head - 56, dice)[: head - 56].ljust(head - 56, b"\0")
    return data[:56] + model + data[head:]


def test_mutated_task_bundles(tmp_path: Path) -> None:
    model, path = tmp_path / "m.tflite", tmp_path / "m.task"
    model.write_bytes(litert_model())
    write_task_bundle(path, {MODEL: model, TOKENIZER: b"t", METADATA: b"2\x05<bos>", TOKENIZER_JSON: b"{}"})
    data = path.read_bytes()
    fuzz([(data, data.index(TOKENIZER.encode()) - 32)], mutated_bundle, path, read_task_bundle)


def read_litertlm(path: Path) -> None:
    with LiteRtLmFile.open(path) as file:
        _ = file.sentencepiece_model, file.tokenizer_json, file.own_entry("METADATA")
        _ = file.metadata, file.executor_metadata
        for section in file.sections:
            bytes(file.data(section))


def test_mutated_litertlm_files(tmp_path: Path) -> None:
    data = (Path(__file__).parent / "golden" / "litert" / "hf_llama_wi8.litertlm").read_bytes()[: 4 * 16384]
    end = int.from_bytes(data[24:32], "little")  # the last section is cut off: half of the mutants begin with that lie
    whole = data.replace(struct.pack("<Q", 724848), struct.pack("<Q", len(data)))

    def mutated_sections(data: bytes, head: int, dice: random.Random) -> bytes:
        """Change the header, or what lies in a message."""
        if dice.random() < 0.5:
            return mutated(data, head, dice)
        begin, size = dice.choice([(16384, 519), (2 * 16384, 266)])
        section = mutated(data[begin : begin + size], size, dice)[:size].ljust(size, b"\0")
        return data[:begin] + section + data[begin + size :]

    fuzz([(whole, end), (data, end)], mutated_sections, tmp_path / "m.litertlm", read_litertlm)


@pytest.mark.parametrize("size", [0, 1, 3, 7, 8, 21, 64])
def test_tiny_files(size: int, tmp_path: Path) -> None:
    for fill in (b"\0", b"\xff", b"PK\x05\x06", b"TFL3", b"{"):
        path = tmp_path / "m"
        path.write_bytes((fill * 64)[:size])
        for read in (read_weights_bin, read_safetensors, read_torch_zip, read_task_bundle, read_litertlm):
            with pytest.raises(Refused):
                read(path)
