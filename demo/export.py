"""Write the demo model as MediaPipe's `.bin`: `python export.py HF_FOLDER MODEL_BIN [int8 | int4 | float32]`."""

from __future__ import annotations

import sys
from pathlib import Path

from hearthlm.formats.checkpoint import Checkpoint
from hearthlm.formats.llm_parameters import llm_parameters
from hearthlm.formats.llm_parameters_pb2 import LlmModelType
from hearthlm.formats.tensor_plan import TensorPlan
from hearthlm.formats.weights_bin import write_weights_bin
from hearthlm.models import read_config
from hearthlm.models.family import TensorSpec
from hearthlm.quantization import WeightType, dequantize, quantize

_BITS: dict[WeightType, int] = {"int8": 8, "int4": 4}


def export(hf_folder: Path, model_bin: Path, dtype: WeightType = "int8") -> None:
    """Quantise every matrix but, for int4, the embedding, which stays int8; write the turns and the stop tokens."""
    checkpoint = Checkpoint.open(hf_folder)
    if checkpoint.config is None:
        raise FileNotFoundError(f"{hf_folder}: there is no config.json")
    family, architecture = read_config(checkpoint.config)
    model_type = LlmModelType.LLM_MODEL_TYPE_GEMMA3_1B
    parameters = llm_parameters(architecture, family, model_type)
    parameters.start_token_id = 2
    parameters.stop_tokens.extend(["<eos>", "<end_of_turn>"])
    turns = parameters.prompt_templates
    turns.user_template.prompt_prefix, turns.user_template.prompt_suffix = "<start_of_turn>user\n", "<end_of_turn>\n"
    turns.model_template.prompt_prefix, turns.model_template.prompt_suffix = "<start_of_turn>model\n", "<end_of_turn>\n"

    def plan(spec: TensorSpec) -> TensorPlan:
        if len(spec.shape) == 1:
            return TensorPlan.of(spec.bin_names[0], checkpoint.vector(spec.checkpoint_name))
        stored: WeightType = "int8" if spec.group == "embedding" and dtype == "int4" else dtype
        matrix = checkpoint.matrix(spec.checkpoint_name)
        return TensorPlan.of(
            spec.bin_names[0], quantize(dequantize(matrix), _BITS[stored]) if stored in _BITS else matrix
        )

    write_weights_bin(
        model_bin,
        parameters,
        model_type,
        [plan(spec) for spec in family.tensors(architecture)],
        tokenizer=(hf_folder / "tokenizer.model").read_bytes(),
    )
    checkpoint.close()


if __name__ == "__main__":
    wanted: WeightType = "int4" if "int4" in sys.argv else "float32" if "float32" in sys.argv else "int8"
    export(Path(sys.argv[1]), Path(sys.argv[2]), wanted)
