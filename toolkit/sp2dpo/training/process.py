"""Start a process of a training so that a signal ends it quietly while its libraries are loading.

    python -m sp2dpo.training.process launcher ENGINE COMMAND ARGUMENTS...
    python -m sp2dpo.training.process commands COMMAND ARGUMENTS...

The first word is the module of this package whose `main` gets the other words.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip


def _end(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        name = signal.Signals(number).name
        os.write(2, f"sp2dpo: stopped by {name} before the first step: nothing is lost\n".encode())
    os._exit(128 + number)


def quiet_imports() -> None:
    """Keep a warning out of the output that bitsandbytes logs on some CPUs when it is imported.

    It is of a missing kernel, which only inference in four bits would use.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def main(words: Sequence[str]) -> int | None:
    """Import a module, which takes seconds, and call its `main`; return what it returns."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    quiet_imports()
    module, *arguments = words
    return import_module(f"sp2dpo.training.{module}").main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
