"""A chat-completions endpoint for tests: a real HTTP server that answers, or misbehaves, as it is told."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint:
    """The far side of the wire: a chat server that misbehaves as it is told, request by request."""

    def __init__(self):
        self.script = []
        self.models = [{"id": "tiny", "max_model_len": 64}]
        self.requests = []
        self.busy = self.busiest = 0
        self.released = threading.Event()
        self.lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                there = self.path.endswith("/models")
                self.send(200 if there else 404, json.dumps({"data": endpoint.models} if there else {}))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.lock:
                    endpoint.requests.append((time.monotonic(), self.path, dict(self.headers), body))
                    todo = endpoint.script.pop(0) if endpoint.script else answer()
                    endpoint.busy += 1
                    endpoint.busiest = max(endpoint.busiest, endpoint.busy)
                try:
                    if todo == "hang":
                        endpoint.released.wait(20)
                        self.close_connection = True
                    elif todo == "hang up":
                        self.close_connection = True
                    elif todo == "slow":
                        time.sleep(0.05)
                        self.send(200, answer())
                    else:
                        self.send(*todo) if isinstance(todo, tuple) else self.send(200, todo)
                finally:
                    with endpoint.lock:
                        endpoint.busy -= 1

            def send(self, status, text, headers=()):
                data = text.encode()
                self.send_response(status)
                for name, value in (("Content-Type", "application/json"), *headers):
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def answer(content="42 rows", finish="stop", usage=(100, 20), **message):
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": content, **message},
    }
    body = {"id": "x", "object": "chat.completion", "choices": [choice]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps(body)
