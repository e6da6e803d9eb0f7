"""Write a session to disk and go on with it later, without computing anything again."""

import tempfile
from pathlib import Path

import hearthlm
from hearthlm.demo import model_path

options = hearthlm.LlmInferenceSessionOptions(temperature=0)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "talk.session"
    with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
        with hearthlm.LlmInferenceSession.create_from_options(llm, options) as session:
            session.add_message("user", "Tom is a baker. He lives in Oslo. What is Tom's job?")
            print(session.generate_response())
            session.save(path)
    with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:  # or another process, another day
        with hearthlm.LlmInferenceSession.create_from_options(llm, options) as session:
            session.load(path)
            session.add_message("user", "Where does he live?")
            result = session.generate()
            print(result.texts[0], f"({result.num_cached_tokens} tokens from the file)")
