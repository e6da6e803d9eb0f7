"""Train the demo model's SentencePiece tokenizer: `python train_tokenizer.py tokenizer.model`."""

from __future__ import annotations

import io
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from text_generator import write_conversation

VOCAB_SIZE = 2048
NUM_CONVERSATIONS = 24_000
TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"
_DELIMITER = "\u2063"


def render_turns(turns: list[tuple[str, str]]) -> str:
    """Write prompts and answers as Gemma turns, without the start token."""
    return "".join(
        f"{TURN_START}user\n{prompt}{TURN_END}\n{TURN_START}model\n{answer}{TURN_END}\n" for prompt, answer in turns
    )


def _corpus() -> Iterator[str]:
    """Yield lines; a space and a capital never share a piece, so that a name is cut alike wherever it stands."""
    rng = random.Random(1)
    for _ in range(NUM_CONVERSATIONS):
        text = render_turns([(turn.prompt, turn.answer) for turn in write_conversation(rng)])
        for line in re.split(f"{TURN_START}|{TURN_END}|\n", text):
            if line:
                yield re.sub(r" (?=[A-Z])", " " + _DELIMITER, line)


def train_tokenizer(path: Path) -> None:
    """Train and write the tokenizer; the same code gives the same bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=[TURN_START, TURN_END, "\n"],
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        pretokenization_delimiter=_DELIMITER,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


if __name__ == "__main__":
    train_tokenizer(Path(sys.argv[1]))
