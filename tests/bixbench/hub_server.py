"""The few addresses of the Hugging Face hub that huggingface_hub asks for a data set, on loopback."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Serves data sets from memory: `sets[name][commit][path] = bytes`; `refs[name]["main"] = commit`.

    Attributes:
        gated: names that only a token opens.
        cut: paths whose next download breaks off in the middle, once each.
        corrupt: paths that are served with other bytes than their digest says.
        requests: (method, path, range header) of everything asked.
    """

    def __init__(self):
        self.sets, self.refs = {}, {}
        self.gated, self.cut, self.corrupt, self.requests = set(), set(), set(), []
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.handle_any()

            def do_GET(self):
                self.handle_any()

            def handle_any(self):
                path = unquote(urlsplit(self.path).path)
                with hub.lock:
                    hub.requests.append((self.command, path, self.headers.get("Range")))
                if api := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
                    status, body, *code = hub.api(*api.groups())
                    return self.answer(status, body, **({"X_Error_Code": code[0]} if code else {}))
                if file := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    return self.file(*file.groups())
                return self.answer(404, {"error": "not found"})

            def answer(self, status, body, **headers):
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def file(self, name, commit, path):
                if name in hub.gated and not self.headers.get("Authorization"):
                    return self.answer(401, {"error": "restricted"}, X_Error_Code="GatedRepo")
                content = hub.sets[name][commit][path]
                begin = int(self.headers["Range"][6:].partition("-")[0]) if self.headers.get("Range") else 0
                served = content[::-1] if path in hub.corrupt else content
                with hub.lock:
                    breaks = self.command == "GET" and path in hub.cut and not hub.cut.discard(path)
                self.send_response(206 if begin else 200)
                self.send_header("ETag", f'"{hub.digest(content)}"')
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Accept-Ranges", "bytes")
                if begin:
                    self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - begin))
                self.end_headers()
                if self.command == "GET":
                    part = served[begin:]
                    self.wfile.write(part[: len(part) // 2] if breaks else part)
                    self.close_connection = breaks

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def put(self, name, files):
        """Add a commit with these files to a set's main branch; returns its name."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.sets.setdefault(name, {})[commit] = files
        self.refs.setdefault(name, {})["main"] = commit
        return commit

    def digest(self, content):
        """Large files are known by SHA-256, small ones as git names them."""
        if len(content) > 1000:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def api(self, name, what, revision):
        if name not in self.sets:
            return 401, {"error": "Repository not found"}, "RepoNotFound"
        commit = self.refs[name].get(revision, revision)
        if commit not in self.sets[name]:
            return 404, {"error": f"Invalid rev id: {revision}"}, "RevisionNotFound"
        files = self.sets[name][commit]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            return 200, {"id": name, "sha": commit, "siblings": siblings, "gated": False, "private": False}
        entries = []
        for path, content in files.items():
            large = {"oid": self.digest(content), "size": len(content), "pointerSize": 130}
            entry = {"type": "file", "path": path, "size": len(content), "oid": self.digest(content)[:40]}
            entries.append({**entry, "lfs": large} if len(content) > 1000 else entry)
        return 200, entries

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
