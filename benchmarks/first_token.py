"""Seconds from the start of a process to the first text of an answer, and what `import hearthlm` takes beside NumPy's.

The file is in the page cache; a prompt of 32 tokens; the best of several starts, with Python's compiled files in place
as after any installation. The process is `hearthlm run`, once with mapped weights and once as it chooses.

    python benchmarks/first_token.py MODEL.bin [--threads 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import hearthlm

NUM_PROMPT_TOKENS = 32
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def prompt_of(model: str) -> str:
    """Return a text of `NUM_PROMPT_TOKENS` tokens, with the start token, in the model's vocabulary."""
    raw = hearthlm.LlmInferenceSessionOptions(prompt_templates=hearthlm.PromptTemplates())
    text = ""
    with hearthlm.LlmInference.create_from_model_path(model) as llm:
        for letter in "the lamp is on the table by the door and the cat is under it " * 4:
            if len(llm.prompt_ids(text, raw)) >= NUM_PROMPT_TOKENS:
                break
            text += letter
    return text


def first_text_s(command: list[str]) -> float:
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - started
        process.kill()
    return seconds


def run_s(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prompt = prompt_of(arguments.model)
    rounds = range(arguments.rounds)
    for weights in ("mmap", "auto"):
        command = [sys.executable, "-m", "hearthlm", "run", arguments.model, prompt, "--raw", "--weights", weights]
        command += ["--threads", str(arguments.threads), "--max-output-tokens", "64"]
        print(f"first text, --weights {weights}: {min(first_text_s(command) for _ in rounds):.3f} s")
    numpy_s, ours_s = (min(run_s(code) for _ in rounds) for code in ("import numpy", "import numpy, hearthlm"))
    print(f"import hearthlm, beside NumPy: {ours_s - numpy_s:.3f} s")


if __name__ == "__main__":
    main()
