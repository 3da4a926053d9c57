"""Judges for tests: real HTTP servers that answer chat requests by a rule."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TAG = re.compile(r"<grade>\s*(correct|incorrect|refused)\s*</grade>", re.IGNORECASE)


def naive(messages, seed):
    """The most gullible judge: repeats the last grade that it sees anywhere in what it is sent, else says incorrect."""
    seen = TAG.findall("\n".join(message["content"] for message in messages))
    return f"<grade>{seen[-1] if seen else 'incorrect'}</grade>"


class JudgeServer:
    """Answers with `rule(messages, seed)`: a text, or a status to fail with."""

    def __init__(self, rule):
        self.requests = []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.requests.append(body)
                    said = rule(body["messages"], body["seed"])
                message = {"role": "assistant", "content": said}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                data = json.dumps({"choices": [choice]} if isinstance(said, str) else {"error": "no"}).encode()
                self.send_response(200 if isinstance(said, str) else said)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
