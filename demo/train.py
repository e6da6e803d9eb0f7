"""Train the demo model on the CPU: `python train.py RUN_FOLDER MINUTES [MODEL.bin [RATE]]`; started again, it goes on
from its checkpoint.

With MODEL.bin, an earlier demo model, training starts from its weights and its tokenizer; RATE, 1 unless given, is a
factor of the learning rates: a short run from a good model wants less. The learning rate follows the
time that is left, so that the run ends, fully cooled down, when the time is up. On a busy machine set
OMP_WAIT_POLICY=PASSIVE, so that a thread that waits for another leaves its core free.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from network import Network, NetworkConfig, load_model_bin, packed_mask, save_hugging_face
from text_generator import Turn, write_conversation
from torch import Tensor
from train_tokenizer import TURN_END, TURN_START, train_tokenizer

ROWS, LENGTH = 24, 256
MUON_RATE, ADAM_RATE, WARM_UP_STEPS = 0.02, 4e-3, 60
ANSWER_WEIGHTS = {"answer": 1.0, "decline": 1.0, "summary": 1.0, "story": 0.25, "cannot": 0.3}
# Learning to read the prompts shapes the network early on; later it only adds noise, as no prompt can be foreseen.
FIRST_PROMPT_WEIGHT, LAST_PROMPT_WEIGHT, PROMPT_WEIGHT_SETTLES_AT = 0.12, 0.02, 0.4
_PROMPT = -1.0  # marks a prompt's token among the weights
CHECKPOINT_SECONDS, EXPORT_AT = 240.0, (0.25, 0.6)


class Encoder:
    """Turns conversations into ids and loss weights."""

    def __init__(self, tokenizer_model: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))

    def encode(self, turns: list[Turn]) -> tuple[list[int], list[float]]:
        """Encode as many whole turns as fit into one row: ids, and each id's weight in the loss or `_PROMPT`."""
        ids, weights = [self.pieces.bos_id()], [0.0]
        for turn in turns:
            prompt = self.pieces.encode(f"{TURN_START}user\n{turn.prompt}{TURN_END}\n{TURN_START}model\n")
            answer = self.pieces.encode(turn.answer + TURN_END)
            if len(ids) + len(prompt) + len(answer) + 1 > LENGTH:
                break
            ids += prompt + answer + self.pieces.encode("\n")
            weights += [_PROMPT] * len(prompt) + [ANSWER_WEIGHTS[turn.task]] * len(answer) + [0.0]
        return ids[:-1], weights[:-1]


