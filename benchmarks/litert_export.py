"""Exports checkpoints of published models' sizes to LiteRT: seconds, peak memory, file size; and in LiteRT-LM, speed.

python benchmarks/litert_export.py [FOLDER [VARIANT ...]]      about 8 GB of disk; `make test-peers` installs LiteRT-LM

The peak is the process's, the checkpoint's mapped pages included. LiteRT-LM's own benchmark gives tokens per second of
prefill (512 tokens) and decode (128), the better of two runs; hearthlm's beside it are those of a `.bin` of the same
checkpoint and bits, by `real_size.py`'s method.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from conversion import run
from random_checkpoint import write_random_checkpoint

VARIANTS = {
    "gemma3-1b-none": ("GEMMA3_1B", "none", ".tflite"),
    "gemma3-1b-int8": ("GEMMA3_1B", "int8", ".litertlm"),
    "gemma3-1b-int4": ("GEMMA3_1B", "int4", ".litertlm"),
    "gemma3-1b-int4-block32": ("GEMMA3_1B", "int4_block32", ".litertlm"),
    "gemma3-1b-int4-task": ("GEMMA3_1B", "int4", ".task"),
    "gemma2-2b-int8": ("GEMMA2_2B", "int8", ".litertlm"),
}

# In a process of its own, as litert-lm writes what it does to stderr.
_PEER = """
import json, resource, sys
import litert_lm
best = {}
for _ in range(2):
    result = litert_lm.Benchmark(
        sys.argv[1], litert_lm.Backend.CPU(thread_count=int(sys.argv[2])), prefill_tokens=512, decode_tokens=128,
        cache_dir=":nocache",
    ).run()
    for name in ("last_prefill_tokens_per_second", "last_decode_tokens_per_second"):
        best[name] = max(best.get(name, 0.0), getattr(result, name))
best["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(json.dumps(best))
"""


def in_litert_lm(path: Path, num_threads: int) -> str:
    """Return tokens per second and memory of a bundle in LiteRT-LM, as cells of the table."""
    if path.suffix not in (".task", ".litertlm"):
        return "- | - | -"
    command = [sys.executable, "-c", _PEER, str(path), str(num_threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1][:80]} | - | -"
    best = json.loads(done.stdout.splitlines()[-1])
    return (
        f"{best['last_prefill_tokens_per_second']:.0f} | {best['last_decode_tokens_per_second']:.1f} "
        f"| {best['peak_rss_mb']:,.0f}"
    )


def measure(folder: Path, variant: str, num_threads: int) -> None:
    """Export one variant and print its row."""
    model_type, quantization, ending = VARIANTS[variant]
    checkpoint = folder / model_type
    if not checkpoint.is_dir():
        write_random_checkpoint(checkpoint, model_type)
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    output = folder / f"{variant}{ending}"
    seconds, peak_mb, _ = run("export", str(checkpoint), "--quantization", quantization, "-o", str(output))
    print(
        f"| {variant}{ending} | {size / 1e6:,.0f} | {output.stat().st_size / 1e6:,.0f} | {seconds:.1f} "
        f"| {peak_mb:,.0f} | {in_litert_lm(output, num_threads)} |",
        flush=True,
    )
    output.unlink()


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        print("| variant | checkpoint MB | file MB | seconds | peak MB | prefill tok/s | decode tok/s | its peak MB |")
        print("|---|---|---|---|---|---|---|---|")
        for variant in sys.argv[2:] or VARIANTS:
            measure(folder, variant, num_threads=2)


if __name__ == "__main__":
    main()
