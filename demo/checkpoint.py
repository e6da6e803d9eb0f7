"""Write the demo model as a Hugging Face checkpoint, to fine-tune it: `python checkpoint.py FOLDER [MODEL.bin]`."""

from __future__ import annotations

import sys
from pathlib import Path

from network import load_model_bin, save_hugging_face

from hearthlm.demo import model_path

if __name__ == "__main__":
    network, tokenizer = load_model_bin(Path(sys.argv[2]) if len(sys.argv) > 2 else model_path())
    save_hugging_face(network, tokenizer, Path(sys.argv[1]))
