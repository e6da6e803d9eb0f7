"""Run the server's app in a program of one's own, and ask it. Needs `pip install "hearthlm[server]"`."""

import json
import threading
import urllib.request

import uvicorn

from hearthlm import LlmInference
from hearthlm.demo import model_path
from hearthlm.server import create_app

with LlmInference.create_from_model_path(model_path()) as llm:
    server = uvicorn.Server(uvicorn.Config(create_app(llm), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    body = {"messages": [{"role": "user", "content": "Tell me a story about a kite."}], "max_tokens": 40}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        print(json.load(answer)["choices"][0]["message"]["content"])
    server.should_exit = True
    thread.join()
