"""The machines of one server: each in a process of its own, seen by any number of viewers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from emu.errors import EmuError
from emu.process.client import MachineProcess
from emu.rates import Rates, rates
from emu.serve.scrollback import Scrollback
from emu.serve.snapshots import Snapshots
from emu.stats import ExitStats

__all__ = ["MOST_MACHINES", "Hosted", "Machines", "Viewer"]

MOST_MACHINES = 16
THREADS = 32                            # that wait for processes, beside one for each machine's console
FIGURES_S = 1.0
ROWS = 12                               # handlers that figures name
SMALLEST, LARGEST = (20, 5), (500, 200)     # columns and rows

T = TypeVar("T")
Make = Callable[[], MachineProcess]


class Viewer(Protocol):
    """Who sees a machine.

    Attributes:
        size: columns and rows that the viewer has room for, None if that is not known yet.
    """

    size: tuple[int, int] | None

    def wake(self) -> None:
        """The console has shown more."""

    def tell(self, message: dict[str, Any], /) -> None:
        """Send a message, soon."""


class Hosted:
    """One machine.

    Args:
        machines: that it is one of.
        number: by which it is called.

    Attributes:
        status: "starting", "running", "paused", "stopped"; or what is being done.
        detail: why it has stopped.
        scrollback: of its console.
        viewers: who sees it, in order of coming. The first one's terminal answers what programs ask a terminal; if all
            did, a program would take the second answer for something typed.
    """

    def __init__(self, machines: Machines, number: int) -> None:
        self.number = number
        self.status = "starting"
        self.detail = ""
        self.scrollback = Scrollback()
        self.viewers: dict[Viewer, None] = {}
        self.size: tuple[int, int] | None = None
        self._machines = machines
        self._process: MachineProcess | None = None
        self._doing = False
        self._is_waking = False
        self._before: tuple[ExitStats, int] | None = None

    @property
    def process(self) -> MachineProcess:
        """Where it is.

        Raises:
            EmuError: nowhere.
        """
        if self._process is None:
            raise EmuError("the machine is not there yet")
        return self._process

    # -- its process -----------------------------------------------------------------------------------------------

    async def begin(self, make: Make) -> None:
        """Be a machine that is made now; the one before it ends."""
        process = await self._machines.wait(make)
        self.be(process)

    def be(self, process: MachineProcess) -> None:
        """Be this machine."""
        before, self._process = self._process, process
        self._before = None
        if before is not None:
            self.scrollback.restart()
            self._machines.retire(before)
        self.status, self.detail = "running", ""
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        if self.size is not None:
            self._machines.start(self._pass_size_on())

    def _watch(self, process: MachineProcess) -> None:
        """In a thread: until the machine stops, or its process is gone."""
        loop = self._machines.loop

        def show(position: int, data: bytes) -> None:
            if process is self._process:
                self.scrollback.feed(position, data)
                if not self._is_waking:
                    self._is_waking = True
                    loop.call_soon_threadsafe(self._wake)

        try:
            reason = process.console_view(show)
        except EmuError as error:
            reason = str(error)
        try:
            loop.call_soon_threadsafe(self._stopped, process, reason)
        except RuntimeError:
            pass                        # the server has ended meanwhile

    def _wake(self) -> None:
        self._is_waking = False
        for viewer in self.viewers:
            viewer.wake()

    def _stopped(self, process: MachineProcess, reason: str) -> None:
        if process is self._process:
            self.status, self.detail = "stopped", reason
            self._machines.changed()

    # -- what is done with it --------------------------------------------------------------------------------------

    async def do(self, name: str, argument: str) -> int | str | None:
        """Do what a button says.

        Args:
            name: of the button.
            argument: for "restore" the snapshot's name.

        Returns:
            For "fork" the number of the new machine, for "snapshot" its name.

        Raises:
            EmuError: that cannot be done, or something else is being done.
        """
        actions: dict[str, Callable[[], Any]] = {
            "start": self._start, "pause": self._pause, "snapshot": self._snapshot, "fork": self._fork,
            "restore": partial(self._restore, argument), "end": self._end,
        }  # fmt: skip
        if name not in actions:
            raise EmuError("there is no such button")
        if self._doing:
            raise EmuError(f"wait a moment: {self.status}")
        before, self._doing = self.status, True
        try:
            result: int | str | None = await actions[name]()
            return result
        finally:
            self._doing = False
            if self.status.endswith("…"):
                self.status = before
            self._machines.changed()

    def _say(self, status: str) -> None:
        self.status = f"{status}…"
        self._machines.changed()

    async def _start(self) -> None:
        if self.status == "paused":
            await self._machines.wait(self.process.resume)
            self.status = "running"
        elif self.status == "stopped":
            self._say("starting")
            await self.begin(self._machines.make)

    async def _pause(self) -> None:
        if self.status == "running":
            await self._machines.wait(self.process.pause)
            self.status = "paused"

    async def _snapshot(self) -> str:
        path = self._machines.snapshots.new(self.number)
        self._say("saving")
        await self._machines.wait(partial(self.process.snapshot, path))
        return path.name

    async def _restore(self, name: str) -> None:
        path = self._machines.snapshots.path(name)
        self._say("restoring")
        await self.begin(partial(self._machines.restore, path))

    async def _fork(self) -> int:
        self._machines.check_room()
        self._say("forking")
        return self._machines.add(self.process, await self._machines.wait(self.process.fork))

    async def _end(self) -> None:
        self._machines.remove(self)

    async def type(self, data: bytes) -> None:
        """Type on its console."""
        if self._process is not None and self.status != "stopped":
            await self._machines.wait(partial(self.process.console_send, data))

    # -- how large its console is ----------------------------------------------------------------------------------

    def fit(self) -> None:
        """Its viewers, or their rooms, have changed: the console is as large as all of them have room for."""
        rooms = [viewer.size for viewer in self.viewers if viewer.size is not None]
        if not rooms:
            return
        columns, rows = (
            min(max(min(room[axis] for room in rooms), SMALLEST[axis]), LARGEST[axis]) for axis in (0, 1)
        )
        if (columns, rows) != self.size:
            self.size = columns, rows
            if self._process is not None:
                self._machines.start(self._pass_size_on())
        self._machines.changed()

    async def _pass_size_on(self) -> None:
        if self.size is not None:
            await self._machines.wait(partial(self.process.console_resize, *self.size))

    # -- figures ---------------------------------------------------------------------------------------------------

    async def figures(self) -> dict[str, Any] | None:
        """What it does; None if it does not run, or nobody looks."""
        process = self._process
        if process is None or not self.viewers or self._doing or self.status == "stopped":
            return None
        try:
            stats, use = await self._machines.wait(lambda: (process.stats(), process.use()))
        except EmuError:                # it is gone
            return None
        before, self._before = self._before, (stats, time.monotonic_ns())
        if before is None or process is not self._process:
            return None
        figures = rates(before[0], stats, self._before[1] - before[1])
        return {"private": use.private_bytes, "shared": use.shared_bytes, **_plain(figures)}


def _plain(figures: Rates) -> dict[str, Any]:
    """As the page takes them."""
    return {
        "guest": figures.guest, "host": figures.host, "idle": figures.idle, "interrupts": figures.interrupts,
        "kinds": figures.kinds(),
        "handlers": [[row.kind.value, row.handler, figures.of(row)] for row in figures.rows[:ROWS]],
    }  # fmt: skip


class Machines:
    """All of them; of the thread of its event loop.

    Args:
        make: makes the first machine, and one in place of one that has stopped.
        restore: makes one of a snapshot.
        snapshots: the directory with those.
    """

    def __init__(self, make: Make, restore: Callable[[Path], MachineProcess], snapshots: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.make = make
        self.restore = restore
        self.hosted: dict[int, Hosted] = {}
        self.snapshots = Snapshots(snapshots)
        self._threads = ThreadPoolExecutor(THREADS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._last = 0
        self._parents: dict[MachineProcess, MachineProcess] = {}    # of forks, which end with them
        self._retired: set[MachineProcess] = set()                  # no machine is there any more, but forks of it

    async def wait(self, function: Callable[[], T]) -> T:
        """Wait for what a process is asked, in a thread."""
        return await self.loop.run_in_executor(self._threads, function)

    def start(self, work: Any) -> None:
        """Have something done beside everything else; errors of machines that are gone do not matter."""

        async def quietly() -> None:
            try:
                await work
            except EmuError:
                pass

        task = self.loop.create_task(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def open(self) -> None:
        """Make the first machine; errors as those of `make`."""
        first = self._new()
        await first.begin(self.make)
        self.start(self._tell_figures())

    async def close(self) -> None:
        """End all."""
        for task in tuple(self._tasks):
            task.cancel()
        processes = {hosted._process for hosted in self.hosted.values()} | self._retired
        for process in filter(None, processes):
            await asyncio.to_thread(process.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- machines --------------------------------------------------------------------------------------------------

    def _new(self) -> Hosted:
        self._last += 1
        hosted = self.hosted[self._last] = Hosted(self, self._last)
        return hosted

    def check_room(self) -> None:
        """Raise `EmuError` unless there may be one more."""
        if len(self.hosted) >= MOST_MACHINES:
            raise EmuError(f"there are {MOST_MACHINES} machines, which is the most; end one")

    def add(self, parent: MachineProcess, process: MachineProcess) -> int:
        """A fork of one of the processes is there; the number of its machine."""
        self._parents[process] = parent
        hosted = self._new()
        hosted.be(process)
        self.changed()
        return hosted.number

    def remove(self, hosted: Hosted) -> None:
        """End one; its viewers are told."""
        if len(self.hosted) == 1:
            raise EmuError("this is the only machine")
        del self.hosted[hosted.number]
        process, hosted._process = hosted.process, None
        hosted.status = "ended"
        for viewer in hosted.viewers:
            viewer.tell({"kind": "ended"})
        self.retire(process)

    def retire(self, process: MachineProcess) -> None:
        """No machine is there any more: it ends, at once or with the last of its forks."""
        self._retired.add(process)
        self.start(self._end_retired())

    async def _end_retired(self) -> None:
        needed = set(self._parents.values())
        for process in self._retired - needed:
            self._retired.discard(process)
            self._parents.pop(process, None)
            await self.wait(process.close)
            self.start(self._end_retired())
        for process in self._retired & needed:
            await self.wait(process.pause)

    # -- what viewers are told -------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Tell all viewers how everything stands."""
        machines = [[hosted.number, hosted.status] for hosted in self.hosted.values()]
        snapshots = self.snapshots.names()
        for hosted in self.hosted.values():
            state = {
                "kind": "state", "number": hosted.number, "status": hosted.status, "detail": hosted.detail,
                "machines": machines, "snapshots": snapshots, "size": hosted.size, "viewers": len(hosted.viewers),
            }  # fmt: skip
            for index, viewer in enumerate(hosted.viewers):
                viewer.tell(state | {"answers": index == 0})

    async def _tell_figures(self) -> None:
        while True:
            await asyncio.sleep(FIGURES_S)
            for hosted in list(self.hosted.values()):
                figures = await hosted.figures()
                if figures is not None:
                    for viewer in hosted.viewers:
                        viewer.tell({"kind": "figures", **figures})
