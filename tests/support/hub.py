"""A running Hub of the tests, and a home for the clients that speak to it."""

import json
import os
import subprocess
import sys
import urllib.request

from support.harness import run

TOKEN = "hf_" + "planted0" * 4
LICENSE = ("--license", "apache-2.0")
TIMEOUT = 60
"""Seconds for a request."""


class Hub:
    """A running Hub, and a home for its clients."""

    def __init__(self, url, home):
        self.url, self.home = url, home

    @property
    def env(self):
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(self.home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def ask(self, path, payload=None):
        data = None if payload is None else json.dumps(payload).encode()
        head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, head)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.load(answer)

    def fault(self, **fault):
        self.ask("/_test/fault", fault)

    def clear(self):
        request = urllib.request.Request(f"{self.url}/_test/fault", b"null", method="POST")
        urllib.request.urlopen(request, timeout=TIMEOUT).close()

    def head(self, repo):
        return self.ask(f"/api/datasets/{repo}")["sha"]

    def text(self, repo, path, revision="main"):
        head = {"Authorization": f"Bearer {TOKEN}"}
        where = f"{self.url}/datasets/{repo}/resolve/{revision}/{path}"
        request = urllib.request.Request(where, headers=head)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return answer.read().decode()

    def schedule(self, repo, revision="main"):
        return json.loads(self.text(repo, "manifest.json", revision))["schedule"]["gap"]

    def run(self, *words, **options):
        return run(*words, env=self.env, **options)

    def publish(self, folder, repo, *arguments):
        result = self.run("publish", folder, "--repo", repo, *LICENSE, *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def refuses(self, folder, repo, *arguments, code=1):
        result = self.run("publish", folder, "--repo", repo, *arguments)
        assert result.returncode == code, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr

    def python(self, script, **env):
        result = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | self.env | env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout
