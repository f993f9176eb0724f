"""A Hub on this machine: the routes of its API that policies need, with repositories in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Repository:
    """Commits by their hash, the newest of them, and what a client is told of sizes."""

    def __init__(self):
        self.commits, self.main, self.claimed, self.private = {}, "", {}, None
        self.tags = {}

    def commit(self, files):
        self.main = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        self.commits[self.main] = files
        return self.main

    def files(self, revision):
        commit = self.main if revision == "main" else self.tags.get(revision, revision)
        return commit, self.commits.get(commit)


class Hub:
    """The server; use it in a `with` block.

    Attributes:
        repositories: by name.
        asked: every request, as "METHOD path".
        after: called with each request once it has been answered.
    """

    def __init__(self):
        self.repositories, self.asked, self.uploads = {}, [], {}
        self.after = lambda request: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, code, content=b"", headers=(), length=None):
            self.send_response(code)
            for name, value in {
                "Content-Length": str(length or len(content)),
                **dict(headers),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def json(self, value, code=200):
            self.answer(code, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def handle_any(self):
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length)
            hub.asked.append(f"{self.command} {self.path}")
            self.route(self.path.partition("?")[0])
            hub.after(hub.asked[-1])

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def route(self, path):
            for pattern, method in ROUTES:
                if found := re.fullmatch(pattern, path):
                    return method(self, *found.groups())
            return self.answer(404)

        def resolve(self, name, revision, file):
            repository = hub.repositories.get(name)
            if repository is None:
                return self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
            commit, files = repository.files(revision)
            if files is None:
                return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
            if file not in files:
                return self.answer(
                    404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
                )
            digest = hashlib.sha256(files[file]).hexdigest()
            headers = {"X-Repo-Commit": commit, "ETag": f'"{digest}"'}
            claimed = repository.claimed.get(file) if self.command == "HEAD" else None
            return self.answer(200, files[file], headers, claimed)

        def create(self):
            wanted = json.loads(self.body)
            name = f"{wanted.get('organization')}/{wanted['name']}"
            if name.startswith("forbidden/"):
                return self.json({"error": "You may not write here."}, 403)
            repository = hub.repositories.setdefault(name, Repository())
            repository.private = wanted.get("private") or wanted.get("visibility") == "private"
            return self.json({"url": f"{hub.address}/{name}", "name": name})

        def preupload(self, name):
            files = json.loads(self.body)["files"]
            modes = {True: "lfs", False: "regular"}
            return self.json(
                {
                    "files": [
                        {
                            "path": f["path"],
                            "uploadMode": modes[f["path"].endswith(".safetensors")],
                            "shouldIgnore": False,
                        }
                        for f in files
                    ]
                }
            )

        def batch(self, name):
            objects = json.loads(self.body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{hub.address}/upload/{entry['oid']}"}}
            return self.json({"transfer": "basic", "objects": objects})

        def upload(self, oid):
            assert hashlib.sha256(self.body).hexdigest() == oid
            hub.uploads[oid] = self.body
            return self.answer(200)

        def commit(self, name):
            repository = hub.repositories[name]
            files = dict(repository.commits.get(repository.main, {}))
            for entry in map(json.loads, self.body.splitlines()):
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.uploads[value["oid"]]
            oid = repository.commit(files)
            return self.json({"commitUrl": f"{hub.address}/{name}/commit/{oid}", "commitOid": oid})

        def fine(self):
            return self.json({"errors": [], "warnings": []})

    name = r"([\w.-]+/[\w.-]+)"
    ROUTES = (
        (rf"/{name}/resolve/([\w.-]+)/([\w.-]+)", Handler.resolve),
        (r"/api/repos/create", Handler.create),
        (rf"/api/models/{name}/preupload/main", Handler.preupload),
        (rf"/{name}\.git/info/lfs/objects/batch", Handler.batch),
        (r"/upload/(\w+)", Handler.upload),
        (rf"/api/models/{name}/commit/main", Handler.commit),
        (r"/api/validate-yaml", Handler.fine),
    )
    return Handler
