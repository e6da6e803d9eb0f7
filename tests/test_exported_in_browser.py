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
PLAIN = "{% for message in messages %}{{ message['content'] + '\\n' }}{% endfor %}"
# A chat template for the families that have none of their own, and what it makes of the first turn.
KINDS = {
    "gemma3_mqa": (None, GEMMA_TURNS),
    "gemma2_gqa": (None, GEMMA_TURNS),
    "llama_untied": (CHATML, CHATML_TURNS),
    "qwen2_bias": (CHATML, CHATML_TURNS),
    "phi_parallel": (PLAIN, "{}\n"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_browser_answers_as_we_do(kind: str, browser: Browser, tokenizer_model: bytes, tmp_path: Path) -> None:
    template, turns = KINDS[kind]
    folder = lively_checkpoint(tmp_path / "checkpoint", kind, tokenizer_model)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    path = tmp_path / "model.litertlm"
    export_bundle(folder, path, (8, 32), 128, "none")
    answers = browser.answers(RUNTIME, path, SAID, maxTokens=128, maxOutputTokens=NUM_TOKENS)
    ours = [our_answer(folder, turns.format(said)) for said in SAID]
    assert len({i for ids, _ in ours for i in ids}) > 8
    assert [answer["text"] for answer in answers] == [text for _, text in ours]
