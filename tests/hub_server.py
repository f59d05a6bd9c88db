"""A small Hub that can be read: one data set, its refs and its files, for the real clients.

    python tests/hub_server.py --name org/name --root FOLDER

FOLDER holds a folder for each ref (`main`, `v1`) with that ref's files. A ref's commit is a hash of
its files. A path of the API that is not served answers 501, so that a client that asks for more
than a test expects fails loudly.
"""

import argparse
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BORN = "2026-01-01T00:00:00.000Z"


class Refused(Exception):
    """An answer that is an error: the status, the Hub's code for it, the words."""

    def __init__(self, status, code, said):
        super().__init__(said)
        self.status = status
        self.code = code


class Repo:
    """A data set: for each ref a folder, named by the hash of what it holds as well."""

    def __init__(self, name, root):
        self.name = name
        self.refs = {folder.name: folder for folder in sorted(root.iterdir())}
        self.commits = {self.commit(folder): folder for folder in self.refs.values()}

    @staticmethod
    def commit(folder):
        said = hashlib.sha1()
        for path in files_of(folder):
            said.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
        return said.hexdigest()

    def at(self, revision):
        """The commit and the folder that a ref or a commit names."""
        folder = self.refs.get(revision) or self.commits.get(revision)
        if folder is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commit(folder), folder


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def blob_of(path):
    """The git hash of a file."""
    data = path.read_bytes()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def entry_of(folder, path):
    """A file or a folder as the listing of a tree says it."""
    name = str(path.relative_to(folder))
    if path.is_dir():
        oid = hashlib.sha1(name.encode()).hexdigest()
        return {"type": "directory", "path": name, "oid": oid, "size": 0}
    return {"type": "file", "path": name, "oid": blob_of(path), "size": path.stat().st_size}


class Hub(BaseHTTPRequestHandler):
    """Answers with JSON, or with the bytes of a file."""

    protocol_version = "HTTP/1.1"
    repo: Repo

    def do_GET(self):
        self.answer(
            (r"/api/datasets/(?P<name>[^/]+/[^/]+)", self.info),
            (r"/api/datasets/(?P<name>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", self.info),
            (r"/api/datasets/(?P<name>[^/]+/[^/]+)/refs", self.refs),
            (r"/api/datasets/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", self.tree),
            (
                r"/api/datasets/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/(?P<path>.+)",
                self.tree,
            ),
            (
                r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
                self.resolve,
            ),
        )

    do_HEAD = do_GET

    def do_POST(self):
        self.answer(
            (
                r"/api/datasets/(?P<name>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)",
                self.paths_info,
            ),
        )

    def answer(self, *routes):
        """Calls the first route that fits the path; what it refuses becomes an error's answer."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked = urlsplit(self.path)
        self.form = parse_qs(body.decode(errors="replace"))
        try:
            for pattern, handler in routes:
                found = re.fullmatch(pattern, self.asked.path)
                if found:
                    named = {key: unquote(text) for key, text in found.groupdict().items()}
                    if named.pop("name") != self.repo.name:
                        raise Refused(404, "RepoNotFound", "Repository not found")
                    return handler(**named)
            raise Refused(501, "NotServed", f"{self.command} {self.path} is not served")
        except Refused as error:
            said = {"error": str(error)}
            head = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            return self.say(said, status=error.status, head=head)

    def info(self, revision="main"):
        commit, folder = self.repo.at(revision)
        siblings = [{"rfilename": str(path.relative_to(folder))} for path in files_of(folder)]
        said = {"_id": "0" * 24, "id": self.repo.name, "author": self.repo.name.split("/")[0]}
        said |= {"sha": commit, "siblings": siblings, "tags": [], "cardData": {}}
        said |= {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        self.say(said | {"createdAt": BORN, "lastModified": BORN})

    def refs(self):
        named = {name: self.repo.commit(folder) for name, folder in self.repo.refs.items()}
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": named.pop("main")}
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
            for name, commit in named.items()
        ]
        self.say({"branches": [branch], "tags": tags, "converts": []})

    def tree(self, revision, path=""):
        folder = self.repo.at(revision)[1]
        top = self.inside(folder, path)
        recursive = parse_qs(self.asked.query).get("recursive", ["false"])[0].lower() == "true"
        self.say([entry_of(folder, one) for one in sorted(top.glob("**/*" if recursive else "*"))])

    def paths_info(self, revision):
        folder = self.repo.at(revision)[1]
        asked = [folder / path for path in self.form.get("paths", [])]
        self.say([entry_of(folder, path) for path in asked if path.exists()])

    def resolve(self, revision, path):
        commit, folder = self.repo.at(revision)
        file = self.inside(folder, path)
        head = {"X-Repo-Commit": commit, "ETag": f'"{blob_of(file)}"'}
        self.say(file.read_bytes(), head=head, kind="application/octet-stream")

    @staticmethod
    def inside(folder, path):
        found = folder / path
        if ".." in Path(path).parts or not found.exists():
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        return found

    def say(self, said, *, status=200, head=None, kind="application/json"):
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        lines = {"Content-Type": kind, "Content-Length": str(len(data))} | (head or {})
        for name, value in lines.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        """Says nothing: the terminal belongs to the tests."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="org/name")
    parser.add_argument("--root", type=Path, required=True, help="holds a folder for each ref")
    options = parser.parse_args()
    Hub.repo = Repo(options.name, options.root)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
