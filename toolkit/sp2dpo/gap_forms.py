"""The gap of one reply, from what it says: four forms.

`m` and `c` are the shares of the magnitude and of the confidence on their scales, both in [0, 1].
The sign is +1 where a blind reply names the chosen response, -1 where it names the rejected one, 0
for a tie; under the labelled protocol, which cannot tell, it is None and counts as +1. All forms
take numbers and columns alike and give a gap in [-1, 1].

The sources we hold do not print the paper's formula: every form is our choice.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from sp2dpo.choices import check_number


@dataclass(frozen=True)
class Product:
    """g = sign m c."""

    tells_labels: ClassVar[bool] = False

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """The gap of a reply, in [-1, 1]."""
        return m * c if sign is None else sign * (m * c)

    def words(self, *, blind: bool) -> str:
        """The formula, for people."""
        return f"{_sign(blind)}magnitude x confidence"


@dataclass(frozen=True)
class Magnitude:
    """g = sign m: what a teacher's confidence adds is left out."""

    tells_labels: ClassVar[bool] = False

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """The gap of a reply, in [-1, 1]."""
        return m if sign is None else sign * m

    def words(self, *, blind: bool) -> str:
        """The formula, for people."""
        return f"{_sign(blind)}magnitude"


@dataclass(frozen=True)
class Shrink:
    """g = c (sign m) + (1 - c) m0: the less sure a reply, the nearer it is to what one assumes.

    Attributes:
        m0: the gap of a reply without confidence, in [0, 1].
    """

    m0: float
    tells_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("m0", self.m0, least=0, most=1)
        object.__setattr__(self, "m0", float(self.m0))

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """The gap of a reply, in [-1, 1]."""
        return c * (m if sign is None else sign * m) + (1 - c) * self.m0

    def words(self, *, blind: bool) -> str:
        """The formula, for people."""
        return f"confidence x ({_sign(blind)}magnitude) + (1 - confidence) x {self.m0:g}"


@dataclass(frozen=True)
class Signed:
    """g = m (2 c - 1): a confidence below the middle of its scale counts against the label.

    Read as the chance that the label is right, a confidence c makes m (2 c - 1) the gap to expect.
    Under the blind protocol, where the reply itself names the better response, it is `product`.
    """

    tells_labels: ClassVar[bool] = True

    def gap(self, m: Any, c: Any, sign: Any) -> Any:
        """The gap of a reply, in [-1, 1]."""
        return m * (2 * c - 1) if sign is None else sign * (m * c)

    def words(self, *, blind: bool) -> str:
        """The formula, for people."""
        return "sign x magnitude x confidence" if blind else "magnitude x (2 x confidence - 1)"


GapForm = Product | Magnitude | Shrink | Signed
GAP_FORMS: dict[str, type] = {
    "product": Product,
    "shrink": Shrink,
    "magnitude": Magnitude,
    "signed": Signed,
}


def _sign(blind: bool) -> str:
    return "sign x " if blind else ""
