"""Write the turns of a prompt by hand, or leave them out."""

import hearthlm
from hearthlm import PromptTemplate, PromptTemplates
from hearthlm.demo import model_path

turns = PromptTemplates(
    user=PromptTemplate("<start_of_turn>user\n", "<end_of_turn>\n"),
    model=PromptTemplate("<start_of_turn>model\n", "<end_of_turn>\n"),
)
with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    for templates in (turns, PromptTemplates()):
        options = hearthlm.LlmInferenceSessionOptions(prompt_templates=templates, temperature=0, max_output_tokens=30)
        result = llm.generate("Tell me a story about a fox.", options)
        print(f"{result.num_prompt_tokens} tokens: {result.texts[0]!r}")
