"""Stop an answer from another thread; what was made stays, and the session goes on."""

import threading

import hearthlm
from hearthlm.demo import model_path

with hearthlm.LlmInference.create_from_model_path(model_path()) as llm:
    with hearthlm.LlmInferenceSession.create_from_options(llm) as session:
        session.add_query_chunk("Tell me a story about a patient turtle.")
        heard = threading.Event()
        future = session.generate_response_async(lambda increment, done: heard.set())
        heard.wait()
        session.cancel_generate_response_async()
        print("cancelled:", repr(future.result()))
        print("and on:", repr(session.generate_response()))
