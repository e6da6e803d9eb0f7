"""Shape what is said: temperature, cuts of the unlikely, penalties, a bias, stop strings."""

import hearthlm
from hearthlm.demo import model_path

prompt = "Tell me a story about a brave little boat."
with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    boat = llm.tokenizer.encode("boat")[0]
    for changes in (
        {"temperature": 0.0},
        {"temperature": 1.2, "top_k": 0, "top_p": 0.9, "random_seed": 3},
        {"temperature": 1.2, "min_p": 0.1, "random_seed": 3},
        {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"temperature": 0.0, "logit_bias": {boat: float("-inf")}},
        {"temperature": 0.0, "stop": (".",)},
    ):
        options = hearthlm.LlmInferenceSessionOptions(max_output_tokens=40, **changes)
        print(changes, "->", llm.generate(prompt, options).texts[0])
