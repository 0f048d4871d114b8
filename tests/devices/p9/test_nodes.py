"""Which descriptors and nodes are kept, and for how long."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from devices.p9 import messages as m
from devices.p9 import nodes
from devices.p9.export import Limits
from devices.p9.nodes import Node, Tree
from tests.devices.p9.client import ROOT, Guest


def find(tree: Tree, *names: bytes) -> Node:
    """The node of a path, kept."""
    node = tree.keep(tree.root)
    for name in names:
        below = tree.child(node, name, tree.look(node, name))
        tree.drop(node)
        node = below
    return node


@pytest.fixture
def deep(shared: Path) -> tuple[Path, list[bytes]]:
    """A path of a hundred directories."""
    names = [b"d%d" % number for number in range(100)]
    path = shared.joinpath(*map(os.fsdecode, names))
    path.mkdir(parents=True)
    return path, names


def test_a_node_goes_with_its_last_user_and_so_do_parents_kept_only_for_it(
    shared: Path, deep: tuple[Path, list[bytes]]
) -> None:
    tree = Tree(shared, 8)
    one, two = find(tree, *deep[1]), find(tree, *deep[1])
    assert one is two and tree.count == 101
    tree.drop(one)
    assert tree.count == 101
    tree.drop(two)
    assert tree.count == 1 and not tree.root.children


def test_a_deep_path_is_walked_again_with_few_descriptors(shared: Path, deep: tuple[Path, list[bytes]]) -> None:
    tree = Tree(shared, 8)
    node = find(tree, *deep[1])
    tree.trim(0)
    assert tree.open_handles == 1
    assert os.fstat(tree.handle(node)).st_ino == deep[0].stat().st_ino
    assert tree.open_handles <= 4
    tree.close()


def test_a_path_deeper_than_is_walked_again_is_refused(
    shared: Path, deep: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(shared, 8)
    node = find(tree, *deep[1])
    tree.trim(0)
    monkeypatch.setattr(nodes, "DEEPEST", 50)
    with pytest.raises(OSError) as caught:
        tree.handle(node)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_directories_moved_by_the_host_and_the_guest_make_no_circle(shared: Path) -> None:
    (shared / "a" / "b").mkdir(parents=True)
    tree = Tree(shared, 8)
    outer, inner = find(tree, b"a"), find(tree, b"a", b"b")
    tree.handle(inner)
    os.rename(shared / "a" / "b", shared / "b")     # the host moves the inner one out, unnoticed,
    os.rename(shared / "a", shared / "b" / "a")     # and the guest the outer one into it
    tree.moved(outer, inner, b"a")
    assert outer.path() is None
    tree.drop(outer)
    tree.drop(inner)
    assert tree.count == 1


def test_descriptors_used_last_are_kept(shared: Path) -> None:
    for name in "abcd":
        (shared / name).mkdir()
    tree = Tree(shared, 2)
    found = [find(tree, name) for name in (b"a", b"b", b"c", b"d")]
    for node in found[0], found[1], found[2], found[0]:
        tree.handle(node)
    tree.trim()
    assert [node.fd != nodes.NO_DESCRIPTOR for node in found] == [True, False, True, False]


def test_there_are_only_so_many_nodes(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(shared)
    monkeypatch.setattr(nodes, "MOST_NODES", 5)
    for number in range(5):
        (shared / str(number)).mkdir()
    fids = [guest.walk(b"%d" % number) for number in range(4)]
    with pytest.raises(OSError) as caught:
        guest.walk(b"4")
    assert caught.value.errno == errno.ENFILE
    guest.clunk(fids[0])
    guest.walk(b"4")


def test_descriptors_of_removed_files_are_bounded(shared: Path) -> None:
    guest = Guest(shared, limits=Limits(handles=4, opened=100))
    before = len(os.listdir("/proc/self/fd"))
    fids = []
    for number in range(50):
        guest.clunk(guest.create(b"%d" % number))
        fids.append(guest.walk(b"%d" % number))
        guest.send(m.Tunlinkat(ROOT, b"%d" % number, 0))
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    assert guest.stat(fids[0]).nlink == 0
    with pytest.raises(FileNotFoundError):
        guest.stat(fids[20])
    for fid in fids:
        guest.clunk(fid)
    assert len(os.listdir("/proc/self/fd")) <= before
