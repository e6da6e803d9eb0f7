"""Load a model without waiting for it, with progress."""

import hearthlm
from hearthlm.demo import model_path

options = hearthlm.LlmInferenceOptions(model_path=model_path(), weights="ram")
future = hearthlm.LlmInference.load_async(options, lambda part: print(f"{part:.0%}", end=" ", flush=True))
print("(loading)")
with future.result() as llm:
    print("loaded in", round(llm.load_s, 3), "s")
    print(llm.generate_response("Hello!"))
