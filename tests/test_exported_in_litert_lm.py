"""LiteRT-LM, the engine of Android and iOS, answers from exported bundles as our engine does from the checkpoint.

Run by `make test-peers`. Answers are greedy: 40 tokens after a prompt that two prefill signatures take in, one of them
filled up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import CONFIGS, random_tensors, write_checkpoint

from hearthlm import LlmInference, LlmInferenceSessionOptions
from hearthlm.exporter import ExportQuantization, export_bundle
from hearthlm.formats.litertlm import LiteRtLmFile
from hearthlm.formats.task_bundle import TaskBundle
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.model import Model
from hearthlm.runtime.transformer import TransformerExecutor
from hearthlm.tokenizers import from_sentencepiece

pytestmark = pytest.mark.peer

GOLDEN = Path(__file__).parent / "golden" / "litert" / "gemma3_q8_ekv128.task"  # for its tokenizer, of 512 tokens
PROMPT = "the little boat went over the sea and"
NUM_TOKENS = 40
KINDS = ["gemma3_mqa", "gemma2_gqa", "llama_untied", "qwen2_bias", "phi_parallel"]


@pytest.fixture(scope="module")
def tokenizer_model() -> bytes:
    with TaskBundle.open(GOLDEN) as bundle:
        return bundle.sentencepiece_model


def lively_checkpoint(folder: Path, kind: str, tokenizer_model: bytes) -> Path:
    """Write a random checkpoint that does not repeat itself.

    Where the output is the embedding, a large embedding makes the last token the best guess; here it is small, and the
    last norm makes up for it.
    """
    config = CONFIGS[kind] | {"vocab_size": 512, "bos_token_id": 2, "eos_token_id": 1}
    tensors = random_tensors(config)
    if "lm_head.weight" not in tensors:
        tensors["model.embed_tokens.weight"] *= np.float32(0.1)
        offset = np.float32(9.0 if config["model_type"].startswith("gemma") else 0.0)  # Gemma stores the factor - 1
        tensors["model.norm.weight"] = 10 * tensors["model.norm.weight"] + offset
    write_checkpoint(folder, config, tensors)
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    return folder


def our_answer(folder: Path, prompt: str) -> tuple[list[int], str]:
    """Return the greedy answer of our network on the float checkpoint."""
    with Model.open(folder) as model:
        executor = TransformerExecutor(model.architecture, model.load_weights(), num_threads=1)
        state, taken = executor.new_state(), [2, *model.tokenizer.encode(prompt)]
        answer: list[int] = []
        while len(answer) < NUM_TOKENS:
            [logits] = executor.forward([ForwardRequest(state, taken, "last")])
            assert logits is not None
            token = int(logits[0].argmax())
            if token in model.stop_ids:
                break
            answer.append(token)
            taken = [token]
        text = model.tokenizer.decode(answer)
        executor.close()
    return answer, text


def own_answer(path: Path, prompt: str) -> str:
    """Return the greedy answer of our runtime on the exported file, to the prompt as it is."""
    with LlmInference.create_from_model_path(path) as llm:
        options = LlmInferenceSessionOptions(top_k=1, max_output_tokens=NUM_TOKENS)
        return llm.generate([2, *llm.tokenizer.encode(prompt)], options).texts[0]


def peer_answer(path: Path, prompt: str) -> str:
    """Return the greedy answer of LiteRT-LM; the session must end before its engine does."""
    import litert_lm

    greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    with litert_lm.Engine(str(path), backend=litert_lm.Backend.CPU(thread_count=1), cache_dir=":nocache") as engine:
        with engine.create_session(
            apply_prompt_template=False, sampler_config=greedy, max_output_tokens=NUM_TOKENS
        ) as session:
            session.run_prefill([prompt])
            text: str = session.run_decode().texts[0]
    return text


@pytest.mark.parametrize("ending", [".task", ".litertlm"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_float_bundle_answers_as_our_engine(kind: str, ending: str, tokenizer_model: bytes, tmp_path: Path) -> None:
    folder = lively_checkpoint(tmp_path / "checkpoint", kind, tokenizer_model)
    path = tmp_path / f"model{ending}"
    export_bundle(folder, path, (8, 32), 128, "none")
    answer, text = our_answer(folder, PROMPT)
    assert len(answer) == NUM_TOKENS and len(set(answer)) > 8
    assert own_answer(path, PROMPT) == peer_answer(path, PROMPT) == text


@pytest.mark.parametrize("quantization", ["int8", "int4", "int4_block32"])
def test_a_quantised_bundle_is_read(quantization: ExportQuantization, tokenizer_model: bytes, tmp_path: Path) -> None:
    folder = lively_checkpoint(tmp_path / "checkpoint", "gemma3_mqa", tokenizer_model)
    path = tmp_path / "model.litertlm"
    export_bundle(folder, path, (8, 32), 128, quantization)
    assert len(from_sentencepiece(tokenizer_model).encode(peer_answer(path, PROMPT))) > 8


def test_a_litertlm_may_have_the_default_layout(tokenizer_model: bytes, tmp_path: Path) -> None:
    folder = lively_checkpoint(tmp_path / "checkpoint", "llama_untied", tokenizer_model)
    path = tmp_path / "model.litertlm"
    export_bundle(folder, path, (8, 32), 128, "none", "default")
    with LiteRtLmFile.open(path) as file:
        assert file.executor_metadata is not None  # it says which axis counts tokens
        assert file.executor_metadata.llm_executor_metadata.state_buffers[0].sequence_axis == 1
    assert own_answer(path, PROMPT) == peer_answer(path, PROMPT) == our_answer(folder, PROMPT)[1]


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("ending", [".task", ".litertlm"])
def test_a_conversation_is_written_as_the_checkpoints_template_says(
    ending: str, tokenizer_model: bytes, tmp_path: Path
) -> None:
    import litert_lm

    folder = lively_checkpoint(tmp_path / "checkpoint", "qwen2_bias", tokenizer_model)
    (folder / "chat_template.jinja").write_text(CHATML)  # which takes strings, where LiteRT-LM gives it lists of parts
    path = tmp_path / f"model{ending}"
    export_bundle(folder, path, (8, 32), 128, "none")
    greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    with litert_lm.Engine(str(path), backend=litert_lm.Backend.CPU(thread_count=1), cache_dir=":nocache") as engine:
        with engine.create_conversation(sampler_config=greedy, max_output_tokens=NUM_TOKENS) as conversation:
            reply = conversation.send_message("hi")
    assert str(reply["content"][0]["text"]) == our_answer(folder, CHATML_HI)[1]


CHATML_HI = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_hugging_face_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    import litert_lm

    source = Path(__file__).parent / "golden" / "inputs" / "hf_bpe"
    vocab_size = max(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"].values()) + 64
    config: dict[str, Any] = CONFIGS["llama_untied"] | {"vocab_size": vocab_size, "eos_token_id": 1}
    folder = write_checkpoint(tmp_path / "checkpoint", config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    path = tmp_path / "model.litertlm"
    export_bundle(folder, path, (8, 32), 128, "none")
    with Model.open(folder) as model:
        ids = model.tokenizer.encode(PROMPT)
    with litert_lm.Engine(str(path), backend=litert_lm.Backend.CPU(thread_count=1), cache_dir=":nocache") as engine:
        assert engine.tokenize(PROMPT) == ids
