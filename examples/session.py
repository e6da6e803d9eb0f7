"""Keep a context between calls: add to it, clone it, change how it samples."""

import hearthlm
from hearthlm.demo import model_path

passage = "Tom is a baker. He lives in Oslo. Mira is a pilot. "
options = hearthlm.LlmInferenceSessionOptions(temperature=0)
with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    with hearthlm.LlmInferenceSession.create_from_options(llm, options) as session:
        session.add_query_chunk(passage)
        with session.clone_session() as clone:  # what was computed is shared, what comes is not
            clone.add_query_chunk("What is Mira's job?")
            print(clone.generate_response())
        session.add_query_chunk("What is Tom's job?")
        print(session.generate_response())
        session.update_session_options(max_output_tokens=20)
        session.add_query_chunk("Where does Tom live?")
        result = session.generate()
        print(result.texts[0], f"({result.num_cached_tokens} of {result.num_prompt_tokens} tokens were there already)")
