"""Changes of JSON, of JSON Lines, of YAML and of a card: values, keys, shapes and notation."""

import json

import yaml

from attack.byte_changes import WORDS

LOOKALIKE = {"a": "а", "e": "е", "o": "о", "p": "р", "c": "с", "i": "і", "s": "ѕ"}
NUMBERS = (
    0, -1, 1, 2, 7, 11, 255, 256, -(2**31), 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1,
    2**64, 10**30, 0.0, -0.0, 0.5, 1.0, 1e-320, 1e308, -1e308, 1e-9, 3.0000001, 10**400,
)  # fmt: skip
RAW = (  # written as they are
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "1E400", "0" * 3, "1.", ".5",
    "[" * 3000 + "]" * 3000, "[" * 200_000, '{"a":' * 5000 + "1" + "}" * 5000, "[[]," * 20_000,
    "[" + ",".join(["{}"] * 50_000) + "]", '"\\ud800"', '"\\u0000"', "'single'", "True", "None",
    "undefined", "/* */ 1", "1 // 2", "[1,]", '{"a":1,"a":2}', '"\x01"', "-", "0x1F",
)  # fmt: skip
YAML_RAW = (
    "!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!binary aGVsbG8=",
    "!!set {a, b}", "!!timestamp 2026-01-01", "2026-13-45", "2026-01-01", "!!float 1", "!x y",
    "1:30:00", "0o17", "017", "1_000", ".inf", "-.inf", ".nan", "yes", "~", "'", "[", "{", "}",
    "*nowhere", "&a [*a]", "? [a]", "!!str", "!!int abc", "| x", "@", "%", "`", "- - - -", ">-",
    "[" * 2000 + "]" * 2000, "{a: " * 1500 + "1" + "}" * 1500, "!!omap [a: 1]", "<<", "1e5", "5e-7",
)  # fmt: skip


class _Raw:
    def __init__(self, text):
        self.text = text


def _places(tree, at=()):
    yield at
    if isinstance(tree, dict):
        for key in tree:
            yield from _places(tree[key], (*at, key))
    elif isinstance(tree, list):
        for place, item in enumerate(tree):
            yield from _places(item, (*at, place))


def _get(tree, at):
    for key in at:
        tree = tree[key]
    return tree


def _put(tree, at, value):
    if not at:
        return value
    _get(tree, at[:-1])[at[-1]] = value
    return tree


def _new_value(rng, old, raw):
    action = rng.randrange(8)
    if action == 0:
        return rng.choice((None, True, False, [], {}, [[]], {"": 0}, [None], ""))
    if action == 1:
        return rng.choice(WORDS)
    if action in (2, 3):
        return rng.choice(NUMBERS)
    if action == 4:
        return _Raw(rng.choice(raw))
    if action == 5:  # another type, the same look
        if isinstance(old, str):
            return int(old) if old.isdecimal() and len(old) < 9 else [old]
        return str(old) if isinstance(old, int | float) else [old]
    if action == 6:
        if isinstance(old, bool) or old is None:
            return rng.choice((0, 1, "no"))
        if isinstance(old, int | float):
            return rng.choice((old + 1, -old, old * 10, float(old), old / 3, old + 1e-7))
        if isinstance(old, str) and old:
            place = rng.randrange(len(old))
            letter = LOOKALIKE.get(old[place], "\u200b")
            return rng.choice(
                (old[:place] + letter + old[place + 1 :], old + " ", old.upper(), old[::-1],
                 old * 3,
                 old[:place])
            )  # fmt: skip
        return old
    if isinstance(old, list):
        return rng.choice((old * 2, old[::-1], old[1:], old * 200, [*old, None], [*old, old]))
    return {"a": old}


def change_tree(rng, tree, raw=RAW):
    """Return a changed tree, and what was changed."""
    places = list(_places(tree))
    at = rng.choice(places)
    old = _get(tree, at)
    action = rng.randrange(10)
    name = ".".join(map(str, at))[:60] or "top"
    if action < 5 or not at:
        return _put(tree, at, _new_value(rng, old, raw)), f"{name}: other value"
    parent = _get(tree, at[:-1])
    if action == 5:
        del parent[at[-1]]
        return tree, f"{name}: deleted"
    if action == 6:
        other = _get(tree, rng.choice(places))
        parent[at[-1]] = json.loads(json.dumps(other))
        return tree, f"{name}: another's value"
    if action == 7 and isinstance(parent, dict):
        key = str(at[-1])
        place = rng.randrange(len(key) or 1)
        new = rng.choice(
            (key.upper(), key + " ", "\ufeff" + key, key[:place] + "\u0430" + key[place + 1 :], "",
             rng.choice(WORDS), key + "\0", f"_{key}")
        )  # fmt: skip
        parent[new] = parent.pop(at[-1])
        return tree, f"{name}: key renamed"
    if action == 8 and isinstance(parent, dict):
        parent[rng.choice(WORDS)] = old
        return tree, f"{name}: key added"
    if isinstance(parent, dict):
        # A second entry with the same key: the serializers below write `_Twice` twice.
        parent[_Twice(at[-1])] = _new_value(rng, old, raw)
        return tree, f"{name}: key twice"
    parent.insert(rng.randrange(len(parent) + 1), old)
    return tree, f"{name}: item repeated"


