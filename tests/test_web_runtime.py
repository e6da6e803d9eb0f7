"""MediaPipe's own web runtime, in a browser, answers from our GPU files as our engine does, token by token.

Run by `make test-web`. The browser renders WebGPU in software, in float32, which takes about half a minute a model.
Answers are greedy, and compared up to the first token that is too close a call; the seeds are chosen so that there is
none, or a late one. Every test prints how close they came.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from safetensors.numpy import load_file, save_file

from hearthlm import LlmInference, LlmInferenceOptions, LlmInferenceSessionOptions, PromptTemplates
from hearthlm.converter import ConversionConfig, convert_checkpoint
from hearthlm.tokenizers import from_hugging_face, from_sentencepiece

pytestmark = pytest.mark.web

GOLDEN = Path(__file__).parent / "golden"
WEB = Path(__file__).parent / "web"
NEW, OLD = "@mediapipe/tasks-genai", "@mediapipe/tasks-genai-0.10.14"
PROMPTS = ["the file is", "Return an object by name"]
MAX_TOKENS = 56  # of prompt and answer

_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "tie_word_embeddings": False}
_GEMMA = _SIZES | {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 768,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}
_BYTE_LEVEL = _SIZES | {"vocab_size": 300, "hidden_size": 320, "bos_token_id": 296, "eos_token_id": 296}
_PHI = {"intermediate_size": 960, "num_key_value_heads": 4}
_FALCON = {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}


_SHARP = {"q_proj.weight": 3, "query_key_value.weight": 2, "o_proj.weight": 3, "down_proj.weight": 3}
_HEAVY = {"post_attention_layernorm.weight": 5, "post_feedforward_layernorm.weight": 5}


@dataclass(frozen=True)
class Kind:
    """Describe a kind of model: MediaPipe's type, the runtime that runs it without a fault of its own, config.json.

    `factors` of the weights, by the ends of their names, make every token depend on the whole text: without them
    these models repeat themselves. Logits that are not more than `close` apart are a close call.
    """

    model_type: str
    runtime: str
    config: dict[str, Any]
    factors: Mapping[str, float] = field(default_factory=lambda: _SHARP)
    close: float = 0.01


# The heads of 80 are those of the published models: their rotary parts are fixed numbers of channels in the runtime.
KINDS = {
    "gemma_mqa": Kind("GEMMA_2B", NEW, _GEMMA | {"model_type": "gemma", "num_key_value_heads": 1}),
    "gemma_mha": Kind("GEMMA_7B", NEW, _GEMMA | {"model_type": "gemma", "num_key_value_heads": 4}),
    "gemma2": Kind(
        "GEMMA2_2B",
        NEW,
        _GEMMA
        | {"model_type": "gemma2", "num_key_value_heads": 2, "query_pre_attn_scalar": 64}
        | {"attn_logit_softcapping": 6.0, "final_logit_softcapping": 12.0},
        _SHARP | _HEAVY,
    ),
    # The newer runtime turns the sign of ALiBi round: docs/decisions.md.
    "falcon": Kind(
        "FALCON_RW_1B",
        OLD,
        _BYTE_LEVEL
        | _FALCON
        | {"model_type": "falcon", "hidden_size": 256, "ffn_hidden_size": 768, "num_attention_heads": 32},
    ),
    # The newer runtime compiles no shader for these two, and the older one has StableLM in float16.
    "phi": Kind("PHI_2", OLD, _BYTE_LEVEL | _PHI | {"model_type": "phi", "partial_rotary_factor": 0.4}),
    "stablelm": Kind("STABLELM_4E1T_3B", OLD, _BYTE_LEVEL | _PHI | {"model_type": "stablelm"}, close=0.1),
}


# The browser


class Browser:
    """Ask MediaPipe's web runtime; one browser for all models."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def answers(
        self, runtime: str, model: Path, prompts: list[str], adapter: Path | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Return {"numTokens", "text"} for each prompt: how many tokens the prompt has, and the greedy answer."""
        # the older runtime has no top-k without a seed, and the newer one computes in float32 where it is told to
        options = {"maxTokens": MAX_TOKENS, "topK": 1, "randomSeed": 1, "forceF32": True, **options}
        request = {
            "runtime": runtime,
            "model": str(model),
            "adapter": None if adapter is None else str(adapter),
            "options": options,
            "prompts": prompts,
            "timeoutS": 400,
        }
        reply = self._exchange(request)
        assert "answers" in reply, f"{reply['error']}\n" + "\n".join(reply["log"])
        answers: list[dict[str, Any]] = reply["answers"]
        return answers

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the browser has ended; what it said is above")
        reply: dict[str, Any] = json.loads(line)
        return reply


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    commands = {name: shutil.which(name) for name in ("chromium", "node")}
    for name, path in commands.items():
        if path is None:
            pytest.skip(f"{name} is missing; on Debian: apt-get install -y chromium nodejs npm")
    if not (WEB / "node_modules" / "playwright-core").is_dir():
        pytest.skip("the npm packages are missing; `make test-web` installs them into tests/web, with npm")
    command = [str(commands["node"]), str(WEB / "answer.mjs"), str(commands["chromium"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        browser = Browser(process)
        browser.read()  # its version: it has started
        yield browser
        assert process.stdin is not None
        process.stdin.close()  # it ends itself


# Models


def write_checkpoint(kind: Kind, seed: int, folder: Path, stop_ids: tuple[int, ...] = ()) -> Path:
    """Write a random model that says nothing but printable ASCII, and `stop_ids`.

    The runtime prints other bytes in its own manner; what may not be said has logits of 0, far from the largest.
    """
    folder.mkdir()
    tensors = random_models.random_tensors(kind.config, seed)
    for name, values in tensors.items():
        values *= next((factor for end, factor in kind.factors.items() if name.endswith(end)), 1)
    if kind.config["tie_word_embeddings"]:
        shutil.copyfile(GOLDEN / "tokenizers" / "bpe_512_byte_fallback.model", folder / "tokenizer.model")
        tokenizer = from_sentencepiece((folder / "tokenizer.model").read_bytes())
        output = tensors["model.embed_tokens.weight"]
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(GOLDEN / "inputs" / "hf_bpe" / name, folder / name)
        tokenizer = from_hugging_face((folder / "tokenizer.json").read_bytes())
        output = tensors["lm_head.weight"]
    for i in range(len(output)):
        spelled = tokenizer.token_bytes(i)
        is_text = not tokenizer.is_special(i) and not tokenizer.piece(i).startswith("<0x")
        is_printable = spelled.isascii() and spelled.decode("latin-1").isprintable()
        if i not in stop_ids and not (is_text and is_printable):
            output[i] = 0
    random_models.write_checkpoint(folder, kind.config, tensors)
    if stop_ids:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, *stop_ids]}))
    return folder


def write_adapter(checkpoint: Path, modules: str, seed: int, folder: Path) -> Path:
    """Write a PEFT adapter of rank 4 for every matrix of every layer whose name matches `modules`."""
    generator = np.random.default_rng(seed)
    factors = {}
    for name, values in load_file(checkpoint / "model.safetensors").items():
        if values.ndim == 2 and re.search(rf"\.\d+\..*({modules})", name):
            out, columns = values.shape
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{module}.lora_A.weight"] = generator.normal(0, columns**-0.5, (4, columns)).astype(np.float32)
            factors[f"{module}.lora_B.weight"] = generator.normal(0, 0.5, (out, 4)).astype(np.float32)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return folder


def convert(kind: Kind, checkpoint: Path, bits: tuple[int, int, int], **settings: Any) -> Path:
    attention, feed_forward, embedding = bits
    config = ConversionConfig(
        checkpoint,
        "safetensors",
        kind.model_type,
        "gpu",
        checkpoint.parent,
        attention_quant_bits=attention,
        feedforward_quant_bits=feed_forward,
        embedding_quant_bits=embedding,
        **settings,
    )
    plan = convert_checkpoint(config)
    assert plan.model_type == kind.model_type
    return Path(plan.output_file)


@dataclass(frozen=True)
class Ours:
    """Hold our answer up to the first close call."""

    text: str
    num_tokens: int
    gap: float  # the smallest between the logits of the two most likely tokens
    is_whole: bool
    finish_reason: str
    num_prompt_tokens: int  # without the start token


def our_answers(kind: Kind, model: Path, prompts: list[str], adapter: Path | None = None) -> list[Ours]:
    options = LlmInferenceOptions(
        model,
        max_tokens=MAX_TOKENS,
        activation_data_type="float32",
        kv_cache_dtype="float32",
        lora_path=adapter,
        num_threads=1,
    )
    greedy = LlmInferenceSessionOptions(top_k=1, logprobs=2, prompt_templates=PromptTemplates())
    answers = []
    with LlmInference.create_from_options(options) as llm:
        for prompt in prompts:
            result = llm.generate(prompt, greedy)
            assert result.logprobs is not None
            gaps = [entry.top[0][1] - entry.top[1][1] for entry in result.logprobs[0]]
            count = next((i for i, gap in enumerate(gaps) if gap <= kind.close), len(gaps))
            is_whole = count == len(gaps)
            text = result.texts[0] if is_whole else llm.tokenizer.decode(result.token_ids[0][:count], at_start=False)
            size = llm.size_in_tokens(prompt)
            gap = min(gaps[:count], default=kind.close)
            answers.append(Ours(text, count, gap, is_whole, result.finish_reason, size))
    return answers


def compare(what: str, ours: list[Ours], theirs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    for mine, answer in zip(ours, theirs, strict=True):
        assert answer["numTokens"] == mine.num_prompt_tokens
        text, wanted = answer["text"].lstrip(), mine.text.lstrip()  # the older runtime takes white space off
        assert (text if mine.is_whole else text[: len(wanted)]) == wanted, what
    count, gap = sum(mine.num_tokens for mine in ours), min(mine.gap for mine in ours)
    with capsys.disabled():
        print(f"\n{what}: {count} tokens equal, logits at least {gap:.3f} apart")


SEEDS = {
    ("gemma_mqa", (8, 8, 8)): 5,
    ("gemma_mqa", (4, 4, 4)): 5,
    ("gemma_mqa", (8, 4, 8)): 3,
    ("gemma_mha", (8, 8, 8)): 0,
    ("gemma_mha", (4, 4, 4)): 19,
    ("gemma2", (8, 8, 8)): 4,
    ("gemma2", (4, 4, 4)): 0,
    ("falcon", (8, 8, 8)): 1,
    ("falcon", (4, 4, 4)): 19,
    ("phi", (8, 8, 8)): 2,
    ("phi", (4, 4, 4)): 3,
    ("stablelm", (8, 8, 8)): 12,
    ("stablelm", (4, 4, 4)): 1,
}


@pytest.mark.parametrize(("name", "bits"), SEEDS)
def test_the_browser_answers_as_we_do(
    name: str, bits: tuple[int, int, int], browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS[name]
    checkpoint = write_checkpoint(kind, SEEDS[name, bits], tmp_path / "checkpoint")
    model = convert(kind, checkpoint, bits)
    ours = our_answers(kind, model, PROMPTS)
    assert sum(answer.num_tokens for answer in ours) >= 30, "too many close calls: choose another seed"
    compare(f"{name} {bits}", ours, browser.answers(kind.runtime, model, PROMPTS), capsys)


# The older runtime knows no adapters of feed-forward layers.
@pytest.mark.parametrize(
    ("name", "modules", "seed"), [("gemma_mqa", "attn|mlp", 5), ("phi", "attn", 5), ("falcon", "attention", 4)]
)
def test_an_adapter_changes_the_answer_as_it_changes_ours(
    name: str, modules: str, seed: int, browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS[name]
    checkpoint = write_checkpoint(kind, SEEDS[name, (8, 8, 8)], tmp_path / "checkpoint")
    peft = write_adapter(checkpoint, modules, seed, tmp_path / "peft")
    adapter = tmp_path / "adapter.bin"
    model = convert(kind, checkpoint, (8, 8, 8), lora_ckpt=peft, lora_output_tflite_file=adapter)
    ours = our_answers(kind, model, PROMPTS, adapter)
    assert sum(answer.num_tokens for answer in ours) >= 30, "too many close calls: choose another seed"
    plain = our_answers(kind, model, PROMPTS)
    assert all(mine.text[:20] != other.text[:20] for mine, other in zip(ours, plain, strict=True))
    theirs = browser.answers(kind.runtime, model, PROMPTS, adapter, loraRanks=[4])
    compare(f"{name} with an adapter", ours, theirs, capsys)


def test_an_answer_ends_where_the_checkpoint_says(
    browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MediaPipe's own converter writes `<eos>` whatever the checkpoint says, and its answers go on after their end."""
    kind = KINDS["gemma_mqa"]
    checkpoint = write_checkpoint(kind, 5, tmp_path / "checkpoint", stop_ids=(5,))
    model = convert(kind, checkpoint, (8, 8, 8))
    prompts = PROMPTS[1:]
    ours = our_answers(kind, model, prompts)
    assert ours[0].finish_reason == "stop"
    compare("stop token", ours, browser.answers(kind.runtime, model, prompts), capsys)
