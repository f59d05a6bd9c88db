"""A share of the pairs for one process of several: which pairs are in it follows from their ids."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `of` shares of the pairs.

    Attributes:
        index: from 0 to `of` - 1.
        of: how many shares there are.
    """

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard that `I/N` names, I from 0 to N-1.

        Raises:
            ValueError: it names none.
        """
        first, slash, last = text.partition("/")
        if not (slash and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise ValueError(f"shard {text!r}: write I/N with I from 0 to N-1, such as 0/4")
        return cls(index=int(first), of=int(last))

    def holds(self, pair_id: str) -> bool:
        """Whether a pair belongs to this share; the ids are hashes, so the shares are even."""
        return int(pair_id[:15], 16) % self.of == self.index

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.index}/{self.of}"
