"""The rows of a stream as all processes read them: in one order, and for training without an end.

accelerate would give each process some of a stream's files, if there are enough. These have
different numbers of rows, so the processes would begin an epoch at different steps: they would take
different numbers of steps from the same gradients, or wait for each other for ever. Here every
process reads all rows, and accelerate gives each its part of every batch, as of a stream in one
file. Several processes then train as one does with the same batches.

The end of a stream's epoch is not known in advance, which Trainer does not expect: the gradients of
an incomplete accumulation are added to those of the next step, and a resumed run skips the batches
of its first epoch only. A stream without an end has neither problem.
"""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils import data


class StreamRows(data.IterableDataset[Any]):
    """The rows of an IterableDataset of `datasets`, in another class, which accelerate splits.

    Args:
        stream: The stream.
        endless: Whether to begin again at its end, in the order of the next epoch.
    """

    def __init__(self, stream: Any, *, endless: bool) -> None:
        self._stream = stream
        self._endless = endless

    def __iter__(self) -> Iterator[Any]:
        """Yield the rows.

        Raises:
            ValueError: If the stream has no rows and is to be read without an end.
        """
        if not self._endless:
            yield from self._stream
            return
        # The workers of a loader share the number of the epoch, and end it at different times.
        in_worker = data.get_worker_info() is not None
        stream = copy.deepcopy(self._stream) if in_worker else self._stream
        for epoch in itertools.count():
            stream.set_epoch(epoch)
            row_count = 0
            for row in stream:
                row_count += 1
                yield row
            if not row_count and in_worker:
                return  # there are more workers than files
            if not row_count:
                raise ValueError("the train data set is a stream without rows: check its filters")
