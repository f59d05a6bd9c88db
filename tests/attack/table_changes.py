"""Changes of a Parquet file: its rows, its columns, their types and its encoding."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet as pq

from attack.byte_changes import WORDS, flip
from attack.tree_changes import change_tree, encode_text, write_json


def _write_table(rng, table, path):
    options = {}
    if rng.randrange(3) == 0:
        options = rng.choice(
            (
                {"compression": "gzip"}, {"compression": "none"}, {"compression": "zstd"},
                {"compression": "brotli"}, {"compression": "lz4"}, {"row_group_size": 1},
                {"row_group_size": 5}, {"use_dictionary": False}, {"data_page_version": "2.0"},
                {"version": "1.0"}, {"write_statistics": False}, {"data_page_size": 1},
                {"store_schema": False}, {"use_byte_stream_split": False, "use_dictionary": False},
                {"write_page_index": True}, {"write_page_checksum": True},
            )
        )  # fmt: skip
    pq.write_table(table, path, **options)
    return f" {options}" if options else ""


_TYPES = (
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.int8(), pa.int32(),
    pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.null(),
    pa.decimal128(38, 2), pa.timestamp("ns", "UTC"), pa.date32(), pa.duration("s"),
    pa.list_(pa.string()), pa.struct([("a", pa.int32())]), pa.dictionary(pa.int32(), pa.string()),
    pa.map_(pa.string(), pa.int32()), pa.binary(4),
)  # fmt: skip


def _of_type(rng, column, kind):
    try:
        return pc.cast(column, kind)
    except (pa.ArrowException, ValueError):
        pass
    if pa.types.is_list(kind):
        return pa.array([["x"]] * len(column), kind)
    if pa.types.is_struct(kind):
        return pa.array([{"a": 1}] * len(column), kind)
    for value in (0, "x", b"wxyz"):
        try:
            return pa.array([value] * len(column), kind)
        except (pa.ArrowException, ValueError, TypeError):
            continue
    return pa.nulls(len(column), kind)


def _cell(rng, values, kind):
    place = rng.randrange(len(values))
    old = values[place]
    options = [None, values[rng.randrange(len(values))]]
    if pa.types.is_integer(kind):
        options += [-1, 0, 1, 99, 2**31 - 1, (old or 0) + 1, (old or 0) ^ 1]
    elif pa.types.is_floating(kind):
        options += [
            float("nan"),
            float("inf"),
            -1.0,
            0.0,
            1e308,
            (old or 0) + 1e-10,
            (old or 0) * 2,
        ]
    elif pa.types.is_boolean(kind):
        options += [not old]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        words = [word for word in WORDS if word.isprintable() or word < "\ud800"]
        options += [rng.choice(words), (old or "") + " ", (old or "x").upper(), "f" * 64]
    elif pa.types.is_list(kind):
        options += [[], (old or []) * 2, (old or [])[::-1]]
        if old and isinstance(old[0], dict):
            key = rng.choice(list(old[0]))
            options += [[old[0] | {key: rng.choice((None, "", "x", "system"))}]] * 2
    return place, rng.choice(options)


def change_table(rng, path, other=b""):
    """Change the rows, the columns, their types or the encoding of a Parquet file."""
    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    at = table.schema.get_field_index(name)
    field, column = table.schema.field(at), table[name]
    action = rng.choice(
        ("cell", "cell", "cell", "cells", "type", "type", "drop", "rename", "twice", "rows",
         "order", "none", "metadata", "dictionary", "dictionary", "encoding", "swap", "nested",
         "many", "large", "format")
    )  # fmt: skip
    what = f"{action} {name}"
    if action == "cell":
        values = column.to_pylist()
        place, value = _cell(rng, values, field.type)
        values[place] = value
        what += f" row {place}"
        table = table.set_column(at, field, pa.array(values, field.type))
    elif action == "cells":
        values = column.to_pylist()
        _, value = _cell(rng, values, field.type)
        table = table.set_column(at, field, pa.array([value] * len(values), field.type))
    elif action == "type":
        kind = rng.choice(_TYPES)
        what += f" to {kind}"
        table = table.set_column(at, name, _of_type(rng, column, kind))
        if rng.randrange(2):
            table = table.replace_schema_metadata(None)
    elif action == "drop":
        table = table.drop_columns([name])
    elif action == "rename":
        names = list(table.column_names)
        names[at] = rng.choice(
            (
                name.upper(),
                f"{name} ",
                f"\ufeff{name}",
                "",
                "pair_id",
                rng.choice(names),
                "x" * 9999,
            )
        )
        table = table.rename_columns(names)
    elif action == "twice":
        table = table.append_column(field, column)
    elif action == "rows":
        places = rng.choice(
            ([0], list(range(len(table))) * 2, list(range(1, len(table))), [0] * 2000,
             [*range(len(table)), rng.randrange(len(table))])
        )  # fmt: skip
        table = table.take(places)
    elif action == "order":
        places = list(range(len(table)))
        rng.shuffle(places)
        table = table.take(places)
    elif action == "none":
        table = table.slice(0, 0)
    elif action == "metadata":
        table = table.replace_schema_metadata(_metadata(rng, table.schema.metadata))
    elif action == "dictionary":
        what += _bomb(rng, table, name, path)
        return f"table: {what}"
    elif action == "swap":
        values = column.to_pylist()
        first, second = rng.randrange(len(values)), rng.randrange(len(values))
        values[first], values[second] = values[second], values[first]
        table = table.set_column(at, field, pa.array(values, field.type))
    elif action == "nested":
        array = column.combine_chunks()
        for _ in range(rng.choice((1, 30, 100))):
            array = pa.StructArray.from_arrays([array], names=["a"])
        table = table.set_column(at, name, array)
    elif action == "many":
        for number in range(1000):
            table = table.append_column(f"c{number}", pa.nulls(len(table), pa.int8()))
    elif action == "large":
        big = pa.array(["x" * 2_000_000] + [None] * (len(table) - 1), pa.large_string())
        table = table.set_column(at, name, big)
    elif action == "format":
        pa.feather.write_feather(table, str(path))
        return f"table: {what}"
    return f"table: {what}{_write_table(rng, table, path)}"


def _metadata(rng, metadata):
    metadata = dict(metadata or {})
    if not metadata or rng.randrange(4) == 0:
        return None
    key = rng.choice(list(metadata))
    try:
        tree, _ = change_tree(rng, json.loads(metadata[key]))
        metadata[key] = encode_text(write_json(tree))
    except (ValueError, UnicodeDecodeError):
        metadata[key] = flip(rng, metadata[key], b"")
    return metadata


def _bomb(rng, table, name, path):
    """Write a small file that is large when its dictionary is expanded."""
    # Few rows: a file of a million rows is large, but no bomb.
    rows, size = rng.choice(
        ((12, 30_000_000), (300, 5_000_000), (3000, 1_000_000), (9000, 200_000))
    )
    columns = {}
    for other in table.column_names:
        column = table[other].combine_chunks()
        if other == name:
            words = pa.array(["x" * size], pa.large_string())
            columns[other] = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), words)
        else:
            columns[other] = column.take(pa.array([0] * rows))
    bomb = pa.table(columns).replace_schema_metadata(table.schema.metadata)
    if rng.randrange(2):
        bomb = bomb.replace_schema_metadata(None)
    pq.write_table(
        bomb, path, compression="zstd", store_schema=bool(rng.randrange(2)), row_group_size=rows,
        dictionary_pagesize_limit=2**30,
    )  # fmt: skip
    return f" {rows} x {size}"
