"""Becomes a command of a command server, as `python ARGUMENTS` would run it.

`CommandServer.python` is this file with an interpreter and the address of its server: a program to
use where `sys.executable` is expected. Output, exit code and signals are those of the command.
"""

import json
import os
import signal
import socket
import sys

SOCKET = ""

words = [word for word in sys.argv[1:] if word != "-u"]
module = words[0] == "-m"
files = {name: f"/proc/{os.getpid()}/fd/{number}"
         for number, name in enumerate(("stdin", "stdout", "stderr"))}  # fmt: skip
command = files | {
    "arguments": words[1 + module :],
    "environment": dict(os.environ),
    "folder": os.getcwd(),  # noqa: PTH109 - pathlib takes half of the time of this program
    "module": words[1] if module else None,
    "script": None if module else words[0],
}
connection = socket.socket(socket.AF_UNIX)
connection.connect(SOCKET)
connection.sendall(json.dumps(command).encode() + b"\n")
lines = connection.makefile("r")
child = int(lines.readline())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: os.kill(child, number))
code = int(lines.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
