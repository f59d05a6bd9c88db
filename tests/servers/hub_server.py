"""A small Hub for the real clients: repos with commits, tags, pull requests, LFS, faults on demand.

    python tests/servers/hub_server.py --root FOLDER [--token T] [--xet] [--seed org/name=REFS]

It speaks as much of the Hub's HTTP API as huggingface_hub and datasets ask for; a path that is not
served answers 501, so that a client that asks for more than a test expects fails loudly. Contents
lie in FOLDER by their SHA-256. REFS holds a folder for each ref (`main`, `v1`) of a data set that
is there from the start; a ref's commit is then a hash of its files. With --token, what is private
or gated and every change want that token. With --xet, files go to a store of hf_xet's own below
FOLDER/xet, and cannot be read back here.

What a test asks of it, beside the Hub's API:

    GET  /_test/log        the requests so far, "METHOD /path" each
    POST /_test/fault      the next requests are answered with an error, see `Fault`
    POST /_test/commit     somebody else's commit: {"repo", "path", "text"}
    POST /_test/corrupt    one byte of a file turns round: {"repo", "revision", "path"}
"""

import argparse
import base64
import gzip
import hashlib
import json
import re
import shutil
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

BORN = "2026-01-01T00:00:00.000Z"
LFS = (".parquet", ".png", ".arrow", ".bin", ".safetensors", ".gz")
PAGE = 20
"""Entries of a listing that one answer holds."""
PART = 16 << 20
"""Bytes of one part of a large upload."""
LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "odc-by", "other", "unknown"}
KINDS = {"datasets": "dataset", "models": "model", "spaces": "space"}


class Refused(Exception):
    """An answer that is an error: the status, the Hub's code for it, the words."""

    def __init__(self, status, code, message):
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass
class Fault:
    """What goes wrong with requests.

    Attributes:
        status: of the answer; 0 drops the connection without one.
        skip: requests that fit and still go well.
        count: requests that then fail.
        match: a pattern that "METHOD /path" has to contain.
        after: the request is carried out first, and its answer lost.
        race: a path that somebody else commits to just before the request is carried out, which
            then goes on.
        wait: seconds before it.
        echo: the answer repeats the request's Authorization header.
    """

    status: int = 500
    skip: int = 0
    count: int = 1
    match: str = ""
    after: bool = False
    race: str = ""
    wait: float = 0.0
    echo: bool = False


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    sha256: str
    git: str
    size: int
    lfs: bool

    @property
    def oid(self):
        return self.sha256 if self.lfs else self.git


@dataclass
class Repo:
    """Commits, and what points to them."""

    kind: str
    name: str
    private: bool = False
    gated: object = False
    commits: dict = field(default_factory=dict)
    parents: dict = field(default_factory=dict)
    titles: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    pulls: list = field(default_factory=list)
    variables: dict = field(default_factory=dict)

    def at(self, revision):
        """The commit that a ref, a tag or a commit names, and its files."""
        oid = self.refs.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid, self.commits[oid]

    def add(self, ref, files, title, oid=None):
        parent = self.refs.get(ref)
        content = json.dumps([parent, sorted((p, f.sha256) for p, f in files.items()), title])
        salt = f"{len(self.commits)}{self.name}"
        oid = oid or hashlib.sha1(f"{content}{salt}".encode()).hexdigest()
        self.commits[oid], self.parents[oid], self.titles[oid] = files, parent, title
        self.refs[ref] = oid
        return oid


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def folder_commit(folder):
    """The commit of a data set that was there from the start: a hash of its files."""
    digest = hashlib.sha1()
    for path in files_of(folder):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


