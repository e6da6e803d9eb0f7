"""Answer with and without a LoRA adapter, side by side, on the same weights: `adapter.py [MODEL ADAPTER]`."""

import sys
from pathlib import Path

import hearthlm

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "outputs" / "0.10.14"  # a toy that MediaPipe converted
model, adapter = sys.argv[1:3] or (GOLDEN / "gemma_2b_gpu_lora.bin", GOLDEN / "gemma_2b_gpu_lora_lora.bin")
with hearthlm.LlmInference.create_from_model_path(model) as llm:
    lora = llm.load_lora(adapter)  # a _lora.bin or a PEFT folder, of any rank
    print(f"rank {lora.rank}, {len(lora.factors)} matrices, {lora.num_bytes} bytes")
    for chosen in (None, lora):
        options = hearthlm.LlmInferenceSessionOptions(lora=chosen, max_output_tokens=20, random_seed=1, temperature=1.0)
        print("adapted:" if chosen else "plain:  ", repr(llm.generate("abcabc", options).texts[0]))
