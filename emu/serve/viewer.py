"""One page that is open on a machine: what goes over its WebSocket.

To the page go bytes of the console, and messages in JSON, told apart by "kind": `state`, `figures`, `screen` (clear it;
so many bytes were missed, and so many of those that follow are old), `done`, `error`, `ended`. From it come bytes that
were typed, and JSON: `{"took": bytes}` when the terminal has shown so many, `{"size": [columns, rows]}`,
`{"do": button, "name": argument}`.

A page that is slow has a bounded number of bytes on their way; when it takes more again, it gets what is newest.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any

from aiohttp import WSMsgType, web

from emu.errors import EmuError
from emu.serve.machines import Hosted, Machines
from emu.serve.scrollback import Place

__all__ = ["LONGEST_MESSAGE", "Session"]

LONGEST_MESSAGE = 256 << 10             # bytes that a page may send at once
AHEAD = 384 << 10                       # bytes that a page may have got and not shown
PIECE = 64 << 10
MOST_ANSWERS = 100                      # that a page may leave unread
LATEST_ONLY = "state", "figures"        # who is slow gets the last of them


class Session:
    """A `emu.serve.machines.Viewer`.

    Args:
        machines: that there are.
        hosted: the one that is seen.
        socket: to the page.
    """

    def __init__(self, machines: Machines, hosted: Hosted, socket: web.WebSocketResponse) -> None:
        self.size: tuple[int, int] | None = None
        self._machines = machines
        self._hosted = hosted
        self._socket = socket
        self._news = asyncio.Event()
        self._latest: dict[str, dict[str, Any]] = {}
        self._answers: deque[dict[str, Any]] = deque()
        self._place: Place | None = None
        self._ahead = 0
        self._is_over = False

    # -- of a viewer -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """The console has shown more."""
        self._news.set()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message, soon."""
        if message["kind"] in LATEST_ONLY:
            self._latest[message["kind"]] = message
        elif len(self._answers) < MOST_ANSWERS:
            self._answers.append(message)
        else:
            self._is_over = True
        self._news.set()

    # -- the connection --------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Until it is closed."""
        self._hosted.viewers[self] = None
        sender = asyncio.create_task(self._send())
        self._machines.changed()
        self._news.set()
        try:
            async for message in self._socket:
                if message.type is WSMsgType.BINARY:
                    await self._typed(message.data)
                elif message.type is WSMsgType.TEXT:
                    self._said(message.data)
                if self._is_over:
                    break
        finally:
            sender.cancel()
            del self._hosted.viewers[self]
            self._hosted.fit()
            self._machines.changed()

    async def _send(self) -> None:
        while not self._is_over:
            await self._news.wait()
            self._news.clear()
            try:
                await self._send_messages()
                while self._ahead < AHEAD and await self._send_piece():
                    await self._send_messages()
            except ConnectionError:             # the page has gone, which is found out elsewhere
                return
        await self._socket.close()

    async def _send_messages(self) -> None:
        latest, self._latest = list(self._latest.values()), {}
        while self._answers:
            latest.append(self._answers.popleft())
        for message in latest:
            await self._socket.send_str(json.dumps(message))

    async def _send_piece(self) -> bool:
        """Send what comes next of the console; whether there was anything."""
        piece = self._hosted.scrollback.next(self._place, PIECE)
        if piece is None:
            return False
        self._place = piece.end
        self._ahead += len(piece.data)
        if piece.is_new:
            await self._socket.send_str(json.dumps({"kind": "screen", "missed": piece.missed, "old": piece.old}))
        if piece.data:
            await self._socket.send_bytes(piece.data)
        return True

    # -- what comes ------------------------------------------------------------------------------------------------

    async def _typed(self, data: bytes) -> None:
        try:
            await self._hosted.type(data)
        except EmuError as error:
            self._fail(error)

    def _said(self, text: str) -> None:
        """A message: what is none is left alone."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return
        match message:
            case {"took": int(size)} if 0 < size <= self._ahead:
                self._ahead -= size
                self._news.set()
            case {"size": [int(columns), int(rows)]} if columns > 0 and rows > 0:
                self.size = columns, rows
                self._hosted.fit()
            case {"do": str(name), "name": str(argument)}:
                self._machines.start(self._do(name, argument))

    async def _do(self, name: str, argument: str) -> None:
        try:
            result = await self._hosted.do(name, argument)
        except (EmuError, OSError) as error:
            self._fail(error)
        else:
            self.tell({"kind": "done", "do": name, "result": result})

    def _fail(self, error: Exception) -> None:
        self.tell({"kind": "error", "message": str(error)})
