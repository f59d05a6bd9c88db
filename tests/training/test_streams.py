"""Streams as several processes read them: one order, no end, every batch dealt to all."""

import itertools

import pytest
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset, IterableDataset, interleave_datasets
from torch.utils.data import DataLoader

from sp2dpo.training.streams import StreamRows


def files(*sizes, start=0):
    """A stream of files with so many rows, numbered on."""
    ends = [*itertools.accumulate(sizes, initial=start)]

    def rows(spans):
        for first, last in spans:
            for number in range(first, last):
                yield {"number": number}

    spans = list(itertools.pairwise(ends))
    return IterableDataset.from_generator(rows, gen_kwargs={"spans": spans})


def batches(stream, size, count, *, processes=1, rank=0, endless=True, workers=0):
    """The first batches of a process, as Trainer's loader makes them."""
    loader = DataLoader(
        StreamRows(stream, endless=endless), batch_size=size, num_workers=workers,
        collate_fn=lambda rows: [row["number"] for row in rows],
    )  # fmt: skip
    loader = prepare_data_loader(
        loader, num_processes=processes, process_index=rank, dispatch_batches=False
    )
    return list(itertools.islice(loader, count))


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


STREAMS = {
    "files of other sizes": lambda: files(1, 9, 2, 4, 8),
    "shuffled": lambda: files(1, 9, 2, 4, 8).shuffle(seed=1, buffer_size=4),
    "a file": lambda: files(24),
    "a table": lambda: Dataset.from_dict({"number": range(24)}).to_iterable_dataset(num_shards=5),
    "a mixture": lambda: interleave_datasets(
        [files(30, 1, 9).shuffle(seed=0), files(2, 50, 8, start=100)], [0.5, 0.5], seed=0
    ),
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_processes_share_the_batches_of_one(make):
    whole = batches(make(), 6, 8)
    parts = [batches(make(), 2, 8, processes=3, rank=rank) for rank in range(3)]
    assert [flat(same) for same in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("make", list(STREAMS.values())[:-1], ids=list(STREAMS)[:-1])
def test_no_row_occurs_twice_in_an_epoch(make):
    numbers = flat(batches(make(), 5, 20))  # 24 rows, no multiple of 5
    for epoch in range(4):
        assert sorted(numbers[24 * epoch : 24 * epoch + 24]) == list(range(24))


def test_epochs_of_a_shuffled_stream_have_other_orders():
    numbers = flat(batches(STREAMS["shuffled"](), 24, 3))
    orders = {tuple(numbers[start : start + 24]) for start in (0, 24, 48)}
    assert len(orders) == 3


def test_a_stream_that_is_evaluated_has_an_end():
    assert batches(files(3, 4), 2, 100, endless=False) == [[0, 1], [2, 3], [4, 5], [6]]


def test_workers_read_every_row_once_in_an_epoch():
    # Of the two workers, one has 6 rows and the other 18: the first begins new epochs, perhaps with
    # other files, while the second is in its first.
    taken = batches(files(2, 6, 4, 12), 2, 18, workers=2)
    first, second = flat(taken[0::2]), flat(taken[1::2])
    assert first[:6] == [0, 1, 8, 9, 10, 11]
    assert second == [*range(2, 8), *range(12, 24)]
    few = batches(files(7), 2, 9, workers=2)  # the second worker has no file
    assert flat(few)[:14] == [*range(7), *range(7)]


def test_a_stream_without_rows_is_refused():
    empty = files(3).filter(lambda row: False)
    with pytest.raises(ValueError, match="a stream without rows"):
        batches(empty, 2, 1)
