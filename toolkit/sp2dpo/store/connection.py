"""Connect to SQLite files of strangers: values are bounded, and a signal ends a query."""

import sqlite3
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

LONGEST_VALUE = 1 << 28
"""Largest value and row in bytes: a pair with its images fits, and memory stays bounded."""
LONGEST_STATEMENT = 1_000_000
"""Largest SQL statement in bytes, those of a file's schema included; ours have some thousands."""
_OPERATIONS = 20_000
"""Operations of SQLite's machine between two looks at pending signals, about a millisecond."""
_ROWS = 100
_CHARACTERS = 1 << 20
"""Rows and characters or bytes that a loop over a cursor reads ahead, about: a row can be large."""
_DEFENSIVE = {"SQLITE_DBCONFIG_DEFENSIVE": True, "SQLITE_DBCONFIG_ENABLE_TRIGGER": False,
              "SQLITE_DBCONFIG_ENABLE_VIEW": False}  # fmt: skip
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Looks:
    """What SQLite asks every `_OPERATIONS` operations: whether to end the query.

    Attributes:
        error: Exception that a signal handler raised inside a query; None if none did.
        left: Looks after which a query is ended; None without a bound.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.left: int | None = None

    def answers(self) -> Iterator[bool]:
        """Yield whether to end the query, for every look."""
        # A generator, because Python runs signal handlers where a function begins or resumes. At
        # the beginning of a plain function their exception could not be caught, and the module
        # `sqlite3` would drop it.
        end = False
        while True:
            try:
                while True:
                    yield end
                    self.left = None if self.left is None else max(0, self.left - 1)
                    end = self.left == 0
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - raised again by `watch`
                self.error, end = error, True


class Connection(sqlite3.Connection):
    """A connection whose queries end at a signal, with the exception of the signal's handler.

    SQLite runs in C: without this, Ctrl-C would wait for the end of the query.

    Attributes:
        may_query: Whether `end_queries` was not called.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._looks = _Looks()
        self.may_query = True
        answers = self._looks.answers()
        next(answers)  # the beginning of a generator is as bad a place as that of a function
        self.set_progress_handler(answers.__next__, _OPERATIONS)
        self.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
        self.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST_STATEMENT)
        # C code, in which no signal handler runs.
        self.create_function("crc32", 1, zlib.crc32, deterministic=True)

    def harden(self, *, attach: bool) -> None:
        """Refuse what only a foreign schema asks for; reads nothing of the file.

        Args:
            attach: Whether other files may be attached.
        """
        self.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, int(attach))
        # Python has these settings since 3.12; a schema with triggers or views is refused anyway.
        # `merge` turns the journal of a file that nobody else uses off, which DEFENSIVE forbids.
        configure = None if attach else getattr(self, "setconfig", None)
        if configure is not None:
            for name, value in _DEFENSIVE.items():
                configure(getattr(sqlite3, name), value)
        self.execute("PRAGMA trusted_schema = OFF")
        self.execute("PRAGMA cell_size_check = ON")

    def bound_queries(self, looks: int | None) -> None:
        """End queries after so many times 20,000 operations in all; None for no bound."""
        self._looks.left = looks

    def end_queries(self) -> None:
        """End the query that runs in another thread, and all later ones that take long."""
        self._looks.left = 0
        self.may_query = False

    def cursor(self, factory: Any = None) -> Any:
        """Return a cursor whose statements end at a signal."""
        return super().cursor(factory or _Cursor)

    def execute(self, *arguments: Any) -> "_Cursor":
        """Run a statement; like the methods below, on a new cursor of ours."""
        return self.cursor().execute(*arguments)

    def executemany(self, *arguments: Any) -> "_Cursor":
        """Run a statement once for each of several rows of values."""
        return self.cursor().executemany(*arguments)

    def executescript(self, *arguments: Any) -> "_Cursor":
        """Run several statements."""
        return self.cursor().executescript(*arguments)

    def watch(
        self,
        query: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Result:
        """Call a method that runs a query; raise what a signal handler raised meanwhile."""
        try:
            return query(*arguments, **options)
        except sqlite3.OperationalError:
            error, self._looks.error = self._looks.error, None
            if error is None:
                raise
            raise error from None


class _Cursor(sqlite3.Cursor):
    """A cursor of a `Connection`."""

    connection: Connection  # pyright: ignore[reportIncompatibleMethodOverride]

    def execute(self, *arguments: Any) -> "_Cursor":
        self.connection.watch(super().execute, *arguments)
        return self

    def executemany(self, *arguments: Any) -> "_Cursor":
        self.connection.watch(super().executemany, *arguments)
        return self

    def executescript(self, *arguments: Any) -> "_Cursor":
        self.connection.watch(super().executescript, *arguments)
        return self

    def fetchone(self) -> Any:
        return self.connection.watch(super().fetchone)

    def fetchall(self) -> list[Any]:
        return self.connection.watch(super().fetchall)

    def __next__(self) -> Any:
        return self.connection.watch(super().__next__)

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Some rows at a time: a call in Python for each row would take longer than SQLite.
        count = 1
        while rows := self.connection.watch(super().fetchmany, count):
            yield from rows
            size = sum(len(value) for value in rows[-1] if isinstance(value, (str, bytes)))
            count = max(1, min(_ROWS, 4 * count, _CHARACTERS // (size + 1)))
