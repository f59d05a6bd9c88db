"""What can go wrong between us and a teacher."""


class TeacherError(OSError):
    """A teacher that cannot be asked: the run stops, and nothing is recorded for the request."""


class Unavailable(TeacherError):
    """A fault that may pass: overload, an error of the server, a lost connection, a time-out.

    Attributes:
        reason: what a request is refused with that fails so for good: `http-500`, `no-answer`.
        overloaded: whether the server, or the time that it takes, asks for fewer requests at once.
        lost: whether there was no answer at all.
        wait: seconds that the server wants to be left alone.
    """

    def __init__(
        self,
        text: str,
        *,
        reason: str,
        overloaded: bool = False,
        lost: bool = False,
        wait: float = 0.0,
    ) -> None:
        super().__init__(text)
        self.reason = reason
        self.overloaded = overloaded
        self.lost = lost
        self.wait = wait


class Declined(ValueError):
    """The server will not answer this request (HTTP 400, 413, 422); asking again is no use.

    Attributes:
        status: of the HTTP answer.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status = status
