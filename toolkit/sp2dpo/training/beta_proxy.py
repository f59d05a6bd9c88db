"""The betas of a batch in place of the one number that TRL's loss, or a subclass's, reads."""

import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NoReturn

import torch


class BetaProxy:
    """The betas of a batch, used in place of the single beta that TRL reads.

    A formula that is written for one beta gives the result for each pair, or an error:

    - Arithmetic with numbers is done in double precision, as for a float.
    - Arithmetic with tensors, and torch functions, use float32 (float64 for a float64 tensor). The
      first dimension of the tensor must be the pairs, or the 2B sequences of TRL (all chosen
      responses, then all rejected ones). Equal betas give TRL's results bit for bit.
    - What needs a single number (`float()`, `math.log`, `if beta > 0.1`) is answered if the answer
      is the same for all pairs of the batch.
    - As text it is its mean with a format (`f"{beta:.3f}"`), and its range without.

    Attributes:
        exact: The betas, (B,), in double precision.

    Raises:
        TypeError: If one number is needed and the pairs differ, or if a tensor of another shape
            is combined with the betas.
    """

    # numpy's numbers leave arithmetic to this class instead of making arrays of objects.
    __array_ufunc__ = None

    def __init__(self, exact: torch.Tensor) -> None:
        self.exact = exact

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a torch function, of which an argument is a proxy, with the betas as a tensor."""
        kwargs = kwargs or {}
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        # A condition says nothing about the precision, and a scalar nothing about the shape.
        other = max(
            tensors, key=lambda tensor: (tensor.dim() > 0, tensor.is_floating_point()), default=None
        )

        def convert(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [convert(entry) for entry in value]
            return value.as_tensor(other) if isinstance(value, BetaProxy) else value

        name = getattr(function, "__name__", str(function))
        try:
            return function(
                *(convert(value) for value in args),
                **{key: convert(value) for key, value in kwargs.items()},
            )
        except (TypeError, RuntimeError) as error:
            raise TypeError(
                f"{name} does not take a beta per pair ({error}): multiply by self.beta instead, or"
                " set pair_columns: []"
            ) from error

    def as_tensor(self, other: torch.Tensor | None = None) -> torch.Tensor:
        """Return the betas as a tensor that broadcasts over the pairs of another tensor.

        Args:
            other: The other operand; None for the betas alone, (B,) in float32.

        Raises:
            TypeError: If the first dimension of the other tensor is neither B nor 2B.
        """
        if other is None:
            return self.exact.to(torch.float32)
        wide = other.dtype == torch.float64
        values = self.exact.to(other.device, torch.float64 if wide else torch.float32)
        pairs = len(values)
        if pairs == 1:
            return values.reshape(())
        if other.shape in ((), (1,)):
            return values
        if other.shape[0] not in (pairs, 2 * pairs):
            raise TypeError(
                f"a tensor of shape {tuple(other.shape)} cannot be combined with the {pairs} betas"
                f" of a batch: its first dimension must be the pairs ({pairs}), or the chosen and"
                f" then the rejected responses ({2 * pairs})"
            )
        rows = values if other.shape[0] == pairs else values.repeat(2)
        return rows.reshape(-1, *(1 for _ in other.shape[1:]))

    def _combine(self, operation: Callable[[Any, Any], Any], other: Any, *, right: bool) -> Any:
        """Return `self operation other`, or with `right` the operands exchanged."""
        if isinstance(other, torch.Tensor):
            mine: Any = self.as_tensor(other)
            return operation(other, mine) if right else operation(mine, other)
        if isinstance(other, BetaProxy):
            return BetaProxy(operation(self.exact, other.exact))
        if not isinstance(other, Real):
            return NotImplemented
        number = float(other)  # torch does not take every kind of number
        result = operation(number, self.exact) if right else operation(self.exact, number)
        return BetaProxy(result)

    def _compare(self, operation: Callable[[Any, Any], Any], other: Any, words: str) -> Any:
        result = self._combine(operation, other, right=False)
        if not isinstance(result, BetaProxy):
            return result  # elementwise, or not comparable
        return bool(result._same(f"{words} {other}"))

    def _same(self, words: str) -> float:
        """Return the value that all pairs have; raise TypeError if they differ."""
        first = self.exact[0].item()
        if bool((self.exact == first).all()):
            return first
        self._refuse(words)

    def _refuse(self, words: str) -> NoReturn:
        raise TypeError(
            f"{words} needs one number, and this batch has a beta per pair ({self}): compute with"
            " self.beta itself, log self.beta.exact.mean(), or set pair_columns: []"
        )

    def __add__(self, other: Any) -> Any:
        return self._combine(operator.add, other, right=False)

    def __radd__(self, other: Any) -> Any:
        return self._combine(operator.add, other, right=True)

    def __sub__(self, other: Any) -> Any:
        return self._combine(operator.sub, other, right=False)

    def __rsub__(self, other: Any) -> Any:
        return self._combine(operator.sub, other, right=True)

    def __mul__(self, other: Any) -> Any:
        return self._combine(operator.mul, other, right=False)

    def __rmul__(self, other: Any) -> Any:
        return self._combine(operator.mul, other, right=True)

    def __truediv__(self, other: Any) -> Any:
        return self._combine(operator.truediv, other, right=False)

    def __rtruediv__(self, other: Any) -> Any:
        return self._combine(operator.truediv, other, right=True)

    def __pow__(self, other: Any) -> Any:
        return self._combine(operator.pow, other, right=False)

    def __rpow__(self, other: Any) -> Any:
        return self._combine(operator.pow, other, right=True)

    def __neg__(self) -> "BetaProxy":
        return BetaProxy(-self.exact)

    def __pos__(self) -> "BetaProxy":
        return self

    def __abs__(self) -> "BetaProxy":
        return BetaProxy(self.exact.abs())

    def __lt__(self, other: Any) -> Any:
        return self._compare(operator.lt, other, "beta <")

    def __le__(self, other: Any) -> Any:
        return self._compare(operator.le, other, "beta <=")

    def __gt__(self, other: Any) -> Any:
        return self._compare(operator.gt, other, "beta >")

    def __ge__(self, other: Any) -> Any:
        return self._compare(operator.ge, other, "beta >=")

    def __eq__(self, other: Any) -> Any:
        return self._compare(operator.eq, other, "beta ==")

    def __ne__(self, other: Any) -> Any:
        return self._compare(operator.ne, other, "beta !=")

    __hash__ = object.__hash__  # its values are per pair and may not be equal: by identity

    def __bool__(self) -> bool:
        return bool(BetaProxy(self.exact != 0)._same("bool(beta)"))

    def __float__(self) -> float:
        return self._same("float(beta)")

    def __int__(self) -> int:
        return int(self._same("int(beta)"))

    def __round__(self, digits: int | None = None) -> float:
        return round(self._same("round(beta)"), digits)

    # As a sequence, so that torch.tensor(beta) has one element per pair.
    def __len__(self) -> int:
        return len(self.exact)

    def __getitem__(self, index: int) -> float:
        return self.exact[index].item()

    def __format__(self, spec: str) -> str:
        return format(self.exact.double().mean().item(), spec) if spec else str(self)

    def __repr__(self) -> str:
        low, high = self.exact.min().item(), self.exact.max().item()
        return f"{len(self)} betas from {low:.6g} to {high:.6g}"
