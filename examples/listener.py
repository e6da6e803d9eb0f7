"""Go on with other work while an answer is made: a listener hears every increment, a future holds the whole."""

import hearthlm
from hearthlm.demo import model_path


def listen(increment: str, done: bool) -> None:
    print(increment, end="\n" if done else "", flush=True)


def fail(error: Exception) -> None:
    print(f"no answer: {error}")


options = hearthlm.LlmInferenceOptions(model_path=model_path(), result_listener=listen, error_listener=fail)
with hearthlm.LlmInference.create_from_options(options) as llm:
    future = llm.generate_response_async("Tell me a story about a curious mouse.")
    print("(the answer is on its way)")
    text = future.result()
print(f"{len(text)} characters in all")
