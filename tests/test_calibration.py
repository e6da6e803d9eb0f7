"""The inputs of every matrix, layer by layer, against one forward pass through all layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from random_models import CONFIGS, random_ids, write_checkpoint

from hearthlm.quantization import dequantize, quantize
from hearthlm.runtime.calibration import MAX_TOKENS, SEQUENCE_LENGTH, Calibration, calibration_ids, generated_ids
from hearthlm.runtime.executor import ForwardRequest
from hearthlm.runtime.model import Model
from hearthlm.runtime.transformer import TransformerExecutor
from hearthlm.tokenizers import from_sentencepiece

GOLDEN = Path(__file__).parent / "golden"


def open_model(folder: Path, name: str) -> Model:
    return Model.open(write_checkpoint(folder, CONFIGS[name]))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_inputs_are_those_of_one_pass_through_all_layers(tmp_path: Path, name: str) -> None:
    ids = random_ids(CONFIGS[name], 60)
    sequences = [ids[:40], ids[40:]]
    with open_model(tmp_path, name) as model:
        weights = model.load_weights()
        seen: dict[str, NDArray[np.float32]] = {}
        executor = TransformerExecutor(
            model.architecture, weights, num_threads=1, observe=lambda role, rows: seen.update({role: rows.copy()})
        )
        executor.forward([ForwardRequest(executor.new_state(), s, "all") for s in sequences])
        matrices = [spec for spec in model.family.tensors(model.architecture) if len(spec.shape) == 2]
        with Calibration(model.architecture, weights, sequences, num_threads=1) as calibration:
            for spec in (s for s in matrices if s.role.startswith("layers.")):
                np.testing.assert_array_equal(calibration.inputs(spec.role), seen[spec.role], err_msg=spec.role)
            last = "embedding" if model.architecture.tied_embedding else "logits"
            np.testing.assert_array_equal(calibration.inputs(last), seen["logits"])
            with pytest.raises(ValueError, match="layers go in order"):
                calibration.inputs("layers.0.attention.query")
        executor.close()


def test_a_role_without_inputs_is_refused(tmp_path: Path) -> None:
    with open_model(tmp_path, "gpt2") as model:
        with Calibration(model.architecture, model.load_weights(), [[1, 2, 3]], num_threads=1) as calibration:
            for role in ("position_embedding", "layers.0.feed_forward.gate", "layers.0.nonsense"):
                with pytest.raises(ValueError, match="has no inputs"):
                    calibration.inputs(role)
            with pytest.raises(ValueError, match="layers go in order"):
                calibration.inputs("layers.99.attention.query")


def test_compensated_rounding_of_a_layer_errs_less_in_what_the_layer_computes(tmp_path: Path) -> None:
    ids = random_ids(CONFIGS["gemma3_mqa"], 400)
    with open_model(tmp_path, "gemma3_mqa") as model:
        weights = model.load_weights()
        with Calibration(model.architecture, weights, [ids[:200], ids[200:]], num_threads=2) as calibration:
            for role, linear in (
                ("layers.1.attention.query", weights.layers[1].query),
                ("layers.1.feed_forward.down", weights.layers[1].down),
            ):
                w, inputs = dequantize(linear.weight), calibration.inputs(role)
                compensation = calibration.compensation(role)
                plain = dequantize(quantize(w, 4, method="mse"))
                compensated = dequantize(quantize(w, 4, method="gptq", compensation=compensation))
                errors = [float(np.square(inputs @ (made - w).T).sum()) for made in (compensated, plain)]
                assert errors[0] < 0.9 * errors[1]
            shared = calibration.compensation("layers.2.attention.query")
            assert calibration.compensation("layers.2.attention.value") is shared
            assert calibration.compensation("layers.2.attention.output") is not shared


def test_a_model_goes_on_in_its_own_words_the_same_ones_each_time(tmp_path: Path) -> None:
    with open_model(tmp_path, "gemma3_mqa") as model:
        weights, starts = model.load_weights(), [[2], [2], [2, 7, 9]]
        made = generated_ids(model.architecture, weights, starts, num_threads=2)
        again = generated_ids(model.architecture, weights, starts, num_threads=1)
        other = generated_ids(model.architecture, weights, starts, num_threads=1, seed=1)
    assert made == again != other
    assert [ids[: len(start)] for ids, start in zip(made, starts, strict=True)] == starts
    assert made[0] != made[1]
    assert len(made[0]) == SEQUENCE_LENGTH
    assert all(0 <= i < model.architecture.vocab_size for ids in made for i in ids)


def test_the_text_that_ships_is_cut_into_sequences() -> None:
    tokenizer = from_sentencepiece((GOLDEN / "inputs" / "spm64" / "tokenizer.model").read_bytes())
    sequences = calibration_ids(tokenizer, 2)
    assert all(ids[0] == 2 and len(ids) == SEQUENCE_LENGTH for ids in sequences[:-1])
    assert sum(len(ids) - 1 for ids in sequences) == MAX_TOKENS
    without_start = calibration_ids(tokenizer, None)
    assert [i for ids in without_start for i in ids] == tokenizer.encode(tokenizer_text())[:MAX_TOKENS]


def tokenizer_text() -> str:
    import hearthlm

    return (Path(hearthlm.__file__).parent / "data" / "calibration.txt").read_text(encoding="utf-8")
