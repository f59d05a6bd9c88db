"""Stands for `bin/vllm`: a small server that lives, falls ill and dies as `BEHAVIOUR` says.

Every start adds a line of JSON to the file `starts` of its environment.
"""

import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

ENVIRONMENT = Path(__file__).parents[1]
BEHAVIOUR = os.environ.get("BEHAVIOUR", "well")


def option(name):
    return next(a.split("=", 1)[1] for a in sys.argv if a.startswith(f"--{name}="))


def earlier_starts(port):
    starts = ENVIRONMENT / "starts"
    lines = starts.read_text().splitlines() if starts.exists() else []
    return sum(json.loads(line)["port"] == port for line in lines)


def stubborn_child():
    """A child in a session of its own that does not stop when it is asked to."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        os._exit(0)
    return child


class Health(http.server.BaseHTTPRequestHandler):
    ill_after = None  # answers
    answers = 0

    def do_GET(self):
        ill = self.ill_after is not None and Health.answers >= self.ill_after
        Health.answers += 1
        if ill and BEHAVIOUR == "hangs-once":
            time.sleep(600)
        if BEHAVIOUR == "redirects" and self.path == "/health":
            self.send_response(307)
            self.send_header("Location", "/elsewhere")
        else:
            self.send_response(500 if ill else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


def main():
    port = int(option("port"))
    before = earlier_starts(port)
    start = {
        "port": port,
        "pid": os.getpid(),
        "child": stubborn_child() if BEHAVIOUR == "child" else None,
        "arguments": sys.argv[1:],
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "path": os.environ["PATH"],
        "variables": sorted(os.environ),
    }
    with (ENVIRONMENT / "starts").open("a") as sink:
        sink.write(json.dumps(start) + "\n")
    print("loading\r\x1b[32mloaded\x1b[0m 50 %\x07", flush=True)
    if BEHAVIOUR == "dies" or (BEHAVIOUR == "dies-at-first" and not before):
        print("no such model", flush=True)
        raise SystemExit(3)
    if BEHAVIOUR == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if BEHAVIOUR in ("never", "stubborn-and-never"):
        if BEHAVIOUR == "stubborn-and-never":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if BEHAVIOUR == "dies-once-up" or (BEHAVIOUR == "relapses" and before != 1):
        threading.Timer(0.3, os._exit, [5]).start()
    if BEHAVIOUR == "relapses" and before == 1:
        print("out of memory", flush=True)
        raise SystemExit(6)
    if BEHAVIOUR in ("ill-once", "hangs-once") and not before:
        Health.ill_after = 3
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Health).serve_forever()


if __name__ == "__main__":
    main()
