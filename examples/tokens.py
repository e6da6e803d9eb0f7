"""Count tokens before asking, and look at them."""

import hearthlm
from hearthlm.demo import model_path

text = "Tell me a story about a brave little boat."
with hearthlm.LlmInference.create_from_options(hearthlm.LlmInferenceOptions(model_path(), max_tokens=64)) as llm:
    print(llm.size_in_tokens(text), "tokens, the start token not counted")
    ids = llm.tokenizer.encode(text)
    print([llm.tokenizer.piece(i) for i in ids], llm.tokenizer.decode(ids) == text)
    try:
        llm.generate_response(text * 20)
    except hearthlm.ContextLengthError as error:
        print(f"{error.num_tokens} tokens do not fit into {error.max_tokens}")
