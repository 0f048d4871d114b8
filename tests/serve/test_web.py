"""The web server: who is refused, and what pages and machines say to each other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestServer

from emu.errors import EmuError
from emu.serve import machines as machines_module
from emu.serve import web as web_module
from emu.serve.machines import Machines
from emu.serve.scrollback import KEPT
from emu.serve.viewer import AHEAD, LONGEST_MESSAGE
from emu.serve.web import Site, listening
from tests.serve.fakes import FakeProcess

PATIENCE_S = 60.0
SNAPSHOT = "machine-1-20260101-000000"


class Stage:
    """A server with one machine, and a browser's means to ask it."""

    def __init__(self, machines: Machines, site: Site, server: TestServer, client: ClientSession) -> None:
        self.machines = machines
        self.site = site
        self.made: list[FakeProcess] = []
        self.root = str(server.make_url("/")).rstrip("/")
        self.client = client

    @property
    def process(self) -> FakeProcess:
        """Of the first machine."""
        return self.machines.hosted[1].process      # type: ignore[return-value]

    async def status(self, path: str, **headers: str) -> int:
        """Of an answer."""
        async with self.client.get(f"{self.root}{path}", headers=headers) as response:
            return response.status

    async def page(self, number: int | str = 1, **headers: str) -> Page:
        """A page on a machine."""
        url = f"{self.root}/{self.site.token}/socket?machine={number}"
        return Page(await self.client.ws_connect(url, headers={"Origin": self.root} | headers))


class Page:
    """A page's end of a WebSocket.

    Attributes:
        shown: bytes of the console since the screen was cleared.
        got: how many there were in all.
        told: messages so far.
        takes: say what was shown.
    """

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.socket = socket
        self.shown = b""
        self.got = 0
        self.told: list[dict[str, Any]] = []
        self.takes = True

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Take what comes until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):
                message = await self.socket.receive()
                assert message.type in (WSMsgType.TEXT, WSMsgType.BINARY), message
                if message.type is WSMsgType.TEXT:
                    self.told.append(json.loads(message.data))
                    if self.told[-1]["kind"] == "screen":
                        self.shown = b""
                else:
                    self.shown += message.data
                    self.got += len(message.data)
                    if self.takes:
                        await self.say({"took": len(message.data)})
        return found

    async def hears(self, kind: str, **values: object) -> dict[str, Any]:
        """The next message of a kind, with such values."""
        def look() -> dict[str, Any] | None:
            while self.told:
                message = self.told.pop(0)
                if message["kind"] == kind and values.items() <= message.items():
                    return message
            return None

        message: dict[str, Any] = await self.until(look)
        return message

    async def say(self, message: object) -> None:
        await self.socket.send_str(json.dumps(message))

    async def do(self, button: str, name: str = "") -> None:
        await self.say({"do": button, "name": name})


