"""LiteRT-LM in a browser, on WebAssembly and XNNPACK, answers from exported bundles as our engine does.

Run by `make test-web`. It offers conversations only, so that the turns are judged, too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_exported_in_litert_lm import CHATML, NUM_TOKENS, lively_checkpoint, our_answer, tokenizer_model
from test_web_runtime import Browser, browser

from hearthlm.exporter import export_bundle

pytestmark = pytest.mark.web

__all__ = ["browser", "tokenizer_model"]  # fixtures

RUNTIME = "@litert-lm/core"
SAID = ["the little boat", "hi"]
GEMMA_TURNS = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
CHATML_TURNS = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("kind", "template", "turns"), [("gemma3_mqa", None, GEMMA_TURNS), ("llama_untied", CHATML, CHATML_TURNS)]
)
def test_the_browser_answers_as_we_do(
    kind: str, template: str | None, turns: str, browser: Browser, tokenizer_model: bytes, tmp_path: Path
) -> None:
    folder = lively_checkpoint(tmp_path / "checkpoint", kind, tokenizer_model)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    path = tmp_path / "model.litertlm"
    export_bundle(folder, path, (8, 32), 128, "none")
    answers = browser.answers(RUNTIME, path, SAID, maxTokens=128, maxOutputTokens=NUM_TOKENS)
    for said, answer in zip(SAID, answers, strict=True):
        assert answer["text"] == our_answer(folder, turns.format(said))[1]
