"""A browser for tests: Chromium and its driver, as Debian packages them, without a window."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["MISSING", "PATIENCE_S", "Page", "browser", "eventually", "have_browser"]

PATIENCE_S = 90.0
MISSING = "needs a browser: apt-get install chromium chromium-driver, and pip install selenium"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZE = 1200, 800
SCREEN = """
    const {buffer: {active}, rows} = window.terminal, lines = [];
    for (let row = 0; row < rows; row++) lines.push(active.getLine(active.baseY + row)?.translateToString(true) ?? "");
    return lines.join("\\n");
"""

T = TypeVar("T")


def have_browser() -> bool:
    """Whether there is one."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return False
    return all(shutil.which(program) for program in ("chromium", "chromedriver"))


def eventually(look: Callable[[], T], what: str) -> T:
    """Wait until something is there, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        if found := look():
            return found
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


@contextmanager
def browser(profile: Path) -> Iterator[Any]:
    """A browser with an empty profile; closed at the end."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """A tab on a machine.

    Args:
        driver: the browser.
        address: opened in a new tab; None: the tab is there, the last one.
    """

    def __init__(self, driver: Any, address: str | None) -> None:
        self._driver = driver
        if address is not None:
            driver.switch_to.new_window("tab")
            driver.get(address)
            self._tab = driver.current_window_handle
        else:
            self._tab = driver.window_handles[-1]

    @property
    def driver(self) -> Any:
        """The browser, with this tab in front."""
        if self._driver.current_window_handle != self._tab:
            self._driver.switch_to.window(self._tab)
            self._driver.execute_cdp_cmd("Page.bringToFront", {})
        return self._driver

    def script(self, text: str, *arguments: object) -> Any:
        """What JavaScript returns."""
        return self.driver.execute_script(text, *arguments)

    def screen(self) -> str:
        """What the terminal shows; of a tab in the background, what it would."""
        return str(self.script(SCREEN))

    def text(self, element: str) -> str:
        """Of an element, by its id."""
        return str(self.script("return document.getElementById(arguments[0]).textContent", element))

    def type(self, text: str) -> None:
        """Type at the terminal."""
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.CSS_SELECTOR, ".xterm-helper-textarea").send_keys(text)

    def click(self, button: str) -> None:
        """Click on a button, by its id, as soon as it can be."""
        from selenium.webdriver.common.by import By

        found = self.driver.find_element(By.ID, button)
        eventually(found.is_enabled, f"the button {button}")
        found.click()

    def sees(self, text: str) -> None:
        """Wait until the terminal shows a text."""
        eventually(lambda: text in self.screen(), f"{text!r} on the screen")

    def close(self) -> None:
        """Close the tab."""
        self.driver.close()
        self._driver.switch_to.window(self._driver.window_handles[0])
