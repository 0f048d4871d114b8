"""A machine on a page in a browser, as a person has it: `emu serve`, and Chromium."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.integration.processes import descendants, seconds_until_gone
from tests.serve.browser import MISSING, Page, browser, eventually, have_browser

pytest.importorskip("aiohttp")
pytestmark = [pytest.mark.integration, pytest.mark.skipif(not have_browser(), reason=MISSING)]

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
FLOOD = (                               # 100 MiB, from memory: the guest takes a minute to make as much
    "dd if=/dev/zero bs=1M count=10 2>/dev/null | tr '\\0' y >/tmp/f; stty -opost; "
    "for i in 0 1 2 3 4 5 6 7 8 9; do cat /tmp/f; done; stty opost; echo; echo all-$((3 * 3))-done\n"
)
COLOURS = "return [terminal.options.theme.background, getComputedStyle(document.body).color]"
PICTURES = os.environ.get("EMU_TEST_PICTURES")          # a directory for screenshots to look at


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the page; at the end nothing is left of the machines."""
    snapshots = tmp_path_factory.mktemp("serve") / "snapshots"
    options = "--kernel", "cloud", "--console", "hvc0", "--listen", "0", "--snapshots", snapshots
    command = [sys.executable, "-m", "emu", "serve", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split()[1]
        processes = descendants(server.pid)
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
        assert (server.returncode, errors) == (128 + signal.SIGTERM, "")
        assert seconds_until_gone(processes) < 60
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(driver: Any, address: str) -> Iterator[Page]:
    """A tab on the first machine, at its prompt; what the page logs to its console is an error."""
    page = Page(driver, address)
    page.sees("# ")
    yield page
    assert page.driver.get_log("browser") == []
    page.close()


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.driver.save_screenshot(str(Path(PICTURES) / f"{name}.png"))


def test_without_the_token_there_is_nothing(driver: Any, address: str) -> None:
    root = address.rsplit("/", 2)[0]
    for place in (root, f"{root}/", f"{root}/xterm.js", f"{address[:-2]}x/", f"{root}/socket?machine=1"):
        with pytest.raises(HTTPError, match="403"):
            urlopen(place)
    driver.get(f"{root}/?token=guessed")
    assert "token" in driver.page_source and "xterm" not in driver.page_source
    assert len(driver.get_log("browser")) == 2          # that, and the icon of the page that is none


def test_two_viewers_see_what_is_typed_and_its_output(page: Page, driver: Any, address: str) -> None:
    other = Page(driver, address)
    page.type("echo $((6 * 7))x\n")
    page.sees("42x")
    other.sees("42x")
    other.type("echo $((6 * 8))y\n")
    page.sees("48y")
    assert eventually(lambda: page.screen() == other.screen(), "the same on both screens")
    other.close()


def size(page: Page, mark: str) -> tuple[int, int]:
    """Columns and rows as the guest has them."""
    page.type(f"echo {mark}-$(stty size)-\n")
    page.sees(f"\n{mark}-")
    rows, columns = page.screen().rsplit(f"\n{mark}-", 1)[1].split("-")[0].split()
    return int(columns), int(rows)


def test_the_guest_knows_how_large_the_terminal_is(page: Page) -> None:
    page.driver.set_window_size(1200, 800)
    wide = eventually(lambda: shown if (shown := shown_size(page)) == size(page, "wide") else None, "the same size")
    page.driver.set_window_size(800, 500)
    narrow = eventually(lambda: shown if (shown := shown_size(page)) == size(page, "narrow") != wide else None, "less")
    assert narrow[0] < wide[0] and narrow[1] < wide[1]
    page.driver.set_window_size(1200, 800)


def shown_size(page: Page) -> tuple[int, int]:
    """As the page has them."""
    return tuple(page.script("return [terminal.cols, terminal.rows]"))


def test_pause_and_start(page: Page) -> None:
    page.click("pause")
    eventually(lambda: page.text("status") == "paused", "paused")
    page.type("echo $((70 + 7))z\n")
    page.click("start")
    page.sees("77z")
    assert page.text("status") == "running"


def test_snapshot_and_restore_by_their_buttons(page: Page) -> None:
    page.type("state=before; clear; echo $state-1\n")
    page.sees("before-1")
    page.click("snapshot")
    eventually(lambda: "Saved" in page.text("message"), "saved")
    page.type("state=after; echo $state-2\n")
    page.sees("after-2")
    page.click("restore")
    eventually(lambda: page.text("message").startswith("Restored"), "restored")
    page.type("\necho $state-3\n")
    page.sees("before-3")


def test_a_fork_is_a_machine_of_its_own_in_a_new_tab(page: Page, driver: Any) -> None:
    page.type("state=shared; echo $state-4\n")
    page.sees("shared-4")
    tabs = len(driver.window_handles)
    page.click("fork")
    eventually(lambda: len(driver.window_handles) > tabs, "a new tab")
    fork = Page(driver, None)
    fork.type("\necho $state-5; state=fork\n")
    fork.sees("shared-5")
    page.type("echo $state-6\n")
    page.sees("shared-6")
    assert "machine=2" in fork.driver.current_url
    fork.click("end")
    eventually(lambda: fork.text("status") == "ended", "its end")
    fork.close()


def test_much_output_stalls_neither_machine_nor_page(page: Page) -> None:
    page.type(FLOOD)
    eventually(lambda: "y" * 70 in page.screen(), "the beginning")
    page.sees("all-9-done")
    page.type("echo still-$((2 + 2))\n")
    page.sees("still-4")


def test_it_fits_a_phone_in_dark_and_light(page: Page) -> None:
    page.type("clear; ls -l /; echo $((11 * 11))\n")
    page.sees("121")
    eventually(lambda: page.text("interrupts") != "–", "figures")
    papers = {}
    for scheme in ("dark", "light"):
        page.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        picture(page, f"wide-{scheme}")
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
        eventually(lambda: page.script("return innerWidth") == PHONE["width"], "the width of a phone")
        eventually(lambda: shown_size(page)[0] < 60, "a narrow terminal")
        assert page.script("return document.documentElement.scrollWidth") == PHONE["width"]
        picture(page, f"phone-{scheme}")
        papers[scheme] = page.script(COLOURS)
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert papers["dark"] == ["#14171a", "rgb(228, 231, 233)"] and papers["light"] == ["#fbfaf7", "rgb(34, 38, 42)"]
