"""Ask a model and print the answer, whole and as it is made."""

import sys

import hearthlm
from hearthlm.demo import model_path

# Any MediaPipe .bin or Hugging Face folder; without one the small model inside the package answers.
path = sys.argv[1] if len(sys.argv) > 1 else model_path()
options = hearthlm.LlmInferenceOptions(model_path=path, max_tokens=256, temperature=0.7, random_seed=1)
with hearthlm.LlmInference.create_from_options(options) as llm:
    print(llm.generate_response("Tell me a story about a brave little boat."))
    for increment in llm.generate_response_stream("Tell me a story about a sleepy owl."):
        print(increment, end="", flush=True)
    print()
