#!/bin/sh
# SQLite 3.54.1 and 3.40.1 (in apsw 3.54.1.0 and 3.40.1.0): a checkpoint on a connection of its own, which was
# opened while the database had no write-ahead log yet.
#
# Guess: PRAGMA wal_checkpoint looks at the file, as every statement does, and moves what others have committed.
# Seen: if a PRAGMA synchronous was the last that the connection did before another one switched to WAL, every
# checkpoint answers (0, -1, -1), "no write-ahead log", as if it were a success, and moves nothing, however much is
# in the log. One SELECT, or no PRAGMA before, and it moves everything.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 3.54.1.0 3.40.1.0; do
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "apsw==$version"
    "$folder/venv/bin/python" - <<'PYTHON'
import sys
import tempfile
from importlib.metadata import version as version_of
from pathlib import Path

import apsw

version = version_of("apsw")


def checkpoints(*before):
    """What two checkpoints answer, the second after a SELECT, and the log's size at the first."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "a.db"))
        writer, other = apsw.Connection(path), apsw.Connection(path)

        def ask(connection, statement):
            return list(connection.cursor().execute(statement))

        for statement in before:
            ask(other, statement)
        ask(writer, "PRAGMA journal_mode = WAL")
        ask(writer, "CREATE TABLE t (a)")
        for _ in range(20):
            ask(writer, "INSERT INTO t VALUES (zeroblob(4000))")
        size = Path(f"{path}-wal").stat().st_size
        first = ask(other, "PRAGMA wal_checkpoint(PASSIVE)")
        again = ask(other, "PRAGMA wal_checkpoint(PASSIVE)")
        ask(other, "SELECT 1 FROM sqlite_schema LIMIT 1")
        return size, first, again, ask(other, "PRAGMA wal_checkpoint(PASSIVE)")


found = {"nothing before": checkpoints(), "a pragma before": checkpoints("PRAGMA synchronous = NORMAL")}
for who, (size, *answers) in found.items():
    print(f"apsw {version}, {who}: a log of {size} bytes, checkpoints {answers}")
_, first, again, read = found["nothing before"]
_, blind, still, seen = found["a pragma before"]
none = [(0, -1, -1)]
sys.exit(not (first[0][1] > 0 and blind == still == none and seen[0][1] > 0))
PYTHON
done
