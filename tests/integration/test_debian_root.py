"""Debian as a guest's root, where debootstrap put it on the host: git, Python and GNU's tools at work over 9p.

The root is made once, which takes minutes, and kept in the user's cache; the guest works in a copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import emu
from bench.trouble import LOUD_SETTINGS, complaints
from emu.cache import content_key, default_directory
from emu.machine import Machine
from emu.memory import KIB, MIB
from tests.integration.trees import describe

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(1800)]

SUITE, PACKAGES = "bookworm", ("git", "python3", "tar")
DEBOOTSTRAP_S, START_S, RUN_S = 1200.0, 120.0, 400.0
SECOND_NS = 1_000_000_000
COPIED_AT_ONCE = 128 * KIB              # cp looks for holes in what it reads at once, a block of st_blksize


def mirror() -> list[str]:
    """Where this machine's apt gets that suite from; nothing if it does not."""
    query = ["apt-get", "indextargets", "--format", "$(CODENAME) $(ORIGIN) $(COMPONENT) $(REPO_URI)"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout
    except FileNotFoundError:
        return []
    found = [line.split() for line in answer.splitlines()]
    return [words[3] for words in found if words[:3] == [SUITE, "Debian", "main"]][:1]


def debootstrap() -> Path:
    """The root, from the cache or made for it."""
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if os.geteuid() or program is None:
        pytest.skip("needs debootstrap, and root to run it")
    options = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
    kept = default_directory() / "debootstrap" / content_key("\0".join([SUITE, *options]).encode())
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as partial:
            made = Path(partial) / "root"
            command = [program, *options, SUITE, str(made), *mirror()]
            result = subprocess.run(command, capture_output=True, text=True, timeout=DEBOOTSTRAP_S)
            assert result.returncode == 0, result.stdout[-2000:] + result.stderr
            made.rename(kept)
    return kept


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the root."""
    source, copy = debootstrap(), tmp_path_factory.mktemp("debian") / "root"
    subprocess.run(["cp", "-a", "--reflink=auto", source, copy], check=True, timeout=RUN_S)
    yield copy
    shutil.rmtree(copy)


@pytest.fixture(scope="module")
def debian(root: Path) -> Iterator[Machine]:
    """It, running."""
    with emu.boot(kernel="generic", root=root, root_over="9p", memory=512 * MIB, append=LOUD_SETTINGS) as machine:
        machine.wait_prompt(START_S)
        yield machine
        assert complaints(machine.run("dmesg", timeout=RUN_S).stdout) == []


def run(machine: Machine, script: str) -> str:
    """What a script writes; none of its commands may fail."""
    return machine.run(["sh", "-ec", script], check=True, timeout=RUN_S).stdout


def test_root_is_debian_s_and_over_9p(debian: Machine) -> None:
    assert run(debian, "cat /etc/debian_version").startswith("12.")
    assert run(debian, "stat -f -c %T /") == "v9fs\n"
    assert run(debian, "dpkg --audit; dpkg -s git | grep Status") == "Status: install ok installed\n"


def test_git_works_in_it(debian: Machine, root: Path) -> None:
    script = """
        git config --global user.email you@example.org
        git config --global user.name You
        git init -q -b main /root/repository
        cd /root/repository
        cp -r /usr/lib/python3.11/json /usr/lib/python3.11/email .
        mkdir bin; ln -s ../json/tool.py bin/tool; printf '#!/bin/sh\\n' >bin/run; chmod 755 bin/run
        git add .
        git commit -q -m first
        git status --short
        git ls-files -s bin
        echo changed >>json/tool.py; rm email/errors.py; echo new >'odd name'
        git status --short
        git add -A; git commit -q -m second
        git mv json moved; git commit -q -m third
        git log --format=%s; git status --short
        git checkout -q HEAD~2; test -e email/errors.py; git checkout -q main
        git gc -q; git fsck --strict 2>&1; git count-objects
        git clone -q /root/repository /root/clone; diff -r --no-dereference -x .git /root/repository /root/clone
    """
    lines = run(debian, script).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["100755", "120000"]
    assert lines[2:] == [
        " D email/errors.py", " M json/tool.py", '?? "odd name"', "third", "second", "first", "0 objects, 0 kilobytes",
    ]
    assert (root / "root" / "repository" / ".git" / "HEAD").read_text() == "ref: refs/heads/main\n"
    assert (root / "root" / "clone" / "odd name").read_text() == "new\n"


def test_python_works_in_it(debian: Machine, root: Path) -> None:
    script = """
import fcntl, hashlib, mmap, os, subprocess, sys, tempfile, threading
os.makedirs("/root/python/package")
os.chdir("/root/python")
with open("package/__init__.py", "w") as file:
    file.write("def answer(): return 42\\n")
sys.path.insert(0, "")
import package
assert package.answer() == 42 and os.listdir("package/__pycache__")

with open("mapped", "w+b") as file:
    file.truncate(3 * 4096)
    with mmap.mmap(file.fileno(), 0) as view:
        view[4090:4102] = b"twelve bytes"
        view.flush()
assert open("mapped", "rb").read()[4090:4102] == b"twelve bytes"

with open("lock", "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other = "import fcntl; fcntl.lockf(open('lock', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert b"BlockingIOError" in subprocess.run([sys.executable, "-c", other], capture_output=True).stderr
subprocess.run([sys.executable, "-c", other], check=True)

def append(number):
    for turn in range(50):
        with open("log", "a") as file:
            file.write(f"{number} {turn}\\n")
threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert sorted(open("log")) == sorted(f"{number} {turn}\\n" for number in range(4) for turn in range(50))

with tempfile.TemporaryFile(dir=".") as file:
    file.write(b"no name")
    file.seek(0)
    assert file.read() == b"no name" and os.fstat(file.fileno()).st_nlink == 0

fd = os.open(".", os.O_RDONLY)
for number in range(500):
    os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o640, dir_fd=fd))
assert len(os.listdir(fd)) == 504
top = "/usr/share/perl5"
files = sorted(os.path.join(above, name) for above, _, names in os.walk(top) for name in names)
print(hashlib.sha256(b"".join(open(name, "rb").read() for name in files)).hexdigest())
"""
    top = root / "usr" / "share" / "perl5"
    files = sorted(os.path.join(above, name) for above, _, names in os.walk(top) for name in names)
    digest = hashlib.sha256(b"".join(Path(name).read_bytes() for name in files)).hexdigest()
    assert run(debian, f"python3 - <<'END'\n{script}\nEND") == f"{digest}\n"
    assert (root / "root" / "python" / "mapped").read_bytes()[4090:4102] == b"twelve bytes"


def test_gnu_tar_and_cp_keep_everything(debian: Machine, root: Path) -> None:
    """Times to the second: Linux' 9p client cuts those that it sets."""
    script = """
        cp -a /usr/lib/git-core /usr/lib/python3.11 /root/copy
        tar -C /usr/lib --sort=name -cf /root/packed.tar git-core python3.11
        mkdir /root/unpacked; tar -C /root/unpacked -xpf /root/packed.tar
        tar -C /root/unpacked --compare -f /root/packed.tar
    """
    run(debian, f"mkdir /root/copy; {script}")
    for name in ("git-core", "python3.11"):
        expected = describe(root / "usr" / "lib" / name, SECOND_NS)
        assert describe(root / "root" / "copy" / name, SECOND_NS) == expected
        assert describe(root / "root" / "unpacked" / name, SECOND_NS) == expected


def test_gnu_tar_and_cp_keep_holes(debian: Machine, root: Path) -> None:
    script = """
        mkdir /root/holes; cd /root/holes
        truncate -s 8M sparse; printf middle | dd of=sparse bs=1M seek=4 conv=notrunc status=none
        cp --sparse=always sparse copied
        tar -S -cf packed.tar sparse; mkdir out; tar -C out -xf packed.tar
        cmp sparse copied; cmp sparse out/sparse
        rm packed.tar
    """
    run(debian, script)
    for name in ("sparse", "copied", "out/sparse"):
        status = (root / "root" / "holes" / name).stat()
        assert status.st_size == 8 * MIB and 0 < status.st_blocks * 512 <= COPIED_AT_ONCE
