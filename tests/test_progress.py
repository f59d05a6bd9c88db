"""The bar of progress: for people a bar, for a log next to nothing."""

import io
from contextlib import redirect_stderr

from harness import kept
from sp2dpo.progress import bar


class Terminal(io.StringIO):
    """A terminal of 100 columns, for what is written to it."""

    def isatty(self):
        return True


def test_the_bar_counts_replies_and_refusals():
    class Refused:
        annotation = None

    with redirect_stderr(Terminal()) as screen, bar(3) as count:
        count(kept("p", "t", "v", 3, 9))
        count(Refused())
        count(kept("p", "t", "v", 3, 9))
    last = screen.getvalue().rstrip().rsplit("\r", 1)[-1]
    assert "3/3" in last
    assert "refused=1" in last


def test_a_bar_that_ends_within_a_minute_leaves_a_log_empty():
    with redirect_stderr(io.StringIO()) as log, bar(2) as count:
        count(kept("p", "t", "v", 3, 9))
    assert log.getvalue() == ""
