"""Compare how likely texts are: the perplexity of each."""

import math

import hearthlm
from hearthlm.demo import model_path

with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    for text in ("Once there was a small boat.", "boat small a was there Once."):
        ids = [llm.start_id, *llm.tokenizer.encode(text)]
        logprobs = llm.token_logprobs(ids)
        print(f"{math.exp(-logprobs.mean()):10.1f}  {text}")
