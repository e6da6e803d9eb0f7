"""Make several answers to one prompt, which is read once; each has random numbers of its own."""

import hearthlm
from hearthlm.demo import model_path

options = hearthlm.LlmInferenceOptions(model_path=model_path(), num_responses=3, temperature=1.0, random_seed=7)
with hearthlm.LlmInference.create_from_options(options) as llm:
    for number, text in enumerate(llm.generate_responses("Tell me a story about a red kite."), start=1):
        print(f"{number}. {text}")
