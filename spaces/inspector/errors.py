"""What the inspector refuses, with messages for its visitors."""


class BadRequest(ValueError):
    """A query or a request that is not valid; the message is for its author."""


class UnusableDataset(ValueError):
    """A data set that cannot be shown; visitors see the message."""


class NotYet(UnusableDataset):
    """A request that would have to wait; the same one succeeds later."""
