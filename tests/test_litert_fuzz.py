"""Mutated LiteRT models are refused by the verifier, or LiteRT runs them and lives.

Most changes know the format: they hit offsets, sizes, shapes, indices, codes, options and small constants. What the
verifier lets through is loaded and run by ai-edge-litert in a process of its own.
"""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hearthlm.errors import HearthLMError, UnsupportedModelError
from hearthlm.formats import flatbuffer, litert_verifier
from hearthlm.formats.litert_operators import OPERATORS, Call
from hearthlm.formats.litert_verifier import verify_litert_model
from hearthlm.formats.litertlm import LiteRtLmFile, NewSection, write_litertlm
from hearthlm.formats.task_bundle import METADATA, MODEL, TOKENIZER, TaskBundle, write_task_bundle

pytest.importorskip("ai_edge_litert")

from ai_edge_litert import schema_py_generated as schema
from litert_operator_samples import SAMPLES, TYPES, Sample, T, build, c

GOLDEN = Path(__file__).parent / "golden" / "litert"
MAX_SECONDS = 60

INTERESTING = [0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**24]
INTERESTING += [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 16, 2**64 - 1]


@dataclass(frozen=True)
class Seed:
    """A sound model, and the places in it that mean something: (position, number of bytes)."""

    name: str
    data: bytes
    values: list[tuple[int, int]]  # scalars, indices, shapes, small constants
    places: list[tuple[int, int]]  # offsets, sizes, vtables


