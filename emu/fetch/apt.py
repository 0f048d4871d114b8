"""Debian's packages through the machine's own apt, as a plain user and with no package lists if need be."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from emu.errors import EmuError
from emu.fetch.progress import Progress, Say

__all__ = ["apt_download"]

POLL_SECONDS = 0.1
APT_SECONDS = 1800.0  # a package of 70 MB through a slow line

KERNEL_META_PACKAGE = re.compile(r"linux-image-(cloud-)?amd64")


def apt_download(package: str, directory: Path, progress: Progress, say: Say) -> Path:
    """Download a package, or the kernel package that a meta-package means, into `directory`.

    The system's package lists come first; a machine without any, or with outdated ones, gets private lists.

    Raises:
        EmuError: there is no apt, no list knows the package, or its server does not answer.
    """
    if shutil.which("apt-get") is None:
        raise EmuError(f"cannot fetch {package}: this machine has no apt-get")
    apt = _Apt(directory, [], progress)
    try:
        return apt.download(package)
    except EmuError:
        say(f"the system's package lists do not lead to {package}; fetching lists of our own")
    apt = _Apt(directory, _private_settings(directory), progress)
    apt.update()
    return apt.download(package)


def _private_settings(directory: Path) -> list[str]:
    """apt's settings for lists and caches of its own, as apt.conf(5) names them; needs no privilege."""
    for name in ("lists/partial", "archives/partial"):
        (directory / "apt" / name).mkdir(parents=True)
    status = directory / "apt" / "status"
    status.touch()
    return [
        f"Dir::State={directory}/apt",
        f"Dir::State::Lists={directory}/apt/lists",
        f"Dir::State::status={status}",
        f"Dir::Cache={directory}/apt",
        f"Dir::Cache::archives={directory}/apt/archives",
        "APT::Architecture=amd64",
        "Acquire::Languages=none",
    ]


class _Apt:
    """apt-get and apt-cache with some settings, downloading into one directory."""

    def __init__(self, directory: Path, settings: list[str], progress: Progress) -> None:
        self._directory, self._progress = directory, progress
        # Root's apt would drop to a user that cannot write to our directories.
        every = [*settings, "APT::Sandbox::User=root", "Acquire::http::Timeout=20", "Acquire::https::Timeout=20"]
        self._options = [word for setting in every for word in ("-o", setting)]

    def update(self) -> None:
        """Fetch the lists. Its exit status tells of any source that failed; what counts is what can be downloaded."""
        self._run("fetching package lists", ["apt-get", *self._options, "-q", "update"], None, check=False)

    def download(self, package: str) -> Path:
        """Fetch a package, checked by apt against its signed lists.

        Raises:
            EmuError: the lists do not know it, or its server does not answer.
        """
        real = self._resolve(package)
        name, size = self._announced(real)
        for leftover in self._directory.glob("*.deb"):
            leftover.unlink()
        self._run(name, ["apt-get", *self._options, "-q", "download", real], size)
        found = list(self._directory.glob("*.deb"))
        if len(found) != 1:
            raise EmuError(f"cannot fetch {real}: apt-get left no package")
        return found[0]

    def _resolve(self, package: str) -> str:
        """Debian's linux-image-amd64 is empty, and depends on the kernel of the day."""
        if not KERNEL_META_PACKAGE.fullmatch(package):
            return package
        command = ["apt-cache", *self._options, "show", "--no-all-versions", package]
        fields = self._run(package, command, None)
        depends = re.search(r"^Depends:.*?\b(linux-image-[^\s,(]+)", fields, re.MULTILINE)
        if depends is None:
            raise EmuError(f"cannot fetch {package}: it names no kernel")
        return depends[1]

    def _announced(self, package: str) -> tuple[str, int | None]:
        """The file that a download would give, and its size."""
        uris = self._run(package, ["apt-get", *self._options, "-q", "download", "--print-uris", package], None)
        match = re.search(r"^'[^']*' (\S+) (\d+)", uris, re.MULTILINE)
        if match is None:
            raise EmuError(f"cannot fetch {package}: the package lists do not know it")
        return match[1], int(match[2])

    def _run(self, what: str, command: list[str], size: int | None, check: bool = True) -> str:
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        with (
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                command, cwd=self._directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            ) as process,
        ):
            try:
                self._watch(process, what, size)
            except BaseException:
                process.kill()
                raise
            output.seek(0)
            errors.seek(0)
            if check and process.returncode:
                raise EmuError(f"cannot fetch {what}: {_apt_error(errors.read())}")
            return io.TextIOWrapper(output, errors="replace").read()

    def _watch(self, process: subprocess.Popen[bytes], what: str, size: int | None) -> None:
        """Wait for the end of a command; a download's progress is the size of the file that it writes."""
        for _ in range(int(APT_SECONDS / POLL_SECONDS)):
            try:
                process.wait(POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if size is not None:
                    self._progress(what, min(self._downloaded(), size), size)
        else:
            raise EmuError(f"cannot fetch {what}: apt did not end")
        if size is not None and process.returncode == 0:
            self._progress(what, size, size)

    def _downloaded(self) -> int:
        return sum(path.stat().st_size for path in self._directory.glob("*.deb") if path.exists())


def _apt_error(text: bytes) -> str:
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
    return next((line.removeprefix("E: ") for line in lines if line.startswith("E: ")), "apt-get failed")
