"""How near to float each way of rounding stays: `python quantization_quality.py CHECKPOINT`, see --help.

CHECKPOINT is the folder of the demo model in float, as demo/train.py writes it (RUN_FOLDER/latest). Prints, as a
table, the mean Kullback-Leibler divergence from the float model (nats per token of held-out texts, next-token
distributions), the perplexity of the answers in them, and the share of right answers. Q4_0 and Q8_0 are llama.cpp's
block formats; their values enter as float weights. Activations are float32 but for "KL, int8 activations" and the
answers, which are as the engine runs the model by default.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hearthlm.formats.llm_parameters import llm_parameters
from hearthlm.formats.llm_parameters_pb2 import LlmModelType
from hearthlm.formats.tensor_plan import TensorPlan
from hearthlm.formats.weights_bin import write_weights_bin
from hearthlm.models.family import TensorSpec
from hearthlm.quantization import QuantizationMethod, WeightMatrix, dequantize, quantize
from hearthlm.runtime.calibration import Calibration, calibration_ids, generated_ids
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.model import Model
from hearthlm.runtime.transformer import ActivationDataType, TransformerExecutor
from hearthlm.runtime.weights import Weights, load_weights

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
import evaluate
from train_tokenizer import TURN_END

Floats = NDArray[np.float32]
Round = Callable[[TensorSpec, Floats], WeightMatrix]


def q4_0(w: Floats) -> Floats:
    """Round as llama.cpp's Q4_0: blocks of 32, d = the value of largest magnitude / -8 as float16; 4.5 bits."""
    blocks = w.reshape(-1, 32)
    largest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
    d = largest / np.float32(-8)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    q = np.minimum(15, (blocks * inverse[:, None] + np.float32(8.5)).astype(np.int32)) - 8
    values: Floats = q.astype(np.float32) * d.astype(np.float16).astype(np.float32)[:, None]
    return values.reshape(w.shape)


def q8_0(w: Floats) -> Floats:
    """Round as llama.cpp's Q8_0: blocks of 32, d = max / 127 as float16; 8.5 bits."""
    blocks = w.reshape(-1, 32)
    d = np.abs(blocks).max(axis=1) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    q = np.rint(blocks * inverse[:, None])
    values: Floats = q * d.astype(np.float16).astype(np.float32)[:, None]
    return values.reshape(w.shape)


def as_matrix(w: Floats) -> WeightMatrix:
    return WeightMatrix("float32", (w.shape[0], w.shape[1]), np.ascontiguousarray(w))


class FloatModel:
    """The checkpoint, and models made of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = Model.open(folder)
        self.specs = list(self.model.family.tensors(self.model.architecture))
        self.weights = self.model.load_weights()
        self._source = self.model._source

    def vector(self, spec: TensorSpec) -> Floats:
        return self._source.vector(spec)

    def matrix(self, spec: TensorSpec) -> Floats:
        return dequantize(self._source.matrix(spec))

    def rounded(self, round_matrix: Round) -> dict[str, WeightMatrix]:
        """Round every matrix, in the order of the layers and the embedding last, as a calibration goes."""
        matrices = [spec for spec in self.specs if len(spec.shape) == 2]
        matrices.sort(key=lambda spec: spec.group == "embedding")
        return {spec.role: round_matrix(spec, self.matrix(spec)) for spec in matrices}

    def load(self, matrices: dict[str, WeightMatrix]) -> Weights:
        """Return weights with `matrices` in place of the checkpoint's."""
        outer = self

        class Source:
            def matrix(self, spec: TensorSpec) -> WeightMatrix:
                return matrices[spec.role]

            def vector(self, spec: TensorSpec) -> Floats:
                return outer.vector(spec)

            def release_pages(self) -> None:
                pass

        return load_weights(self.model.architecture, self.specs, Source())

    def write(self, path: Path, matrices: dict[str, WeightMatrix]) -> None:
        """Write a `.bin` with the turns of a chat, for the engine."""
        parameters = llm_parameters(self.model.architecture, self.model.family, LlmModelType.LLM_MODEL_TYPE_GEMMA3_1B)
        parameters.start_token_id = 2
        parameters.stop_tokens.extend(["<eos>", "<end_of_turn>"])
        turns = parameters.prompt_templates
        end = "<end_of_turn>\n"
        turns.user_template.prompt_prefix, turns.user_template.prompt_suffix = "<start_of_turn>user\n", end
        turns.model_template.prompt_prefix, turns.model_template.prompt_suffix = "<start_of_turn>model\n", end

        def plan(spec: TensorSpec) -> TensorPlan:
            value = self.vector(spec) if len(spec.shape) == 1 else matrices[spec.role]
            return TensorPlan.of(spec.bin_names[0], value)

        write_weights_bin(
            path,
            parameters,
            LlmModelType.LLM_MODEL_TYPE_GEMMA3_1B,
            [plan(spec) for spec in self.specs],
            tokenizer=(self.folder / "tokenizer.model").read_bytes(),
        )