class _Twice:
    """A key that is written like another one of its mapping."""

    def __init__(self, key):
        self.key = key


def write_json(tree, indent=None):
    """Return JSON, in which `_Raw` and `_Twice` are written as they are."""
    if isinstance(tree, _Raw):
        return tree.text
    if isinstance(tree, dict):
        parts = (
            f"{json.dumps(str(key.key if isinstance(key, _Twice) else key))}: {write_json(value)}"
            for key, value in tree.items()
        )
        return "{" + (",\n " if indent else ", ").join(parts) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(write_json, tree)) + "]"
    if isinstance(tree, int) and not isinstance(tree, bool) and abs(tree) > 10**300:
        return "1" + "0" * 400
    return json.dumps(tree)


def encode_text(text):
    return text.encode("utf-8", "surrogatepass")


def change_json(rng, path, other=b""):
    """Change a value, a key or the shape of a JSON file."""
    tree, what = change_tree(rng, json.loads(path.read_bytes()))
    path.write_bytes(encode_text(write_json(tree, indent=1)))
    return f"json: {what}"


def change_json_lines(rng, path, other=b""):
    """Change a line of a JSON Lines file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    place = rng.randrange(len(lines))
    if rng.randrange(8) == 0:
        lines[place] = rng.choice((*RAW, '"x"', "null", "[]", "{}", "1", "", "{", " "))
        what = "other line"
    else:
        tree, what = change_tree(rng, json.loads(lines[place]))
        lines[place] = write_json(tree)
    path.write_bytes(encode_text("\n".join(lines) + "\n"))
    return f"json: line {place}: {what}"


_BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)
_MERGE_BOMB = "\n".join(
    ["b0: &b0 {x: 1, y: 2}"]
    + [f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}" for n in range(1, 12)]
)
YAML_TEXTS = (
    _BOMB, _MERGE_BOMB, "x: &x\n  <<: *x\n", "? {a: b}\n: c", "---\na: 1\n---\nb: 2",
    "%YAML 9.9\n---",
    "\n".join(f"k{n}: {n}" for n in range(20_000)), "? " + "[" * 500 + "]" * 500 + "\n: 1",
    "k" * 2000 + ": 1", "\tx: 1", "x: 1\n y: 2", "- 1\n- 2", "!!python/object:os.x {}", "...",
    "x: &a 1\ny: *a", "\n".join(f"? [{n}]\n: 1" for n in range(300)), "a: b: c", "\x07: 1",
    "".join(f"{'  ' * n}k:\n" for n in range(600)), "x: !!binary " + "A" * 100_000,
    "{" * 30_000, "[" * 30_000, "- " * 20_000, "x: " + "&a " * 2, "x: |\n" + "  y\n" * 5000,
    "#" * 300_000, "\n".join(f"a{n}: &a{n} {n}" for n in range(5000)),
    "key : [" + "1," * 30_000 + "]",
    "? ? ? ? ? x", "<<: {a: 1}", "<<: [1, 2]", "<<: x", "null: 1", "1: 2", "true: false", ".nan: 1",
    "!!null x: 1", "2026-01-01: 1", "=: 1", "x: =", "1.5: a\n1.50: b",
)  # fmt: skip


def change_yaml_text(rng, text):
    """Return a changed YAML document and what was changed."""
    action = rng.randrange(6)
    if action == 0:
        piece = rng.choice(YAML_TEXTS)
        where = rng.choice(("before", "after", "instead"))
        new = {"before": f"{piece}\n{text}", "after": f"{text}\n{piece}\n", "instead": piece}[where]
        return new, f"{piece[:20]!r} {where}"
    if action == 1:
        lines = text.splitlines()
        places = [n for n, line in enumerate(lines) if ": " in line and not line.startswith("#")]
        if places:
            place = rng.choice(places)
            key = lines[place].partition(": ")[0]
            lines[place] = f"{key}: {rng.choice(YAML_RAW)}"
            return "\n".join(lines) + "\n", f"line {place}: other value"
    if action == 2:
        lines = text.splitlines()
        place = rng.randrange(len(lines))
        lines.insert(rng.randrange(len(lines)), lines[place])
        return "\n".join(lines) + "\n", f"line {place} repeated"
    tree, what = change_tree(rng, yaml.safe_load(text), RAW)
    # JSON is YAML, and keeps what `yaml.dump` would not write, such as a key twice.
    return write_json(tree), what


def change_yaml(rng, path, other=b""):
    """Change a YAML file."""
    text, what = change_yaml_text(rng, path.read_text(encoding="utf-8"))
    path.write_bytes(encode_text(text))
    return f"yaml: {what}"


def change_card(rng, path, other=b""):
    """Change the front matter or the body of a card."""
    text = path.read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    if rng.randrange(3):
        front, what = change_yaml_text(rng, front)
    else:
        mark = rng.choice(("<!-- ", "-->", "\n", "| ", "```", "---\n", "%", "{", "beta"))
        place = rng.randrange(body.count(mark) + 1)
        parts = body.split(mark)
        body = mark.join(parts[:place]) + rng.choice(WORDS) + mark.join(parts[place:])
        what = "body"
    path.write_bytes(encode_text(f"---\n{front}\n---\n{body}"))
    return f"card: {what}"
