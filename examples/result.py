"""Get an answer with its ids, counts and times, and with options of its own."""

import hearthlm
from hearthlm.demo import model_path

with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    options = hearthlm.LlmInferenceSessionOptions(temperature=0, max_output_tokens=40)
    result = llm.generate("Write a short story about Mira and a lost key.", options)
    print(result.texts[0])
    print(f"{result.finish_reason} after {result.num_output_tokens} tokens of {result.num_prompt_tokens} in the prompt")
    print(f"{result.prefill_s * 1000:.1f} ms to read it, {result.decode_s * 1000:.1f} ms to answer")
