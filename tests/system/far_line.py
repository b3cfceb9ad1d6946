"""A line between a site in a network namespace of its own and the rest of this machine.

``tc netem`` is not to be had in every kernel, so the line is two relays of bytes, one on either
side of a Unix socket. A file, ``line.json``, says how it is: ``delay`` in seconds each way,
``loss`` as the share of pieces that come as late as one that TCP had to send again, ``cut`` if
nothing gets through: connections stay, and are silent.

::

    python far_line.py near SOCKET PORT LINE      from the namespace's loopback to the socket
    python far_line.py far SOCKET PORT LINE       from the socket to this machine's loopback
"""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_SENT_AGAIN_SECONDS = 0.25
_LOOK_SECONDS = 0.05


def set_line(path: Path, *, delay: float = 0.0, loss: float = 0.0, cut: bool = False) -> None:
    """Say how the line is from now on."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"delay": delay, "loss": loss, "cut": cut}))
    partial.replace(path)


def why_not() -> str:
    """Return why this machine can have no namespace; empty if it can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    return ""


def make_namespace(name: str) -> None:
    """Make a network namespace with a loopback, anew if it is there."""
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)


async def _relay(side: str, socket: str, port: int, line: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if side == "near":
                there = await asyncio.open_unix_connection(socket)
            else:
                there = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        # Each side of the line holds up what goes its way: the near one, what the site sends.
        held = line if side == "near" else None
        back = None if side == "near" else line
        await asyncio.gather(_pass(reader, there[1], held), _pass(there[0], writer, back))

    if side == "near":
        server = await asyncio.start_server(serve, "127.0.0.1", port)
    else:
        server = await asyncio.start_unix_server(serve, socket)
    async with server:
        await server.serve_forever()


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Path | None
) -> None:
    with suppress(OSError):
        while data := await reader.read(1400):
            if line is not None:
                await _hold_up(line)
            writer.write(data)
            await writer.drain()
    writer.close()


async def _hold_up(line: Path) -> None:
    while (how := json.loads(line.read_text()))["cut"]:
        await asyncio.sleep(_LOOK_SECONDS)
    late = random.random() < how["loss"]
    await asyncio.sleep(how["delay"] + late * _SENT_AGAIN_SECONDS)


if __name__ == "__main__":
    asyncio.run(_relay(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
