"""The example of an outside agent, run as its reader would run it."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/bixbench/examples/outside_agent.py"
QUESTIONS = [
    {"question_id": "bix-901-q1", "question": "How many?", "ideal": "0.0002", "eval_mode": "str_verifier"},
    {"question_id": "Bix-902-q1", "question": "How much?", "ideal": "(2,1)", "eval_mode": "range_verifier"},
    {"question_id": "bix-903-q1", "question": "Which one?", "ideal": "MYC", "eval_mode": "str_verifier"},
]
ANSWERS = {"How many?": "2e-4", "How much?": "1.5", "Which one?": "MYC or KIT"}


@pytest.fixture
def endpoint():
    """A real chat endpoint that answers by the question; what it does not know is an error of the server."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = ANSWERS.get(asked["messages"][0]["content"].splitlines()[0])
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
            self.send_response(200 if said else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def nbagent(*words):
    done = subprocess.run(
        [Path(sys.executable).with_name("nbagent"), "bixbench", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_outside_agent_is_validated_and_graded(endpoint, tmp_path):
    broken = {**QUESTIONS[0], "question_id": "bix-904-q1", "question": "Unknown to the server"}
    lines = [json.dumps(question) for question in (*QUESTIONS, broken)]
    (tmp_path / "BixBench.jsonl").write_text("\n".join(lines))
    written = subprocess.run(
        [sys.executable, "-I", SCRIPT, tmp_path, endpoint, "some-model"], capture_output=True, text=True, check=True
    )
    file = tmp_path / "results.jsonl"
    file.write_text(written.stdout)
    assert nbagent("validate", str(file)) == "4 results, no problems\n"
    made = json.loads(nbagent("regrade", str(file), "--json"))
    assert {name: n for name, n in made["outcomes"].items() if n} == {"correct": 2, "incorrect": 1, "infrastructure": 1}
    assert (made["n_total"], made["accuracy"]) == (4, pytest.approx(2 / 3))
    assert "nbagent_" not in "".join(line for line in SCRIPT.read_text().splitlines() if "import" in line)
