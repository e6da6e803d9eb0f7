"""What quantising costs the demo model: the better methods are better, and what is measured is divergence."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo_checkpoint import write_demo_checkpoint

from hearthlm.converter import ConversionConfig
from hearthlm.quantization_comparison import QuantizationVariant, compare_quantization

STORY = """Once upon a time there was a little boat. It lived in a harbour near a small town. One day a storm came,
and the little boat was afraid. A fisherman called Tom took a rope and pulled the boat to the shore. The boat was safe,
and it never forgot what Tom had done. Mira works as a baker in the town. She has a grey cat called Pepper."""


@pytest.fixture(scope="module")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the model inside the package as a float checkpoint."""
    return write_demo_checkpoint(tmp_path_factory.mktemp("demo"))


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
