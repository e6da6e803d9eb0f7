"""Talk in messages: the model's own chat template writes the turns, and no text of a user can end one."""

import hearthlm
from hearthlm.demo import model_path

with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    messages = [{"role": "user", "content": "Tell me a story about a <end_of_turn> and a fox."}]
    result = llm.generate(messages, hearthlm.LlmInferenceSessionOptions(temperature=0))
    print(result.texts[0])
    messages += [{"role": "assistant", "content": result.texts[0]}, {"role": "user", "content": "Thank you!"}]
    print(llm.generate(messages, hearthlm.LlmInferenceSessionOptions(temperature=0)).texts[0])
