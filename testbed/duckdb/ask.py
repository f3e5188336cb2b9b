#!/usr/bin/env python3
"""ask.py: what DuckDB finds in a catalog table, for a test that compares it with what Lull finds.

  ask.py TABLE SQL...    runs each statement (TABLE is the view "history") and prints its rows as one line of JSON
  ask.py TABLE --sums    checks the header and the row groups against their CRC-32, as docs/catalog-format.md tells, and prints
                         the header as one line of JSON

Paths come as hexadecimal digits. It knows the format only from that page: no code of Lull's.
"""
import json
import sys
import zlib

import duckdb


def header(connection, table):
    pairs = connection.execute("SELECT key, value FROM parquet_kv_metadata(?)", [table]).fetchall()
    values = {bytes(key): bytes(value) for key, value in pairs}
    text = values[b"lull.catalog"]
    assert f"{zlib.crc32(text):08x}".encode() == values[b"lull.catalog.crc32"], "the header does not fit its checksum"
    return json.loads(text)


def checked(connection, table):
    told = header(connection, table)
    with open(table, "rb") as file:
        content = file.read()
    for group in told["groups"]:
        part = content[group["offset"] : group["offset"] + group["bytes"]]
        assert zlib.crc32(part) == group["crc32"], f"a row group does not fit its checksum: {group}"
    assert sum(group["rows"] for group in told["groups"]) == told["rows"]
    return told


def main():
    table, *asked = sys.argv[1:]
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    quoted = table.replace("'", "''")
    connection.execute(f"CREATE VIEW history AS SELECT * FROM read_parquet('{quoted}')")
    for one in asked:
        if one == "--sums":
            print(json.dumps(checked(connection, table)))
        else:
            print(json.dumps(connection.execute(one).fetchall()))


if __name__ == "__main__":
    main()
