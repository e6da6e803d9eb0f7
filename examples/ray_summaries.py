"""Sum up every text file of a folder on a Ray cluster, and write a table of the summaries as Parquet."""

import sys
from pathlib import Path

import ray

from hearthlm.demo import model_path
from hearthlm.integrations.ray import BatchPredictor, actor_memory

FOLDER = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "passages")
TARGET = sys.argv[2] if len(sys.argv) > 2 else "summaries"
MODEL, THREADS = str(model_path()), 1


def prompt_of(row: dict[str, str]) -> dict[str, str]:
    return {"key": Path(row["path"]).name, "prompt": f"Sum up this passage in one sentence.\n\n{row['text']}"}


def main() -> None:
    texts = ray.data.read_binary_files(FOLDER, include_paths=True, file_extensions=["txt"])
    texts = texts.map(lambda row: prompt_of({"path": row["path"], "text": row["bytes"].decode("utf-8", "replace")}))
    answers = texts.map_batches(
        BatchPredictor,
        fn_constructor_args=[MODEL, {"temperature": 0, "max_output_tokens": 60}],
        batch_size=64,
        num_cpus=THREADS,
        memory=actor_memory(MODEL),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
    )
    answers.drop_columns(["prompt"]).write_parquet(TARGET)
    for row in ray.data.read_parquet(TARGET).sort("key").take(5):
        print(f"{row['key']}: {row['text'] or row['error']}")


if __name__ == "__main__":
    main()
