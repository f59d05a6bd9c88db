"""Parse values of YAML keys that take arguments, such as `shrink(0.3)` or `madpo(c_max=4, ...)`.

A choice is a frozen dataclass; its fields are the arguments, by position or by name. An argument
that changes the result has no default.
"""

import ast
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from sp2dpo.settings import Rule, did_you_mean


def choice_of(known: Mapping[str, type]) -> Rule:
    """Return a rule for a settings model: the value of a key must be one of these choices."""
    names = "|".join(known)
    return Rule(
        lambda text: parse_choice(text, known),
        {
            "type": "string",
            "pattern": rf"^\s*({names})\s*(\(.*\)\s*)?$",
            "examples": [usage(name, kind) for name, kind in known.items()],
        },
    )


def parse_choice(text: Any, known: Mapping[str, type]) -> Any:
    """Parse the value of a key into the choice that it names.

    Args:
        text: The value, such as `shrink(0.3)`.
        known: The choices, by name.

    Raises:
        ValueError: There is no such choice, or it does not take these arguments.
    """
    listed = ", ".join(usage(name, kind) for name, kind in known.items())
    # YAML may give a value of any type, such as a number.
    name, brackets, inside = text.strip().partition("(") if isinstance(text, str) else ("", "", "")
    if name.strip() not in known:
        hint = did_you_mean(name.strip() or text, list(known))
        raise ValueError(f"{text!r} is not known{hint} (known: {listed})")
    kind = known[name.strip()]
    try:
        places, names = _arguments(f"{brackets}{inside}")
        taken = [field.name for field in fields(kind)]
        # More places than arguments are refused below, with the syntax in the message.
        arguments = dict(zip(taken, places, strict=False)) | names
        unknown = [word for word in names if word not in taken]
        missing = [
            field.name
            for field in fields(kind)
            if field.default is MISSING and field.name not in arguments
        ]
        # An argument given both by place and by name would silently take the second value.
        if len(places) > len(taken) or unknown or missing or set(taken[: len(places)]) & set(names):
            raise ValueError(f"write {usage(name.strip(), kind)}")
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def usage(name: str, kind: type) -> str:
    """Return the syntax of a choice with the names of its arguments, such as `shrink(m0)`."""
    taken = [
        field.name if field.default is MISSING else f"[{field.name}]" for field in fields(kind)
    ]
    return f"{name}({', '.join(taken)})" if taken else name


def format_choice(choice: Any, known: Mapping[str, type]) -> str:
    """Return a choice as it is written in a file; `parse_choice` reads it back."""
    name = next(name for name, kind in known.items() if kind is type(choice))
    # None stands for an argument that was not given; `parse_choice` could not read it back.
    arguments = [
        f"{field.name}={value}"
        for field in fields(choice)
        if (value := getattr(choice, field.name)) is not None
    ]
    return f"{name}({', '.join(arguments)})" if arguments else name


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments in parentheses, by position and by name.

    Raises:
        ValueError: an argument is neither a number nor a word.
    """
    if not text:
        return [], {}
    try:
        # A choice with arguments has the syntax of a Python call.
        call = ast.parse(f"choice{text}", mode="eval").body
    # Thousands of nested brackets exceed the limits of the parser.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("its parentheses must contain a list of numbers") from None
    # Text such as `(1)(2)` or `(1) + 1` is an expression too, but not one call.
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError("its parentheses must contain a list of numbers")
    names: dict[str, Any] = {}
    for keyword in call.keywords:
        # `**name` is a keyword without a name.
        if keyword.arg is None:
            raise ValueError("its parentheses must contain a list of numbers")
        names[keyword.arg] = _value(keyword.value)
    return [_value(argument) for argument in call.args], names


def _value(node: ast.expr) -> int | float | str:
    """Return a number or a bare word."""
    sign = 1
    # In Python's syntax, -1 is a minus applied to 1.
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    if isinstance(node, ast.Constant):
        value = node.value
        # In Python, True is the int 1.
        if isinstance(value, int | float) and not isinstance(value, bool):
            return sign * value
    if isinstance(node, ast.Name) and sign == 1:
        return node.id
    raise ValueError(f"{ast.unparse(node)} is not a number")


def check_arguments(choice: Any, **rules: Rule) -> None:
    """Check the arguments of a choice, each by the rule of its name.

    Raises:
        ValueError: one breaks its rule; the message contains its name, the rule and the value.
    """
    for name, rule in rules.items():
        try:
            rule.check(getattr(choice, name))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
