"""Run what reads a changed file, and collect what must not happen."""

import contextlib
import hashlib
import io
import json
import re
import sys
import traceback
from pathlib import Path

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Refused(Exception):
    """The change was noticed: the file is refused."""


class Done:
    """A command that has ended."""

    def __init__(self, code, output, errors):
        self.code, self.output, self.errors = code, output, errors

    def unless_refused(self):
        """Return this, or raise Refused with the command's message."""
        if self.code:
            raise Refused((self.errors or self.output)[-300:])
        return self


class Probe:
    """Runs commands and functions in the folder of a case.

    Attributes:
        rng: Draws the commands of a case, if not all of them run.
        findings: What must not happen, as pairs of a kind and a text.
    """

    def __init__(self, folder, rng):
        self.folder, self.rng, self.findings = folder, rng, []

    def report(self, kind, text):
        self.findings.append((kind, text))

    def command(self, *arguments, codes=(0, 1, 2)):
        """Run `sp2dpo` in this process; an exit code other than these is a finding."""
        from sp2dpo.cli.main import main

        words = [str(argument) for argument in arguments]
        output, errors = io.StringIO(), io.StringIO()
        sys.argv = ["sp2dpo", *words]
        code = 0
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
            except BaseException as error:  # noqa: BLE001 - what a user would see as a traceback
                self.escape(error, " ".join(words))
                return Done(1, "", "traceback")
        done = Done(code, output.getvalue(), errors.getvalue())
        if code not in codes:
            self.report("exit code", f"{' '.join(words)}: {code}: {done.errors[-300:]}")
        if code and not (done.errors.strip() or done.output.strip()):
            self.report("no message", " ".join(words))
        if found := CONTROLS.search(done.output + done.errors):
            self.report("control character", f"{' '.join(words)}: {found[0]!r}")
        return done

    def call(self, function, *arguments, errors=(ValueError, OSError)):
        """Call a function; raise Refused for its documented errors."""
        try:
            return function(*arguments)
        except errors as error:
            raise Refused(str(error)[:300]) from None
        except BaseException as error:  # noqa: BLE001
            self.escape(error, getattr(function, "__name__", "call"))
            raise Refused(repr(error)[:300]) from None

    def script(self, function, code, *arguments):
        """Call a part of train.py as it does; raise Refused for an error that it prints."""
        from sp2dpo.training.console import one_line_errors

        errors = io.StringIO()
        try:
            with (
                contextlib.redirect_stderr(errors),
                one_line_errors("train.py", code, traceback=False),
            ):
                return function(*arguments)
        except SystemExit as end:
            if end.code != code:
                self.report("exit code", f"train.py: {end.code}")
            raise Refused(errors.getvalue()[:300]) from None
        except BaseException as error:  # noqa: BLE001
            self.escape(error, getattr(function, "__name__", "train.py"))
            raise Refused("traceback") from None

    def escape(self, error, where):
        """Report an error that no command may let through."""
        frames = traceback.extract_tb(error.__traceback__)
        places = ("sp2dpo", "spaces", "recipes")
        ours = [frame for frame in frames if any(place in frame.filename for place in places)]
        last = (ours or frames)[-1]
        path = Path(last.filename)
        text = f"{type(error).__name__} in {path.parent.name}/{path.name} {last.name}"
        self.report("traceback", f"{text}: {where}: {str(error)[:200]}")
        (self.folder / "traceback.txt").write_text(
            "".join(traceback.format_exception(error)), errors="backslashreplace"
        )


def digest(value):
    """Return a short name of a value's content."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_text(path):
    """Return a text, whatever its encoding."""
    return Path(path).read_text(encoding="utf-8", errors="replace")
