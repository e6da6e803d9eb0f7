"""Rows per second on a Ray cluster of this machine with 1 and 2 actors, and what a killed actor costs.

200 prompts, 64 tokens each, the demo model, one thread an actor. The time is from the first batch that an actor begins
to the last that one ends, so that Ray's own start is not in it. The third run kills one of two actors (SIGKILL) in its
third batch; the texts of all runs are compared.

    python benchmarks/ray_rows.py [--rows 200] [--model FILE.bin]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OPTIONS = {"top_k": 1, "max_output_tokens": 64}


def run(model: str, num_rows: int, actors: int, scratch: Path | None) -> tuple[float, dict[str, str]]:
    """Return rows per second and the texts by key; one actor is killed if there is a folder to note that in."""
    import ray

    from hearthlm.integrations.ray import BatchPredictor

    class Timed(BatchPredictor):
        num_batches = 0

        def __call__(self, batch: Any) -> dict[str, Any]:
            started = time.time()
            self.num_batches += 1
            if scratch is not None and self.num_batches == 3:
                try:
                    os.close(os.open(scratch / "killed", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            answered = super().__call__(batch)
            count = len(batch["key"])
            return {**answered, "begin": [started] * count, "end": [time.time()] * count}

    things = ("fox", "lantern", "clock", "sailor", "owl", "garden", "kite", "train")
    rows = [{"key": str(i), "prompt": f"Tell me a story about a {things[i % 8]} ({i})."} for i in range(num_rows)]
    found = (
        ray.data.from_items(rows, override_num_blocks=2 * (num_rows // 16))
        .map_batches(
            Timed,
            fn_constructor_kwargs={"model": model, "options": OPTIONS, "max_tokens": 256},
            batch_size=16,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
        )
        .take_all()
    )
    seconds = max(row["end"] for row in found) - min(row["begin"] for row in found)
    return len(found) / seconds, {row["key"]: row["text"] for row in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    from hearthlm.demo import model_path

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    texts: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for actors, scratch in ((1, None), (2, None), (2, Path(folder))):
            rate, found = run(arguments.model or str(model_path()), arguments.rows, actors, scratch)
            texts.append(found)
            lost = arguments.rows - len(found)
            line = {"actors": actors, "killed": scratch is not None, "rows_per_s": round(rate, 2), "rows_lost": lost}
            print(json.dumps(line), flush=True)
    if any(found != texts[0] for found in texts):
        sys.exit("the texts differ")


if __name__ == "__main__":
    main()
