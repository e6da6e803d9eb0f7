"""See how sure the model was of each token, and what else it had in mind."""

import math

import hearthlm
from hearthlm.demo import model_path

with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    options = hearthlm.LlmInferenceSessionOptions(temperature=0, max_output_tokens=12, logprobs=3)
    result = llm.generate("Tell me a story about a fox.", options)
    for token in result.logprobs[0]:
        others = ", ".join(f"{llm.tokenizer.piece(i)!r} {math.exp(value):.0%}" for i, value in token.top)
        print(f"{llm.tokenizer.piece(token.token_id)!r:12} {math.exp(token.logprob):.0%}   of {others}")