def pack_batches(seed: int, tokenizer_model: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches without end: ids, text numbers and weights, each [ROWS, LENGTH]; texts are never cut."""
    rng, encoder = random.Random(seed), Encoder(tokenizer_model)
    waiting: list[tuple[list[int], list[float]]] = []
    while True:
        while len(waiting) < 10 * ROWS:
            ids, weights = encoder.encode(write_conversation(rng))
            if len(ids) > 1:
                waiting.append((ids, weights))
        all_ids = np.zeros((ROWS, LENGTH), np.int64)
        documents = np.zeros((ROWS, LENGTH), np.int64)
        all_weights = np.zeros((ROWS, LENGTH), np.float32)
        for row in range(ROWS):
            used, number = 0, 1
            for index in range(len(waiting)):
                ids, weights = waiting[index]
                if not ids or used + len(ids) > LENGTH:
                    continue
                all_ids[row, used : used + len(ids)] = ids
                all_weights[row, used : used + len(ids)] = weights
                documents[row, used : used + len(ids)] = number
                used, number = used + len(ids), number + 1
                waiting[index] = ([], [])
                if used > LENGTH - 12:
                    break
            documents[row, used:] = number
            waiting = [item for item in waiting if item[0]]
        yield all_ids, documents, all_weights


def _produce(queue: Queue[tuple[np.ndarray, np.ndarray, np.ndarray]], seed: int, tokenizer_model: Path) -> None:
    for batch in pack_batches(seed, tokenizer_model):
        queue.put(batch)


def prompt_weight(progress: float) -> float:
    """Return the weight of a prompt's tokens in the loss at a share of the training time."""
    settled = min(1.0, progress / PROMPT_WEIGHT_SETTLES_AT)
    return FIRST_PROMPT_WEIGHT + (LAST_PROMPT_WEIGHT - FIRST_PROMPT_WEIGHT) * settled


def loss_of(network: Network, ids: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Compute the weighted mean loss of predicting each next id."""
    logits = network(ids, mask)[:, :-1]
    losses = F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none")
    flat = weights[:, 1:].reshape(-1)
    return (losses * flat).sum() / flat.sum()


def train(folder: Path, minutes: float, first_model: Path | None = None, rate: float = 1.0) -> None:
    """Train for the given time and export the Hugging Face folder `final`."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_model, checkpoint = folder / "tokenizer.model", folder / "checkpoint.pt"
    network = Network(NetworkConfig())
    if first_model is not None and not checkpoint.exists():
        network, tokenizer = load_model_bin(first_model)
        tokenizer_model.write_bytes(tokenizer)
    if not tokenizer_model.exists():
        train_tokenizer(tokenizer_model)
    matrices = [p for name, p in network.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in network.named_parameters() if p.dim() != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=MUON_RATE, momentum=0.95, weight_decay=0.0, ns_steps=4)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.97), weight_decay=0.0)
    step, tokens, spent = 0, 0, 0.0
    exported: set[float] = set()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, tokens, spent = state["step"], state["tokens"], state["spent"]
    queue: Queue[tuple[np.ndarray, np.ndarray, np.ndarray]] = multiprocessing.Queue(maxsize=24)
    seed = int.from_bytes(os.urandom(4))  # another run reads other texts
    producer = multiprocessing.Process(target=_produce, args=(queue, seed, tokenizer_model), daemon=True)
    producer.start()
    compiled = torch.compile(loss_of)
    started, saved = time.monotonic() - spent, time.monotonic()
    smooth = 0.0
    while True:
        spent = time.monotonic() - started
        progress = spent / (minutes * 60)
        if progress >= 1:
            break
        scale = rate * min(1.0, (step + 1) / WARM_UP_STEPS) * min(1.0, (1 - progress) / 0.5)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = MUON_RATE * scale, ADAM_RATE * scale
        ids, documents, weights = (torch.from_numpy(array) for array in queue.get())
        weights = torch.where(weights == _PROMPT, prompt_weight(progress), weights)
        loss = compiled(network, ids, packed_mask(documents), weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step()
        adam.step()
        network.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + int((weights > 0).sum())
        smooth = loss.item() if smooth == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 20 == 0:
            record = {
                "step": step,
                "seconds": round(spent),
                "tokens": tokens,
                "loss": round(smooth, 4),
                "now": round(loss.item(), 4),
            }
            print(json.dumps(record), flush=True)
        for share in EXPORT_AT:
            if progress >= share and share not in exported:
                exported.add(share)
                save_hugging_face(network, tokenizer_model.read_bytes(), folder / f"export_{step}")
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            saved = time.monotonic()
            states = {"network": network.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict()}
            torch.save(states | {"step": step, "tokens": tokens, "spent": spent}, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            save_hugging_face(network, tokenizer_model.read_bytes(), folder / "latest")
    save_hugging_face(network, tokenizer_model.read_bytes(), folder / "final")
    print(
        json.dumps({"step": step, "seconds": round(spent), "tokens": tokens, "loss": round(smooth, 4), "done": True}),
        flush=True,
    )
    producer.terminate()


if __name__ == "__main__":
    train(
        Path(sys.argv[1]),
        float(sys.argv[2]),
        Path(sys.argv[3]) if len(sys.argv) > 3 else None,
        float(sys.argv[4]) if len(sys.argv) > 4 else 1.0,
    )
