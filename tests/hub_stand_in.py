"""A stand-in for the Hugging Face hub on this machine: what huggingface_hub asks of it to write a repository."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = 10_000  # bytes, from which on a file goes by git's large-file storage


class HubStandIn:
    """repositories: name → its files by name. token: the one that may write. licences: those that a card may have."""

    def __init__(self):
        self.repositories, self.private, self.stored, self.commits = {}, set(), {}, []
        self.token, self.licences = "hf_test", ("mit",)
        self.address = ""


@contextmanager
def hub():
    stand_in = HubStandIn()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, content, status=200):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status >= 400:
                self.send_header("X-Error-Code", "RepoNotFound" if status == 404 else "")
                self.send_header("X-Error-Message", content["error"])
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):  # is the repository there, and with which files
            name = self.path.removeprefix("/api/models/").partition("?")[0].removesuffix("/tree/main")
            if "/tree/main" in self.path:
                files = stand_in.repositories[name].items()
                return self.answer([{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files])
            if name not in stand_in.repositories:
                return self.answer({"error": "Repository not found"}, 404)
            return self.answer({"id": name, "modelId": name, "siblings": [], "sha": "0" * 40})

        def do_PUT(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            stand_in.stored[hashlib.sha256(content).hexdigest()] = content
            self.answer({})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = self.path.partition("?")[0]
            if path == "/api/validate-yaml":
                return self.validate(json.loads(body)["content"])
            if self.headers.get("Authorization") != f"Bearer {stand_in.token}":
                return self.answer({"error": "Invalid username or password."}, 401)
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                stand_in.repositories[name] = {".gitattributes": b""}
                if asked.get("private") or asked.get("visibility") == "private":
                    stand_in.private.add(name)
                return self.answer({"url": f"{stand_in.address}/{name}"})
            if path.endswith("/preupload/main"):
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": mode(f), "shouldIgnore": False, "oid": None} for f in files]
                return self.answer({"files": modes})
            if path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**o, "actions": {"upload": {"href": f"{stand_in.address}/store/{o['oid']}"}}}
                    for o in json.loads(body)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            if path.endswith("/commit/main"):
                return self.commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
            return self.answer({"error": f"not known: {path}"}, 404)

        def validate(self, card):
            stated = next((line for line in card.splitlines() if line.startswith("license: ")), "")
            if stated.removeprefix("license: ") in stand_in.licences:
                return self.answer({"errors": [], "warnings": []})
            return self.answer({"error": "bad", "errors": [{"message": '"license" must be one of'}]}, 400)

        def commit(self, name, body):
            lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    stand_in.repositories[name][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    stand_in.repositories[name][value["path"]] = stand_in.stored[value["oid"]]
            stand_in.commits.append(name)
            address = f"{stand_in.address}/{name}/commit/{'1' * 40}"
            return self.answer({"commitUrl": address, "commitOid": "1" * 40, "success": True})

    def mode(file):
        return "lfs" if file["size"] > LARGE else "regular"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
