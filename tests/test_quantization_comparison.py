"""What quantising costs the demo model: the better methods are better, and what is measured is divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import random_models
from numpy.typing import NDArray

from hearthlm.converter import ConversionConfig
from hearthlm.demo import model_path
from hearthlm.formats.weights_bin import WeightsBin
from hearthlm.models import FAMILIES
from hearthlm.quantization import dequantize
from hearthlm.quantization_comparison import QuantizationVariant, compare_quantization
from hearthlm.runtime.model import Model

STORY = """Once upon a time there was a little boat. It lived in a harbour near a small town. One day a storm came,
and the little boat was afraid. A fisherman called Tom took a rope and pulled the boat to the shore. The boat was safe,
and it never forgot what Tom had done. Mira works as a baker in the town. She has a grey cat called Pepper."""


@pytest.fixture(scope="module")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the model inside the package as a float checkpoint."""
    folder = tmp_path_factory.mktemp("demo")
    with Model.open(model_path()) as model, WeightsBin.open(model_path()) as file:
        a = model.architecture
        tensors: dict[str, NDArray[Any]] = {}
        for spec in FAMILIES["gemma3"].tensors(a):
            name = spec.bin_names[0]
            is_matrix = len(spec.shape) == 2
            tensors[spec.checkpoint_name] = (
                dequantize(file.matrix(name, (spec.shape[0], spec.shape[1])))
                if is_matrix
                else file.vector(name, spec.shape[0]).copy()
            )
        config = random_models.CONFIGS["gemma3_mqa"] | {
            "vocab_size": a.vocab_size,
            "hidden_size": a.embedding_dim,
            "intermediate_size": a.hidden_dim,
            "num_hidden_layers": a.num_layers,
            "num_attention_heads": a.num_heads,
            "num_key_value_heads": a.num_kv_heads,
            "head_dim": a.head_dim,
            "query_pre_attn_scalar": a.head_dim,
            "sliding_window": 512,
        }
        random_models.write_checkpoint(folder, config, tensors)
        (folder / "tokenizer.model").write_bytes(file.tokenizer or b"")
    return folder


def test_better_methods_stay_nearer_to_the_float_model(demo_checkpoint: Path, tmp_path: Path) -> None:
    config = ConversionConfig(demo_checkpoint, None, None, "cpu", tmp_path)
    variants = [
        QuantizationVariant("minmax", 8, 8, 8),
        *(QuantizationVariant(method, 4, 4, 8) for method in ("gptq", "mse", "minmax")),
    ]
    rows = list(compare_quantization(config, STORY, variants, num_threads=2))
    assert [row.name for row in rows] == ["float", "8/8/8 minmax", "4/4/8 gptq", "4/4/8 mse", "4/4/8 minmax"]
    divergences = [row.kl_divergence for row in rows]
    assert divergences == sorted(divergences)
    assert divergences[0] == 0
    assert divergences[2] < 0.6 * divergences[4]
    assert rows[1].file_mb == pytest.approx(4.8, abs=0.1)
    assert list(tmp_path.iterdir()) == []