def on_stage(tmp_path: Path, play: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a test."""
    async def run() -> None:
        made: list[FakeProcess] = []

        def make(greeting: bytes = b"hello\n") -> Any:
            made.append(FakeProcess(greeting))
            return made[-1]

        machines = Machines(make, lambda path: make(b"restored %b\n" % path.name.encode()), tmp_path / "snapshots")
        site = Site(machines, "127.0.0.1")
        await machines.open()
        async with TestServer(site.app) as server, ClientSession() as client:
            stage = Stage(machines, site, server, client)
            stage.made = made
            await play(stage)
        await machines.close()
        assert all(process.is_closed for process in made)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched."""
    monkeypatch.setattr(web_module, "assets", lambda _cache: {"xterm.js": b"the terminal", "xterm.LICENSE": b"free"})


# -- who may -----------------------------------------------------------------------------------------------------------


def test_only_the_token_opens_the_page(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        token = stage.site.token
        for path in ("", "index.html", "page.js", "page.css", "chart.js", "icon.svg", "xterm.js"):
            assert await stage.status(f"/{token}/{path}") == 200
        for path in ("/", "/x/", f"/{token[:-1]}/", f"/{token}x/", f"/?token={token}", "//", "/%00/", "/é/"):
            assert await stage.status(path) == 403
        for path in ("xterm.LICENSE", "..%2fweb.py", "nothing", "socket"):
            assert await stage.status(f"/{token}/{path}") in (403, 404)
        async with stage.client.get(f"{stage.root}/{token}/") as page:
            assert page.headers["Referrer-Policy"] == "no-referrer"
            assert "default-src 'none'" in page.headers["Content-Security-Policy"]

    on_stage(tmp_path, play)


@pytest.mark.parametrize("host, status", [
    ("localhost:1234", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example:80", 403), ("127.0.0.1.evil", 403),
    ("", 403), ("[::1", 403), ("a@localhost", 200),
])  # fmt: skip
def test_names_that_others_could_point_here_are_refused(tmp_path: Path, host: str, status: int) -> None:
    async def play(stage: Stage) -> None:
        assert await stage.status(f"/{stage.site.token}/", Host=host) == status

    on_stage(tmp_path, play)


def test_pages_of_other_sites_get_no_connection(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        assert await stage.status(f"/{stage.site.token}/", Origin="https://evil.example") == 403
        for origin in ("https://evil.example", "null", "", stage.root.replace("http:", "https:"), f"{stage.root}0"):
            with pytest.raises(WSServerHandshakeError, match="403"):
                await stage.page(Origin=origin)
        with pytest.raises(WSServerHandshakeError, match="403"):
            await stage.client.ws_connect(f"{stage.root}/{stage.site.token}/socket?machine=1")
        with pytest.raises(WSServerHandshakeError, match="403"):
            await stage.client.ws_connect(f"{stage.root}/guess/socket", headers={"Origin": stage.root})

    on_stage(tmp_path, play)


def test_there_is_a_limit_to_viewers_and_only_machines_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_module, "MOST_VIEWERS", 2)

    async def play(stage: Stage) -> None:
        for number in ("2", "", "-1", "x", "9" * 50, "²"):
            with pytest.raises(WSServerHandshakeError, match="404"):
                await stage.page(number)
        pages = [await stage.page(), await stage.page()]
        with pytest.raises(WSServerHandshakeError, match="404"):
            await stage.page()
        await pages[0].socket.close()
        await pages[1].hears("state", viewers=1)

    on_stage(tmp_path, play)


@pytest.mark.parametrize("place", ["", "x", "127.0.0.1", "127.0.0.1:", ":80", "1:2:3:x", "70000", "no.host.invalid:80"])
def test_what_is_no_place_to_listen_at(place: str) -> None:
    with pytest.raises(EmuError, match="listen"):
        listening(place)


def test_a_port_alone_is_this_machines_own(tmp_path: Path) -> None:
    with listening("0") as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        with pytest.raises(EmuError, match="in use"):
            listening(str(sock.getsockname()[1]))


# -- the console -------------------------------------------------------------------------------------------------------


def test_all_see_the_same_and_one_of_them_answers_programs(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        first, second = await stage.page(), await stage.page()
        assert (await first.hears("state", viewers=2))["answers"] is True
        assert (await second.hears("state", viewers=2))["answers"] is False
        stage.process.say(b"more\n")
        for page in (first, second):
            await page.until(lambda page=page: page.shown == b"hello\nmore\n")     # type: ignore[misc]
        await first.socket.close()
        assert (await second.hears("state", viewers=1))["answers"] is True
        await second.socket.send_bytes(b"typed")
        await second.do("pause")
        await second.hears("done")
        assert ("type", b"typed") in stage.process.calls

    on_stage(tmp_path, play)


def test_a_page_that_takes_nothing_holds_up_nobody_and_then_sees_the_end(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        slow, quick = await stage.page(), await stage.page()
        slow.takes = False
        total = 6
        while total < 4 * KEPT:
            stage.process.say(bytes(50_000))
            total += 50_000
            await quick.until(lambda total=total: quick.got >= total)       # type: ignore[misc]
        stage.process.say(b"the end")
        await quick.until(lambda: quick.shown.endswith(b"the end"))
        await slow.until(lambda: slow.got >= AHEAD)
        assert slow.got < 2 * AHEAD
        await slow.say({"took": slow.got})
        slow.takes = True
        await slow.until(lambda: slow.shown.endswith(b"the end"))
        assert sum(message.get("missed", 0) for message in slow.told) > KEPT

    on_stage(tmp_path, play)


@pytest.mark.parametrize("text", [
    "", "nonsense", "[" * 100_000, "null", "[]", '{"took": -5}', '{"took": 1e300}', '{"took": true}',
    '{"size": [0, 1]}', '{"size": ["a", {}]}',
    '{"size": 1}', '{"do": 5, "name": 6}', '{"do": "close"}', '{"took": 99999999999999999999}',
])  # fmt: skip
def test_what_is_no_message_does_nothing(tmp_path: Path, text: str) -> None:
    async def play(stage: Stage) -> None:
        page = await stage.page()
        await page.socket.send_str(text)
        await page.do("close-the-world")
        assert (await page.hears("error"))["message"] == "there is no such button"
        assert stage.process.calls == []

    on_stage(tmp_path, play)


def test_a_message_that_is_too_long_ends_the_connection_only(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        page, other = await stage.page(), await stage.page()
        await other.hears("state", viewers=2)
        await page.socket.send_bytes(bytes(LONGEST_MESSAGE + 1))
        await other.hears("state", viewers=1)
        assert stage.process.calls == []

    on_stage(tmp_path, play)


def test_the_console_is_as_large_as_all_have_room_for(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        wide, narrow = await stage.page(), await stage.page()
        await wide.say({"size": [120, 40]})
        await wide.hears("state", size=[120, 40])
        await narrow.say({"size": [46, 50]})
        await wide.hears("state", size=[46, 40])
        await narrow.say({"size": [100_000, 1]})
        await wide.hears("state", size=[120, 5])
        await narrow.socket.close()
        await wide.hears("state", size=[120, 40])
        assert ("resize", 46, 40) in stage.process.calls

    on_stage(tmp_path, play)


# -- buttons -----------------------------------------------------------------------------------------------------------


def test_pause_and_start(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        page = await stage.page()
        await page.do("pause")
        await page.hears("state", status="paused")
        assert stage.process.is_paused
        await page.do("start")
        await page.hears("state", status="running")
        assert not stage.process.is_paused

    on_stage(tmp_path, play)


def test_a_machine_that_has_stopped_is_started_anew(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        page, first = await stage.page(), stage.process
        first.stop("the guest powered off")
        assert (await page.hears("state", status="stopped"))["detail"] == "the guest powered off"
        await page.do("start")
        await page.hears("state", status="running")
        await page.until(lambda: page.shown == b"hello\n")
        assert stage.process is not first
        while not first.is_closed:
            await asyncio.sleep(0.001)

    on_stage(tmp_path, play)


def test_snapshot_and_restore(tmp_path: Path) -> None:
    async def play(stage: Stage) -> None:
        page = await stage.page()
        await page.do("snapshot")
        name = (await page.hears("done", do="snapshot"))["result"]
        await page.do("restore", name)
        await page.hears("done", do="restore")
        await page.until(lambda: page.shown == b"restored %b\n" % name.encode())
        before = stage.process
        for other in ("../../etc", "", SNAPSHOT, "/", f"{name}/../{name}"):
            await page.do("restore", other)
            await page.hears("error", message="there is no such snapshot")
        assert stage.process is before
        stage.process.snapshots_fail = True
        await page.do("snapshot")
        await page.hears("error", message="a disk is in the way")
        assert stage.machines.hosted[1].status == "running"

    on_stage(tmp_path, play)


def test_only_what_the_button_saved_is_offered(tmp_path: Path) -> None:
    for name in (SNAPSHOT, f"{SNAPSHOT}-2", "other", ".hidden", "machine-1-1-1"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)

    async def play(stage: Stage) -> None:
        state = await (await stage.page()).hears("state")
        assert sorted(state["snapshots"]) == [SNAPSHOT, f"{SNAPSHOT}-2"]

    on_stage(tmp_path, play)


def test_a_fork_lives_as_long_as_what_it_was_forked_from_needs_to(tmp_path: Path) -> None:
    """A fork ends with its parent's process, which therefore stays, paused, when its machine is another one."""
    (tmp_path / "snapshots" / SNAPSHOT).mkdir(parents=True)

    async def play(stage: Stage) -> None:
        page, parent = await stage.page(), stage.process
        await page.do("fork")
        number = (await page.hears("done", do="fork"))["result"]
        fork, child = await stage.page(number), parent.forks[0]
        await fork.until(lambda: fork.shown == b"a fork\n")
        await page.do("restore", SNAPSHOT)
        await page.hears("done", do="restore")
        while not parent.is_paused:
            await asyncio.sleep(0.001)
        assert not parent.is_closed
        await fork.do("end")
        await fork.hears("ended")
        while not (child.is_closed and parent.is_closed):
            await asyncio.sleep(0.001)
        await page.do("end")
        await page.hears("error", message="this is the only machine")

    on_stage(tmp_path, play)


def test_there_is_a_limit_to_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines_module, "MOST_MACHINES", 2)

    async def play(stage: Stage) -> None:
        page = await stage.page()
        await page.do("fork")
        await page.hears("done", do="fork")
        await page.do("fork")
        assert "the most" in (await page.hears("error"))["message"]
        stage.process.forks[0].close()

    on_stage(tmp_path, play)


def test_figures_come_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines_module, "FIGURES_S", 0.01)

    async def play(stage: Stage) -> None:
        page = await stage.page()
        figures = await page.hears("figures")
        assert (figures["private"], figures["shared"], set(figures["kinds"])) == (1 << 20, 2 << 20, {"wrmsr"})
        assert [row[:2] for row in figures["handlers"]] == [["native", "cpuid"], ["wrmsr", "x2apic"]]

    on_stage(tmp_path, play)
