"""Hold an answer to a form: a JSON schema, or a regular expression. Needs `pip install "hearthlm[grammar]"`."""

import json

import hearthlm
from hearthlm.demo import model_path

SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["fox", "owl", "cat"]}, "brave": {"type": "boolean"}},
    "required": ["animal", "brave"],
    "additionalProperties": False,
}

with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    as_json = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    result = llm.generate("Tell me a story.", hearthlm.LlmInferenceSessionOptions(response_format=as_json))
    print(json.loads(result.texts[0]), result.finish_reason)
    pattern = {"type": "regex", "pattern": "(Yes|No), because [a-z ]{10,60}[.]"}
    result = llm.generate("Is a whale a fish?", hearthlm.LlmInferenceSessionOptions(response_format=pattern))
    print(result.texts[0])
