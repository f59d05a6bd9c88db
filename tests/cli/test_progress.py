"""The bar of progress: for people a bar, for a log next to nothing."""

import io
from contextlib import redirect_stderr

from sp2dpo.cli.progress import reply_bar


class Terminal(io.StringIO):
    """A terminal of 100 columns, for what is written to it."""

    def isatty(self):
        return True


def test_the_bar_counts_replies_and_refusals():
    with redirect_stderr(Terminal()) as screen, reply_bar(3) as count:
        count(1, 0)
        count(0, 0)  # a reply that is asked for once more
        count(1, 1)
        count(1, 0)
    last = screen.getvalue().rstrip().rsplit("\r", 1)[-1]
    assert "3/3" in last
    assert "refused=1" in last


def test_a_bar_that_ends_within_a_minute_leaves_a_log_empty():
    with redirect_stderr(io.StringIO()) as log, reply_bar(2) as count:
        count(1, 0)
    assert log.getvalue() == ""


def test_what_an_adaptive_panel_does_without_brings_the_end_nearer():
    with redirect_stderr(Terminal()) as screen, reply_bar(9) as count:
        count(1, 0)
        count(8, 0)
    assert "9/9" in screen.getvalue().rstrip().rsplit("\r", 1)[-1]
