"""Ray clusters and annotating commands, as processes that a test can end."""

import re
import subprocess
import sys
import time
from contextlib import contextmanager

from support.harness import COMMAND, TESTS


class Cluster:
    """A Ray cluster on this computer, in a process of its own: its head, and more nodes."""

    def __init__(self, server):
        self._server = server
        self.address = server.stdout.readline().strip()

    def tell(self, word):
        self._server.stdin.write(word + "\n")
        self._server.stdin.flush()
        assert self._server.stdout.readline() == "done\n"


@contextmanager
def clustered():
    with subprocess.Popen(
        [sys.executable, TESTS / "support" / "ray_cluster.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as server:  # fmt: skip
        cluster = Cluster(server)
        assert re.fullmatch(r"[\d.]+:\d+", cluster.address)
        yield cluster
        server.stdin.close()


@contextmanager
def started(command, stderr=subprocess.PIPE):
    with subprocess.Popen(
        [*COMMAND, *map(str, command)], stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def until(condition, running):
    while not condition():
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