class World:
    """All repos, and where contents lie."""

    def __init__(self, root, token=None, xet=False):
        self.root, self.token, self.xet = root, token, xet
        self.repos, self.log, self.faults = {}, [], []
        self.lock = threading.RLock()
        (root / "objects").mkdir(parents=True, exist_ok=True)

    def path_of(self, sha256):
        return self.root / "objects" / sha256

    def put(self, data, path):
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.path_of(sha256).exists():
            self.path_of(sha256).write_bytes(data)
        git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        return File(sha256, git, len(data), path.endswith(LFS))

    def seed(self, name, refs):
        repo = self.repos["dataset", name] = Repo("dataset", name)
        for folder in sorted(refs.iterdir()):
            files = {
                str(path.relative_to(folder)): self.put(path.read_bytes(), path.name)
                for path in files_of(folder)
            }
            oid = repo.add("main", files, "seed", folder_commit(folder))
            repo.tags[folder.name] = oid
        repo.refs["main"] = repo.tags.pop("main")

    def find(self, kind, name):
        if (kind, name) not in self.repos:
            raise Refused(404, "RepoNotFound", "Repository not found")
        return self.repos[kind, name]

    def stranger(self, repo, path, text):
        """A commit of somebody else's."""
        _, files = repo.at("main")
        return repo.add("main", files | {path: self.put(text.encode(), path)}, f"write {path}")


class Hub(BaseHTTPRequestHandler):
    """Answers with JSON, or with the bytes of a file."""

    protocol_version = "HTTP/1.1"
    world: World

    def do_GET(self):
        repo = r"/api/(?P<kinds>datasets|models|spaces)/(?P<name>[^/]+/[^/]+)"
        self.answer(
            (r"/_test/log", self.show_log),
            (r"/api/whoami-v2", self.whoami),
            (repo, self.info),
            (rf"{repo}/revision/(?P<revision>[^/]+)", self.info),
            (rf"{repo}/refs", self.refs),
            (rf"{repo}/auth-check", self.auth_check),
            (rf"{repo}/variables", self.variables),
            (rf"{repo}/commits/(?P<revision>[^/]+)", self.commits),
            (rf"{repo}/discussions", self.discussions),
            (rf"{repo}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", self.tree),
            (rf"{repo}/xet-write-token/(?P<revision>.+)", self.xet_token),
            (
                r"/(?:(?P<kinds>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"
                r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
                self.resolve,
            ),
        )

    do_HEAD = do_GET

    def do_POST(self):
        repo = r"/api/(?P<kinds>datasets|models|spaces)/(?P<name>[^/]+/[^/]+)"
        git = r"/(?:(?P<kinds>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)\.git"
        self.answer(
            (r"/_test/fault", self.take_fault),
            (r"/_test/commit", self.take_commit),
            (r"/_test/corrupt", self.corrupt),
            (r"/api/repos/create", self.create),
            (r"/api/validate-yaml", self.validate_yaml),
            (rf"{repo}/paths-info/(?P<revision>[^/]+)", self.paths_info),
            (rf"{repo}/preupload/(?P<revision>[^/]+)", self.preupload),
            (rf"{repo}/commit/(?P<revision>[^/]+)", self.commit),
            (rf"{repo}/tag/(?P<revision>[^/]+)", self.tag),
            (rf"{repo}/variables", self.set_variable),
            (rf"{git}/info/lfs/objects/batch", self.lfs_batch),
            (r"/_lfs/verify", self.lfs_verify),
            (r"/_lfs/(?P<oid>[0-9a-f]{64})/complete", self.lfs_complete),
        )

    def do_PUT(self):
        repo = r"/api/(?P<kinds>datasets|models|spaces)/(?P<name>[^/]+/[^/]+)"
        self.answer(
            (rf"{repo}/settings", self.settings),
            (r"/_lfs/(?P<oid>[0-9a-f]{64})", self.lfs_put),
            (r"/_lfs/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", self.lfs_put),
        )

    def do_DELETE(self):
        repo = r"/api/(?P<kinds>datasets|models|spaces)/(?P<name>[^/]+/[^/]+)"
        self.answer(
            (r"/api/repos/delete", self.delete),
            (rf"{repo}/tag/(?P<revision>[^/]+)", self.untag),
            (rf"{repo}/variables", self.unset_variable),
        )

    def answer(self, *routes):
        """Calls the first route that fits the path; what it refuses becomes an error's answer."""
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        line = f"{self.command} {self.url.path}"
        length = int(self.headers.get("Content-Length", 0))
        # A large body is read by the route, part by part.
        self.left = length
        self.body = b"" if self.url.path.startswith("/_lfs/") else self.take(length)
        if self.headers.get("Content-Encoding") == "gzip":
            self.body = gzip.decompress(self.body)
        self.lost = None
        try:
            if not self.url.path.startswith("/_test/"):
                with self.world.lock:
                    self.world.log.append(line)
                self.suffer(line)
            for pattern, handler in routes:
                match = re.fullmatch(pattern, self.url.path)
                if match:
                    named = {key: unquote(text) for key, text in match.groupdict().items() if text}
                    if "name" in named:
                        kind = KINDS[named.pop("kinds", "models")]
                        named["repo"] = self.permitted(kind, named.pop("name"))
                    return handler(**named)
            raise Refused(501, "NotServed", f"{self.command} {self.path} is not served")
        except Refused as error:
            payload = {"error": str(error)}
            head = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            return self.respond(payload, status=error.status, head=head, lose=False)
        finally:
            self.take(self.left)

    def take(self, length):
        data = self.rfile.read(length) if length else b""
        self.left -= len(data)
        return data

    def suffer(self, line):
        """Whatever is to go wrong with this request does."""
        with self.world.lock:
            for fault in list(self.world.faults):
                if not re.search(fault.match, line):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.count -= 1
                if fault.count <= 0:
                    self.world.faults.remove(fault)
                break
            else:
                return
        time.sleep(fault.wait)
        if fault.race:
            repo = next(iter(self.world.repos.values()))
            with self.world.lock:
                self.world.stranger(repo, fault.race, f"theirs {len(repo.commits)}\n")
            return
        if fault.wait and not fault.status:
            return
        if fault.after:
            self.lost = fault.status
            return
        if not fault.status:
            self.close_connection = True
            self.connection.close()
            raise ConnectionAbortedError("a fault that was asked for")
        message = "out of order"
        if fault.echo:
            message += f": you sent {self.headers.get('Authorization')}"
        raise Refused(fault.status, "Fault", message)

    def permitted(self, kind, name):
        """The repo, if the one who asks may."""
        repo = self.world.find(kind, name)
        is_authorized = self.world.token is None or (
            self.headers.get("Authorization") == f"Bearer {self.world.token}"
        )
        if repo.private and not is_authorized:
            raise Refused(401, "RepoNotFound", "Repository not found")
        if repo.gated and not is_authorized and "/resolve/" in self.url.path:
            raise Refused(401, "GatedRepo", f"Access to {name} is restricted")
        if not is_authorized and self.command != "GET" and self.command != "HEAD":
            reads = ("/paths-info/", "/discussions")
            if not any(part in self.url.path for part in reads):
                raise Refused(401, "Unauthorized", "Invalid credentials in Authorization header")
        return repo

    # What a test asks.

    def show_log(self):
        self.respond(self.world.log)

    def take_fault(self):
        with self.world.lock:
            payload = json.loads(self.body)
            if payload is None:
                self.world.faults.clear()
                self.world.log.clear()
            else:
                self.world.faults.append(Fault(**payload))
        self.respond({})

    def take_commit(self):
        payload = json.loads(self.body)
        with self.world.lock:
            repo = self.world.find("dataset", payload["repo"])
            oid = self.world.stranger(repo, payload["path"], payload["text"])
        self.respond({"oid": oid})

    def corrupt(self):
        payload = json.loads(self.body)
        _, files = self.world.find("dataset", payload["repo"]).at(payload["revision"])
        path = self.world.path_of(files[payload["path"]].sha256)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        self.respond({})

    # The Hub's API.

    def whoami(self):
        self.respond({"type": "user", "name": "org", "orgs": [], "auth": {}})

    def create(self):
        payload = json.loads(self.body)
        name = f"{payload.get('organization') or 'org'}/{payload['name']}"
        kind = payload.get("type", "model")
        if self.world.token and (self.headers.get("Authorization") != f"Bearer {self.world.token}"):
            raise Refused(401, "Unauthorized", "Invalid credentials in Authorization header")
        with self.world.lock:
            if (kind, name) in self.world.repos:
                raise Refused(409, "Conflict", "You already created this repo")
            private = payload.get("private") or payload.get("visibility") == "private"
            repo = Repo(kind, name, private=bool(private))
            text = ".parquet filter=lfs diff=lfs merge=lfs -text\n"
            repo.add("main", {".gitattributes": self.world.put(text.encode(), "x")}, "initial")
            self.world.repos[kind, name] = repo
        prefix = {"dataset": "/datasets", "space": "/spaces"}.get(kind, "")
        self.respond({"url": f"{self.base}{prefix}/{name}", "name": name, "id": "0" * 24})

    def delete(self):
        payload = json.loads(self.body)
        del self.world.repos[
            payload.get("type", "model"), f"{payload['organization']}/{payload['name']}"
        ]
        self.respond({})

    def variables(self, repo):
        self.respond({key: {"key": key, "value": value} for key, value in repo.variables.items()})

    def set_variable(self, repo):
        payload = json.loads(self.body)
        repo.variables[payload["key"]] = payload["value"]
        self.variables(repo)

    def unset_variable(self, repo):
        repo.variables.pop(json.loads(self.body)["key"])
        self.variables(repo)

    def settings(self, repo):
        payload = json.loads(self.body)
        repo.private = payload.get("private", repo.private)
        repo.gated = payload.get("gated", repo.gated)
        self.respond({"private": repo.private, "gated": repo.gated})

    def auth_check(self, repo):
        self.respond({})

    def validate_yaml(self):
        text = json.loads(self.body)["content"]
        front_matter = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        errors = []
        try:
            head = (front_matter and yaml.safe_load(front_matter[1])) or {}
            if head.get("license", "mit") not in LICENCES:
                errors.append({"message": f'"license" must be one of {sorted(LICENCES)}'})
            for key in ("configs", "dataset_info", "tags"):
                if key in head and not isinstance(head[key], list):
                    errors.append({"message": f'"{key}" must be an array'})
        except yaml.YAMLError as error:
            errors.append({"message": f"{error}"})
        self.respond({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def info(self, repo, revision="main"):
        oid, files = repo.at(revision)
        card = {}
        if "README.md" in files:
            text = self.world.path_of(files["README.md"].sha256).read_text()
            front_matter = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
            card = (front_matter and yaml.safe_load(front_matter[1])) or {}
        payload = {"_id": "0" * 24, "id": repo.name, "author": repo.name.split("/")[0]}
        payload |= {"sha": oid, "siblings": [{"rfilename": path} for path in sorted(files)]}
        payload |= {"tags": [], "cardData": card, "private": repo.private, "gated": repo.gated}
        payload |= {"disabled": False, "downloads": 0, "likes": 0}
        self.respond(payload | {"createdAt": BORN, "lastModified": BORN})

    def refs(self, repo):
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repo.refs.items()
            if not name.startswith("refs/")
        ]
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
            for name, oid in repo.tags.items()
        ]
        pulls = [
            {"name": name, "ref": name, "targetCommit": oid}
            for name, oid in repo.refs.items()
            if name.startswith("refs/pr/")
        ]
        payload = {"branches": branches, "tags": tags, "converts": []}
        self.respond(payload | ({"pullRequests": pulls} if "include_prs" in self.query else {}))

    def commits(self, repo, revision):
        oid, _ = repo.at(revision)
        history = []
        while oid:
            history.append(
                {"id": oid, "title": repo.titles[oid], "message": "", "date": BORN, "authors": []}
            )
            oid = repo.parents[oid]
        self.respond(history)

    def discussions(self, repo):
        page = int(self.query.get("p", ["0"])[0])
        pulls = repo.pulls[page * PAGE : (page + 1) * PAGE]
        self.respond({"discussions": pulls, "count": len(repo.pulls), "start": page * PAGE})

    def entry(self, path, file):
        fields = {"type": "file", "path": path, "oid": file.git, "size": file.size}
        lfs = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
        return fields | ({"lfs": lfs} if file.lfs else {})

    def tree(self, repo, revision, path=""):
        _, files = repo.at(revision)
        below = {name for name in files if not path or name.startswith(f"{path}/")}
        if path and not below:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        start = len(path) + 1 if path else 0
        folders = set()
        for name in below:
            parts = name[start:].split("/")[:-1]
            many = range(1, len(parts) + 1) if deep else range(1, min(2, len(parts) + 1))
            folders |= {name[:start] + "/".join(parts[:n]) for n in many}
        shown = sorted(folders | {name for name in below if deep or "/" not in name[start:]})
        first = int(self.query.get("cursor", ["0"])[0])
        entries = [
            self.entry(name, files[name])
            if name in files
            else {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
            for name in shown[first : first + PAGE]
        ]
        head = {}
        if first + PAGE < len(shown):
            next_page = f"{self.base}{self.url.path}?recursive={deep}&cursor={first + PAGE}"
            head = {"Link": f'<{next_page}>; rel="next"'}
        self.respond(entries, head=head)

    def paths_info(self, repo, revision):
        _, files = repo.at(revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        folders = {"/".join(name.split("/")[:n]) for name in files for n in range(1, 9)}
        entries = [self.entry(path, files[path]) for path in paths if path in files]
        entries += [
            {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
            for path in paths
            if path not in files and path in folders
        ]
        self.respond(entries)

    def preupload(self, repo, revision):
        _, files = repo.at(revision)
        uploads = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            lfs = path.endswith(LFS) or file["size"] > 10_000_000
            existing = {"oid": files[path].oid} if path in files else {}
            mode = "lfs" if lfs else "regular"
            uploads.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | existing)
        self.respond({"files": uploads})

    def commit(self, repo, revision):
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        head = next(line["value"] for line in lines if line["key"] == "header")
        with self.world.lock:
            parent, files = repo.at(revision)
            if head.get("parentCommit") not in (None, parent):
                raise Refused(412, "PreconditionFailed", "A commit has happened since.")
            files = dict(files)
            for line in lines:
                self.apply(line["key"], line["value"], files)
            ref, url = revision, None
            prefix = {"dataset": "/datasets", "space": "/spaces"}.get(repo.kind, "")
            page = f"{self.base}{prefix}/{repo.name}"
            if "create_pr" in self.query:
                number = len(repo.pulls) + 1
                ref, url = f"refs/pr/{number}", f"{page}/discussions/{number}"
                repo.refs[ref] = parent
                repo.pulls.append(
                    {
                        "title": head["summary"], "num": number, "status": "open",
                        "author": {"name": "org"}, "createdAt": BORN, "isPullRequest": True,
                        "repo": {"name": repo.name, "type": repo.kind},
                    }
                )  # fmt: skip
            oid = repo.add(ref, files, head["summary"])
        payload = {"success": True, "commitOid": oid, "commitUrl": f"{page}/commit/{oid}"}
        self.respond(payload | {"pullRequestUrl": url})

    def apply(self, key, value, files):
        path = value.get("path", "")
        if key == "file":
            files[path] = self.world.put(base64.b64decode(value["content"]), "regular")
        elif key == "lfsFile":
            if not self.world.path_of(value["oid"]).exists() and not self.world.xet:
                raise Refused(400, "BadRequest", f"{path}: its content was not uploaded")
            files[path] = File(value["oid"], value["oid"][:40], value["size"], lfs=True)
        elif key == "deletedFile":
            if path not in files:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            del files[path]
        elif key == "deletedFolder":
            for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[name]

    def tag(self, repo, revision):
        name = json.loads(self.body)["tag"]
        with self.world.lock:
            if name in repo.tags:
                raise Refused(409, "Conflict", f"Tag {name} exists")
            repo.tags[name] = repo.at(revision)[0]
        self.respond({})

    def untag(self, repo, revision):
        if repo.tags.pop(revision, None) is None:
            raise Refused(404, "RevisionNotFound", f"no tag {revision}")
        self.respond({})

    def xet_token(self, repo, revision):
        if not self.world.xet:
            raise Refused(501, "NotServed", "there is no Xet here")
        store = self.world.root / "xet"
        store.mkdir(exist_ok=True)
        head = {"X-Xet-Cas-Url": f"local://{store}", "X-Xet-Access-Token": "none"}
        payload = {"casUrl": f"local://{store}", "accessToken": "none", "exp": 4102444800}
        self.respond(payload, head=head | {"X-Xet-Token-Expiration": "4102444800"})

    def lfs_batch(self, repo):
        objects = []
        for item in json.loads(self.body)["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if not self.world.path_of(item["oid"]).exists():
                href, head = f"{self.base}/_lfs/{item['oid']}", {}
                if item["size"] > PART:
                    parts = -(-item["size"] // PART)
                    head = {str(n): f"{href}/{n}" for n in range(1, parts + 1)}
                    head["chunk_size"] = str(PART)
                    href += "/complete"
                verify = {"href": f"{self.base}/_lfs/verify", "header": {}}
                entry["actions"] = {"upload": {"href": href, "header": head}, "verify": verify}
            objects.append(entry)
        self.respond({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid, part=None):
        path = self.world.root / "objects" / (f"{oid}.{part}" if part else f"{oid}.whole")
        with path.open("wb") as file:
            while self.left:
                data = self.take(min(self.left, 1 << 20))
                if not data:
                    raise Refused(400, "BadRequest", "the upload broke off")
                file.write(data)
        if not part:
            self.keep(oid, [path])
        self.respond({}, head={"ETag": f'"{oid}{part or ""}"'})

    def lfs_complete(self, oid):
        numbers = [part["partNumber"] for part in json.loads(self.take(self.left))["parts"]]
        self.keep(oid, [self.world.root / "objects" / f"{oid}.{n}" for n in numbers])
        self.respond({})

    def keep(self, oid, parts):
        assembled = self.world.root / "objects" / f"{oid}.{threading.get_ident()}"
        digest = hashlib.sha256()
        with assembled.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)
                part.unlink()
        with assembled.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != oid:
            raise Refused(400, "BadRequest", "the content has another SHA-256")
        assembled.rename(self.world.path_of(oid))

    def lfs_verify(self):
        payload = json.loads(self.take(self.left))
        path = self.world.path_of(payload["oid"])
        if not path.exists() or path.stat().st_size != payload["size"]:
            raise Refused(404, "EntryNotFound", "not uploaded")
        self.respond({})

    def resolve(self, repo, revision, path):
        oid, files = repo.at(revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        file = files[path]
        head = {"X-Repo-Commit": oid, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            head |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        where = self.world.path_of(file.sha256)
        byte_range = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        first, last, status = 0, file.size - 1, 200
        if byte_range and file.size:
            if byte_range[1]:
                first, last = int(byte_range[1]), min(int(byte_range[2] or last), last)
            else:
                first = max(0, file.size - int(byte_range[2]))
            status = 206
            head["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        with where.open("rb") as content:
            content.seek(first)
            self.stream(content, last - first + 1, status=status, head=head)

    # How answers are sent.

    @property
    def base(self):
        return f"http://{self.headers['Host']}"

    def stream(self, content, size, *, status, head):
        self.begin(status, head | {"Content-Length": str(size)}, "application/octet-stream")
        if self.command == "HEAD":
            return
        while size > 0 and (data := content.read(min(size, 1 << 20))):
            self.wfile.write(data)
            size -= len(data)

    def respond(self, payload, *, status=200, head=None, lose=True):
        if lose and self.lost is not None:
            if self.lost == 0:
                self.close_connection = True
                self.connection.close()
                return
            payload, status, head = {"error": "lost"}, self.lost, {"X-Error-Message": "lost"}
        data = json.dumps(payload).encode()
        self.begin(status, (head or {}) | {"Content-Length": str(len(data))}, "application/json")
        if self.command != "HEAD":
            self.wfile.write(data)

    def begin(self, status, head, kind):
        self.send_response(status)
        for name, value in ({"Content-Type": kind} | head).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        """Says nothing: the terminal belongs to the tests."""


class Server(ThreadingHTTPServer):
    """Leaves connections that break off alone."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that is killed, or a fault that was asked for, is no error here."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="where contents lie")
    parser.add_argument("--token", help="that changes want")
    parser.add_argument("--xet", action="store_true", help="files go to hf_xet's own store")
    parser.add_argument("--seed", action="append", default=[], help="org/name=FOLDER OF REFS")
    options = parser.parse_args()
    Hub.world = World(options.root, options.token, options.xet)
    for text in options.seed:
        name, _, refs = text.partition("=")
        Hub.world.seed(name, Path(refs))
    with Server(("127.0.0.1", 0), Hub) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
