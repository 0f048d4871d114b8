"""The server from its beginning to its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from emu.process.client import MachineProcess
from emu.serve.machines import Machines, Make
from emu.serve.web import Site, listening

__all__ = ["run"]

ENDING_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
SHUTDOWN_S = 1.0                        # for connections to end by themselves


async def run(
    make: Make,
    restore: Callable[[Path], MachineProcess],
    snapshots: Path,
    place: str,
    say: Callable[[str], None],
) -> int:
    """Serve until a signal says that it is enough; the command's exit status.

    Args:
        make, restore, snapshots: of `Machines`.
        place: where to listen (`listening`).
        say: told the page's address.

    Raises:
        EmuError: the place is in use; the machine cannot be made; the page's terminal cannot be had.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Queue[signal.Signals]()
    for number in ENDING_SIGNALS:
        loop.add_signal_handler(number, ended.put_nowait, number)
    sock = listening(place)
    machines = Machines(make, restore, snapshots)
    try:
        site = Site(machines, place.rpartition(":")[0])
        runner = web.AppRunner(site.app, handle_signals=False, access_log=None, shutdown_timeout=SHUTDOWN_S)
        opening = asyncio.create_task(machines.open())
        signalled = asyncio.create_task(ended.get())
        await asyncio.wait((opening, signalled), return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            await runner.setup()
            await web.SockSite(runner, sock).start()
            say(f"emu: http://{_shown(sock.getsockname())}/{site.token}/")
        ending = await signalled
        await runner.cleanup()
        return 0 if ending is signal.SIGINT else 128 + ending
    finally:
        sock.close()
        await machines.close()


def _shown(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """As it stands in an address of the web."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