def seed(name: str, data: bytes) -> Seed:
    """Return the model with what the verifier read of it."""
    values: set[tuple[int, int]] = set()
    needs: set[tuple[int, int]] = set()
    need = flatbuffer.FlatbufferReader.need
    scalar, integers, byte_range = flatbuffer.Table.scalar, flatbuffer.Table.integers, flatbuffer.Table.byte_range

    def recorded_need(self: Any, position: int, size: int, what: str) -> None:
        need(self, position, size, what)
        needs.add((position, size))

    def recorded_scalar(self: Any, field: int, layout: struct.Struct, default: int = 0) -> int:
        if (position := self._locate(field, layout.size)) is not None:
            values.add((position, layout.size))
        return scalar(self, field, layout, default)

    def recorded_integers(self: Any, field: int, max_count: int = 4096) -> tuple[int, ...]:
        begin, count = self._vector(field, 4, "")
        values.update((begin + 4 * i, 4) for i in range(count))
        return integers(self, field, max_count)

    def recorded_bytes(self: Any, field: int) -> tuple[int, int]:
        begin, count = byte_range(self, field)
        if count <= 128:
            values.update((begin + i, 4) for i in range(0, count - 3, 4))
            values.update((begin + i, 1) for i in range(count))
        return begin, count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatbuffer.FlatbufferReader, "need", recorded_need)
        patch.setattr(flatbuffer.Table, "scalar", recorded_scalar)
        patch.setattr(flatbuffer.Table, "integers", recorded_integers)
        patch.setattr(flatbuffer.Table, "byte_range", recorded_bytes)
        verify_litert_model(data, name)
    places = {(p + 2 * i, 2) for p, size in needs if size <= 64 for i in range(size // 2)}
    places |= {(p, size) for p, size in needs if size in (4, 8)}
    return Seed(name, data, sorted(values), sorted(places - values))


def mutated(model: Seed, dice: random.Random) -> bytes:
    """Return a model with a few changes, four of five of them where the format means something."""
    data = bytearray(model.data)
    for _ in range(dice.choice([1, 1, 1, 1, 2, 3, 6])):
        kind = dice.random()
        if kind < 0.2:
            position, size = dice.randrange(len(data)), dice.choice([1, 1, 2, 4, 8])
        else:
            position, size = dice.choice(model.values if kind < 0.75 else model.places)
        size = min(size, len(data) - position)
        old = int.from_bytes(data[position : position + size], "little")
        choice = dice.randrange(6)
        if choice == 0:
            new = dice.choice(INTERESTING)
        elif choice == 1:
            new = old + dice.choice([-16, -4, -2, -1, 1, 2, 4, 16])
        elif choice == 2:
            new = old ^ 1 << dice.randrange(8 * size)
        elif choice == 3:
            other, width = dice.choice(model.values)
            new = int.from_bytes(data[other : other + width], "little")
        elif choice == 4:
            new = dice.randrange(256)
        else:
            new = dice.choice([old * 2, old // 2, old * 4, -old])
        data[position : position + size] = (new % 256**size).to_bytes(size, "little")
    if dice.random() < 0.02:
        del data[dice.randrange(len(data)) :]
    return bytes(data)


class Child:
    """A process that runs models; one that dies is named by its signal."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "litert_child.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._line() == "ready"

    def run(self, path: Path) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], MAX_SECONDS)[0]:
            return f"did not answer in {MAX_SECONDS} s"
        if line := self._process.stdout.readline():
            return str(line).rstrip("\n")
        code = self._process.wait()
        return f"died of {signal.Signals(-code).name if code < 0 else code}"


@contextmanager
def running() -> Iterator[Child]:
    child = Child()
    try:
        yield child
    finally:
        child.close()


def fuzz(
    seeds: list[Seed], cases: range, folder: Path, change: Callable[[Seed, random.Random], bytes]
) -> dict[str, int]:
    """Return what became of mutants; fails with those that hurt. `change` returns a model, out of a file or not."""
    outcomes = {"refused by us": 0, "refused by LiteRT": 0, "ran": 0}
    path, hurt = folder / "m.tflite", []
    with running() as child:
        for case in cases:
            dice = random.Random(case)
            model = seeds[case % len(seeds)]
            try:
                data = change(model, dice)
                verify_litert_model(data, "m")
            except HearthLMError as error:
                assert str(error), f"case {case}: an error without a message"
                outcomes["refused by us"] += 1
                continue
            except Exception as error:
                error.add_note(f"case {case} of {model.name}")
                raise
            path.write_bytes(data)
            answer = child.run(path)
            if answer.startswith("ran"):
                outcomes["ran"] += 1
            elif answer.startswith("refused"):
                outcomes["refused by LiteRT"] += 1
                if os.environ.get("HEARTHLM_FUZZ_VERBOSE"):
                    print(case, model.name, answer)
            else:
                hurt.append(f"case {case} of {model.name}: LiteRT {answer}")
                if keep := os.environ.get("HEARTHLM_FUZZ_KEEP"):
                    (Path(keep) / f"{case}.tflite").write_bytes(data)
                    print(hurt[-1], flush=True)
                child.close()
                child = Child()
    assert not hurt, hurt
    return outcomes


@pytest.fixture(scope="module")
def seeds() -> list[Seed]:
    """Return models with weights outside of the flatbuffer and inside, of 8 bits and of 4 in blocks."""
    with LiteRtLmFile.open(GOLDEN / "hf_llama_wi8.litertlm") as file:
        llama = seed("llama", bytes(file.data(file.language_model)))
    with TaskBundle.open(GOLDEN / "gemma3_q8_ekv128.task") as bundle:
        gemma = seed("gemma", bytes(bundle.entry(MODEL)))
    return [llama, gemma, seed("blocks", (GOLDEN / "gemma3_q4_block32_ekv128.tflite").read_bytes())]


def in_task(path: Path) -> Callable[[Seed, random.Random], bytes]:
    """Return what changes a `.task` around its model, or the model in it, and takes the model out."""

    def change(model: Seed, dice: random.Random) -> bytes:
        whole = dice.random() < 0.6
        data = mutated(model, dice) if whole else model.data
        parts = {MODEL: data, TOKENIZER: b"t", METADATA: b"2\x05<bos>*\x05<eos>B\x08\x0a\x06kindly"}
        write_task_bundle(path, parts)
        if not whole:
            path.write_bytes(around(path.read_bytes(), [(0, 64), (len(data), 1 << 20)], dice))
        with TaskBundle.open(path) as bundle:
            bundle.check_text_only()
            _ = bundle.llm_metadata, bundle.sentencepiece_model
            return bytes(bundle.entry(MODEL))

    return change


def in_litertlm(path: Path) -> Callable[[Seed, random.Random], bytes]:
    """Return what changes a `.litertlm` around its model, or the model in it, and takes the model out."""
    with LiteRtLmFile.open(GOLDEN / "hf_llama_wi8.litertlm") as file:
        rest = [NewSection(s.kind, bytes(file.data(s)), s.labels) for s in file.sections if s.kind != "tflite"]
    labels = {"model_type": "tf_lite_prefill_decode"}

    def change(model: Seed, dice: random.Random) -> bytes:
        whole = dice.random() < 0.6
        data = mutated(model, dice) if whole else model.data
        own = NewSection("binary", b"B\x08\x0a\x06kindly", {"hearthlm": "METADATA"})
        write_litertlm(path, [*rest, own, NewSection("tflite", data, labels)])
        if not whole:
            places = [(0, 1024), (16384, 600), (2 * 16384, 300), (3 * 16384, 8192), (4 * 16384, 16)]
            path.write_bytes(around(path.read_bytes(), places, dice))
        with LiteRtLmFile.open(path) as found:
            _ = found.metadata, found.executor_metadata, found.sentencepiece_model, found.tokenizer_json
            return bytes(found.data(found.language_model))

    return change


def around(data: bytes, places: list[tuple[int, int]], dice: random.Random) -> bytes:
    """Return `data` with a few changes in ranges of it, given as (begin, number of bytes)."""
    result = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 4])):
        begin, count = dice.choice(places)
        begin = min(begin, len(data) - 1)
        position, size = begin + dice.randrange(min(count, len(data) - begin)), dice.choice([1, 1, 2, 4, 8])
        new = dice.choice([dice.choice(INTERESTING), dice.randrange(256), len(data) - position]) % 256**size
        result[position : position + size] = new.to_bytes(size, "little")
    return bytes(result[: dice.randrange(len(result))] if dice.random() < 0.05 else result)


def resampled(sample: Sample, dice: random.Random) -> Sample | None:
    """Return the same operator with other shapes, constants and options, None where its rule refuses them.

    The outputs are those that the rule expects.
    """

    def number(old: int) -> int:
        return dice.choice([old, old, 1, 2, 3, 4, 5, 7, 8, 16, 33, old + 1, old - 1, -old])

    def other(t: T | None) -> T | None:
        if t is None or dice.random() < 0.3:
            return t
        shape = tuple(max(1, number(n)) for n in t.shape)
        if dice.random() < 0.2:
            shape = dice.choice([shape[1:], (*shape, dice.choice([1, 2])), (dice.choice([1, 3]), *shape)])
        if t.values is None or t.dtype not in ("int32", "int64") or t.values.ndim > 1:
            return t if t.values is not None else replace(t, shape=shape)
        flat = [number(int(v)) for v in t.values.reshape(-1)]
        if t.values.ndim == 1 and dice.random() < 0.2:
            flat = dice.choice([flat[1:], [*flat, dice.choice([1, 2])]])
        return c(*flat, dtype=t.dtype) if t.values.ndim else replace(t, values=np.array(flat[0], t.dtype))

    options = {k: number(v) if type(v) is int else v for k, v in sample.options.items()}
    if dice.random() < 0.2:
        options |= {k: dice.choice([True, False]) for k in sample.options if type(sample.options[k]) is bool}
    # All outputs are those of the sample at first: the verifier says which the rule expects.
    found = replace(sample, inputs=[other(t) for t in sample.inputs], options=options)
    operator = OPERATORS[getattr(schema.BuiltinOperator, sample.name)]
    seen: list[Any] = []

    def rule(call: Call) -> Any:
        seen.extend(operator.rule(call))
        raise UnsupportedModelError("seen")

    with pytest.MonkeyPatch.context() as patch, suppress(HearthLMError):
        patch.setattr(litert_verifier, "OPERATORS", {**OPERATORS, **{
            code: replace(o, rule=rule) for code, o in OPERATORS.items() if o is operator
        }})  # fmt: skip
        verify_litert_model(build(found), "m")
    if not seen or len(seen) != len(found.outputs) or any(0 in shape for _, shape in seen):
        return None
    names = {number: name for name, number in TYPES.items()}
    pairs = zip(found.outputs, seen, strict=True)
    return replace(found, outputs=[replace(t, dtype=names[kind], shape=shape) for t, (kind, shape) in pairs])


def change_operator(model: Seed, dice: random.Random) -> bytes:
    """Return one of the models of one operator, changed in its meaning or in its bytes."""
    sample = dice.choice(SAMPLES)
    if dice.random() < 0.6:
        return build(resampled(sample, dice) or sample)
    return mutated(seed(sample.name, build(sample)), dice)


KINDS: dict[str, Callable[[Path], Callable[[Seed, random.Random], bytes]]] = {
    "tflite": lambda folder: mutated,
    "task": lambda folder: in_task(folder / "m.task"),
    "litertlm": lambda folder: in_litertlm(folder / "m.litertlm"),
    "operators": lambda folder: change_operator,
}
FEW = {"tflite": 90, "task": 40, "litertlm": 40, "operators": 200}
MANY = {"tflite": 12_000, "task": 4_000, "litertlm": 4_000, "operators": 20_000}


@pytest.mark.parametrize("kind", KINDS)
def test_some_mutants_do_no_harm(kind: str, seeds: list[Seed], tmp_path: Path) -> None:
    outcomes = fuzz(seeds, range(FEW[kind]), tmp_path, KINDS[kind](tmp_path))
    assert outcomes["refused by us"] > FEW[kind] // 20 and outcomes["ran"] > 0, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutants_do_no_harm(kind: str, seeds: list[Seed], tmp_path: Path) -> None:
    outcomes = fuzz(seeds, range(1000, 1000 + MANY[kind]), tmp_path, KINDS[kind](tmp_path))
    assert outcomes["refused by us"] > MANY[kind] // 20 and outcomes["ran"] > MANY[kind] // 20, outcomes
