"""Ask several questions about one passage: what the prompts share is computed once, within `prefix_cache_mb`."""

import hearthlm
from hearthlm.demo import model_path

passage = "Tom is a baker. He lives in Oslo. Every Sunday he goes swimming with Mira. "
options = hearthlm.LlmInferenceOptions(model_path=model_path(), temperature=0, prefix_cache_mb=64)
with hearthlm.LlmInference.create_from_options(options) as llm:
    for question in ("What is Tom's job?", "Where does Tom live?", "Who lives in Oslo?"):
        result = llm.generate(passage + question)
        print(result.texts[0], f"({result.num_cached_tokens} of {result.num_prompt_tokens} tokens were known)")
