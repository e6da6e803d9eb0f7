"""Converts checkpoints of published models' sizes: seconds, MB/s, peak memory; then loads the result and runs it once.

python benchmarks/conversion.py [FOLDER [VARIANT ...]]      about 60 GB of disk and a quarter of an hour for all of them
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_checkpoint import write_random_checkpoint

# What MediaPipe's converter was used for, by the names of the published files, and the newest model.
VARIANTS = {
    "gemma3-1b-cpu-int4": ("GEMMA3_1B", "cpu", 4),
    "gemma3-1b-gpu-int8": ("GEMMA3_1B", "gpu", 8),
    "gemma-2b-cpu-int4": ("GEMMA_2B", "cpu", 4),
    "gemma-2b-cpu-int8": ("GEMMA_2B", "cpu", 8),
    "gemma-2b-gpu-int4": ("GEMMA_2B", "gpu", 4),
    "gemma-2b-gpu-int8": ("GEMMA_2B", "gpu", 8),
    "gemma2-2b-cpu-int8": ("GEMMA2_2B", "cpu", 8),
    "gemma2-2b-gpu-int8": ("GEMMA2_2B", "gpu", 8),
    "phi-2-gpu-int8": ("PHI_2", "gpu", 8),
    "stablelm-3b-gpu-int8": ("STABLELM_4E1T_3B", "gpu", 8),
    "falcon-rw-1b-gpu-int8": ("FALCON_RW_1B", "gpu", 8),
    "gemma-1.1-7b-gpu-int8": ("GEMMA_7B", "gpu", 8),
}


def run(*arguments: str) -> tuple[float, float, str]:
    """Run hearthlm in a process of its own and return its seconds, its peak memory in MB and what it printed."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "hearthlm", *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"hearthlm {' '.join(arguments)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1000, printed.decode()


def measure(folder: Path, variant: str) -> None:
    """Convert one variant and print its row."""
    model_type, backend, bits = VARIANTS[variant]
    checkpoint = folder / model_type
    if not checkpoint.is_dir():
        for other in VARIANTS.values():
            shutil.rmtree(folder / other[0], ignore_errors=True)
        write_random_checkpoint(checkpoint, model_type)
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    output = folder / f"{variant}.bin"
    seconds, peak_mb, _ = run("convert", str(checkpoint), "--backend", backend, "--bits", str(bits), "-o", str(output))
    _, run_mb, printed = run("run", str(output), "t5 t6 t7", "--max-output-tokens", "4", "--json")
    usage = json.loads(printed)["usage"]
    print(
        f"| {variant} | {size / 1e6:,.0f} | {output.stat().st_size / 1e6:,.0f} | {seconds:.1f} "
        f"| {size / 1e6 / seconds:,.0f} | {peak_mb:,.0f} | {usage['completion_tokens']} tokens, {run_mb:,.0f} MB |",
        flush=True,
    )
    output.unlink()


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        print("| variant | checkpoint MB | file MB | seconds | MB/s read | peak RSS MB | loaded and run |")
        print("|---|---|---|---|---|---|---|")
        for variant in sys.argv[2:] or VARIANTS:
            measure(folder, variant)


if __name__ == "__main__":
    main()
