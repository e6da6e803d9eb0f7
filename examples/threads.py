"""Share one model between threads: each gets what it would get alone, and the steps are computed together."""

from concurrent.futures import ThreadPoolExecutor

import hearthlm
from hearthlm.demo import model_path

prompts = [f"Tell me a story about a {thing}." for thing in ("fox", "boat", "robot", "lantern")]
with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    one_by_one = [llm.generate_response(prompt) for prompt in prompts]
    with ThreadPoolExecutor(max_workers=8) as threads:
        at_once = list(threads.map(llm.generate_response, prompts))
    print("the same answers:", at_once == one_by_one)
    print(at_once[0])
