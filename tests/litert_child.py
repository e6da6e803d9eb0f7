"""Load and run the LiteRT models whose paths come in, one a line, and answer each with a line.

A process of its own, since a model that LiteRT should not have been given may end it.
"""

from __future__ import annotations

import resource
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter

MAX_BYTES = 16 << 30
WILD = [-(2**31), -1, 2**20, 2**31 - 1]


def values(shape: Any, dtype: Any, dice: np.random.Generator) -> Any:
    """Return something to put in: small numbers, and of integers now and then what no caller should give."""
    if np.issubdtype(dtype, np.integer):
        found = dice.integers(0, dice.choice([2, 5, 100]), shape)
        if dice.random() < 0.05:
            found = np.where(dice.random(shape) < 0.3, dice.choice(WILD, shape), found)
        return found.astype(dtype)
    if dtype == np.bool_:
        return dice.random(shape) < 0.5
    return dice.standard_normal(shape).astype(dtype)


def interpret(data: bytes, dice: np.random.Generator) -> int:
    """Run every signature in the Interpreter, and return how many there are."""
    interpreter = Interpreter(model_content=data, num_threads=1)
    names = list(interpreter.get_signature_list())
    for name in names:
        runner = interpreter.get_signature_runner(name)
        details = runner.get_input_details().items()
        for _ in range(2):
            runner(**{key: values(tuple(d["shape"]), d["dtype"], dice) for key, d in details})
    if not names:
        interpreter.allocate_tensors()
        interpreter.invoke()
    return len(names)


def compile_and_run(data: bytes, dice: np.random.Generator) -> int:
    """Run every signature in a CompiledModel, and return how many there are."""
    model = CompiledModel.from_buffer(data)
    signatures = model.get_signature_list()
    for index, name in enumerate(signatures):
        inputs, outputs = model.create_input_buffers(index), model.create_output_buffers(index)
        details = model.get_input_tensor_details(name)
        for buffer, key in zip(inputs, signatures[name]["inputs"], strict=True):
            detail = details[key]
            buffer.write(values(tuple(detail["shape"]), np.dtype(detail["dtype"]), dice))
        model.run_by_index(index, inputs, outputs)
    return len(signatures)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        data = path.read_bytes()
        dice = np.random.default_rng(zlib.crc32(data))
        run = interpret if dice.random() < 0.7 else compile_and_run
        try:
            answer = f"ran {run(data, dice)}"
        except Exception as error:
            answer = f"refused {run.__name__} {type(error).__name__}: {str(error).splitlines()[:1]}"
        print(answer, flush=True)


if __name__ == "__main__":
    main()