class HeldOutTexts:
    """Texts that training has not seen, with the float model's distributions after every token."""

    def __init__(self, source: FloatModel, count: int) -> None:
        encode = source.model.tokenizer.encode
        turns = [turn for drawn in evaluate.draw_turns(count).values() for turn in drawn]
        prompts = [[2, *encode(evaluate.format_prompt(turn.prompt))] for turn in turns]
        answers = [encode(turn.answer + TURN_END) for turn in turns]
        self.texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        self._answer_begins = [len(prompt) for prompt in prompts]
        self._source = source
        self._float = list(self._log_probs(source.weights, "float32"))
        self.num_tokens = sum(len(text) for text in self.texts)

    def _log_probs(self, weights: Weights, activations: ActivationDataType) -> Iterator[NDArray[np.float64]]:
        executor = TransformerExecutor(
            self._source.model.architecture, weights, num_threads=2, activation_data_type=activations
        )
        try:
            for text in self.texts:
                (logits,) = executor.forward([ForwardRequest(executor.new_state(), text, "all")])
                assert logits is not None  # asked for
                x = logits.astype(np.float64)
                x -= x.max(axis=1, keepdims=True)
                yield x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        finally:
            executor.close()

    def measure(self, weights: Weights, activations: ActivationDataType) -> tuple[float, float]:
        """Return the mean divergence from float in nats per token, and the perplexity of the answers."""
        divergence = surprise = 0.0
        num_answer_tokens = 0
        for text, begin, wanted, got in zip(
            self.texts, self._answer_begins, self._float, self._log_probs(weights, activations), strict=True
        ):
            divergence += float(np.sum(np.exp(wanted) * (wanted - got)))
            surprise -= float(np.sum(got[np.arange(begin - 1, len(text) - 1), text[begin:]]))
            num_answer_tokens += len(text) - begin
        return divergence / self.num_tokens, math.exp(surprise / num_answer_tokens)


def methods(source: FloatModel) -> Iterator[tuple[str, Callable[[], Round]]]:
    """Give each row of the table its name and what makes its rounding (a calibration starts anew each time)."""

    def blocks(four: Callable[[Floats], Floats], embedding: Callable[[Floats], Floats]) -> Callable[[], Round]:
        return lambda: lambda spec, w: as_matrix((embedding if spec.group == "embedding" else four)(w))

    def ours(
        method: QuantizationMethod, attention: int, feed_forward: int, embedding: int, *, own_words: bool = False
    ) -> Callable[[], Round]:
        bits = {"attention": attention, "feed_forward": feed_forward, "embedding": embedding}

        def make() -> Round:
            if method == "gptq":
                model = source.model
                ids = calibration_ids(model.tokenizer, model.start_id)
                if own_words:
                    starts = [sequence[:1] for sequence in ids]
                    ids += generated_ids(model.architecture, source.weights, starts, num_threads=2)
                calibration = Calibration(model.architecture, source.weights, ids, num_threads=2)

            def round_matrix(spec: TensorSpec, w: Floats) -> WeightMatrix:
                width = bits[spec.group or "embedding"]
                if method == "gptq":
                    return quantize(w, width, method=method, compensation=calibration.compensation(spec.role))
                return quantize(w, width, method=method)

            return round_matrix

        return make

    yield "float32", lambda: lambda spec, w: as_matrix(w)
    yield "Q8_0", blocks(q8_0, q8_0)
    yield "int8 minmax", ours("minmax", 8, 8, 8)
    names: tuple[QuantizationMethod, ...] = ("minmax", "mediapipe_mse", "mse", "gptq")
    for title, widths in (("8/4/8", (8, 4, 8)), ("4/4/8", (4, 4, 8)), ("4/4/4", (4, 4, 4))):
        if title != "8/4/8":
            yield f"{title} Q4_0", blocks(q4_0, q8_0 if widths[2] == 8 else q4_0)
        for name in names:
            yield f"{title} {name}", ours(name, *widths)
        yield f"{title} gptq, own words too", ours("gptq", *widths, own_words=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--answers", type=int, default=60, help="answers of each kind that are judged; 0: none")
    parser.add_argument("--texts", type=int, default=40, help="texts of each kind for divergence and perplexity")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose names contain one of these")
    arguments = parser.parse_args()
    source = FloatModel(arguments.checkpoint)
    texts = HeldOutTexts(source, arguments.texts)
    turns = evaluate.draw_turns(arguments.answers)
    kinds = list(turns) if arguments.answers else []
    print(f"{texts.num_tokens} tokens, {arguments.answers} answers of each kind; KL in nats per token", flush=True)
    headings = ["attention/ffn/embedding", "KL", "perplexity", "KL, int8 activations", *kinds, "mean", "rounding s"]
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}", flush=True)
    for name, make in methods(source):
        if not any(part in name for part in arguments.only):
            continue
        begin = time.perf_counter()
        matrices = source.rounded(make())
        seconds = time.perf_counter() - begin
        weights = source.load(matrices)
        divergence, perplexity = texts.measure(weights, "float32")
        is_quantized = any(matrix.is_quantized for matrix in matrices.values())
        as_run = f"{texts.measure(weights, 'int8')[0]:.4f}" if is_quantized else ""
        cells = [name, f"{divergence:.4f}", f"{perplexity:.3f}", as_run]
        if kinds:
            report = judge(source, matrices, turns)
            cells += [f"{100 * report[kind]:.0f} %" for kind in kinds]
            cells += [f"{100 * sum(report[kind] for kind in kinds) / len(kinds):.1f} %"]
        else:
            cells += [""]
        print(f"| {' | '.join([*cells, f'{seconds:.1f}'])} |", flush=True)


def judge(source: FloatModel, matrices: dict[str, WeightMatrix], turns: dict[str, list[Any]]) -> dict[str, float]:
    """Return the share of right answers of each kind, greedy, as the engine runs the model by default."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        source.write(path, matrices)
        generate, _ = evaluate.engine_functions(path)
        report: dict[str, float] = evaluate.evaluate(generate, turns)
    return report


if __name__ == "__main__":
    main()
