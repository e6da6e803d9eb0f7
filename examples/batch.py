"""Answer many prompts side by side: the same answers as one after the other, sooner."""

import hearthlm
from hearthlm.demo import model_path

prompts = [f"Tell me a story about a {thing}." for thing in ("fox", "lantern", "clock", "small train", "sailor")]
options = hearthlm.LlmInferenceSessionOptions(temperature=0, max_output_tokens=30)
with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    for prompt, result in zip(prompts, llm.generate_batch(prompts, options), strict=True):
        print(f"{prompt} -> {result.texts[0]}")
