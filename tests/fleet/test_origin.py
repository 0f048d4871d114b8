"""Where machines come from: templates that are forked, and guests that boot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from emu.errors import EmuError
from emu.fittings import VsockNetwork
from emu.fleet import origin as module
from emu.fleet.origin import Origin, Templates

MIB = 1 << 20


@dataclass
class Template:
    """Stands for a machine that was spawned.

    Attributes:
        origin: what from.
        clones: the networks of those that were forked from it; a string is what stands for them.
    """

    origin: tuple[Any, dict[str, Any]]
    clones: list[VsockNetwork] = field(default_factory=list)
    alive: bool = True
    fails: bool = False

    def wait_ready(self, _timeout: float) -> None:
        if self.fails:
            raise EmuError("does not come up")

    def run(self, command: list[str], timeout: float) -> None:
        assert not self.clones

    def fork(self, vsock: VsockNetwork) -> str:
        self.clones.append(vsock)
        return f"clone {vsock.cid}"

    def kill(self) -> None:
        self.alive = False

    def close(self) -> None:
        self.alive = False


class Spawned:
    """Stands for `emu.spawn`; keeps what it made."""

    def __init__(self) -> None:
        self.made: list[Template] = []
        self.failing = False

    def __call__(self, snapshot: Path | None, **options: Any) -> Template:
        self.made.append(Template((snapshot, options), fails=self.failing))
        return self.made[-1]


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spawned]:
    spawned = Spawned()
    monkeypatch.setattr(module, "spawn", spawned)
    ready = lambda memory, _phase, _say, tag: Path(f"/ready-{memory // MIB}-{tag}")     # noqa: E731
    monkeypatch.setattr(module, "ready_snapshot", ready)
    monkeypatch.setattr(module, "_has_share", lambda path: "shared" in path.name)
    yield spawned
    assert all(not template.alive for template in spawned.made if template.clones)


@pytest.fixture
def templates(spawned: Spawned) -> Iterator[Templates]:
    templates = Templates(Path("/host"), lambda _line: None)
    yield templates
    templates.close()


@pytest.fixture
def network(tmp_path: Path) -> Callable[[int], VsockNetwork]:
    """A place by its address."""
    return lambda cid: VsockNetwork(str(tmp_path), cid)


Network = Callable[[int], VsockNetwork]


def test_machines_without_options_are_clones_of_one_ready_guest(
    templates: Templates, spawned: Spawned, network: Network
) -> None:
    assert [templates.make(Origin(), network(cid)) for cid in (3, 4)] == ["clone 3", "clone 4"]
    (template,) = spawned.made
    assert template.origin == (Path("/ready-128-shared"), {"shares": {"shared": Path("/host")}})
    assert template.clones == [network(3), network(4)]


def test_another_memory_or_other_hypercalls_are_another_template(
    templates: Templates, spawned: Spawned, network: Network
) -> None:
    for origin in Origin(), Origin(memory=256 * MIB), Origin(options={"hypercalls": ["a.py"]}), Origin():
        templates.prepare(origin)
    assert [template.origin[0].name for template in spawned.made] == [
        "ready-128-shared", "ready-256-shared", "ready-128-shared",
    ]  # fmt: skip
    assert spawned.made[2].origin[1] == {"hypercalls": ["a.py"], "shares": {"shared": Path("/host")}}


def test_a_snapshot_of_the_user_s_keeps_its_shares(templates: Templates, spawned: Spawned, network: Network) -> None:
    templates.make(Origin(Path("/shared.snap"), options={"shares": {"data": "/data"}}), network(3))
    templates.make(Origin(Path("/plain.snap")), network(4))
    assert [template.origin for template in spawned.made] == [
        (Path("/shared.snap"), {"shares": {"data": "/data", "shared": Path("/host")}}), (Path("/plain.snap"), {}),
    ]  # fmt: skip


def test_options_of_a_boot_boot_a_guest_of_its_own(templates: Templates, spawned: Spawned, network: Network) -> None:
    origin = Origin(memory=64 * MIB, options={"kernel": "cloud", "shares": {"data": "/data"}})
    assert origin.boots
    machines = [templates.make(origin, network(cid)) for cid in (3, 4)]
    assert machines == spawned.made and not any(machine.clones for machine in spawned.made)
    assert spawned.made[0].origin == (None, {
        "kernel": "cloud", "memory": 64 * MIB, "vsock": network(3),
        "shares": {"data": "/data", "shared": Path("/host")},
    })  # fmt: skip


def test_a_template_that_died_is_made_again(templates: Templates, spawned: Spawned, network: Network) -> None:
    templates.make(Origin(), network(3))
    spawned.made[0].kill()
    assert templates.make(Origin(), network(3)) == "clone 3"
    assert len(spawned.made) == 2


def test_a_template_that_does_not_come_up_is_ended(templates: Templates, spawned: Spawned, network: Network) -> None:
    spawned.failing = True
    with pytest.raises(EmuError, match="does not come up"):
        templates.make(Origin(), network(3))
    assert [template.alive for template in spawned.made] == [False]
    spawned.failing = False
    templates.make(Origin(), network(3))


def test_threads_share_a_template(templates: Templates, spawned: Spawned, network: Network) -> None:
    threads = [threading.Thread(target=templates.make, args=(Origin(), network(cid))) for cid in range(3, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (template,) = spawned.made
    assert sorted(one.cid for one in template.clones) == list(range(3, 11))


def test_nothing_is_made_after_the_end(templates: Templates, network: Network) -> None:
    templates.close()
    with pytest.raises(EmuError, match="the fleet is closed"):
        templates.make(Origin(), network(3))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"options": {"vsock": True}}, "of the fleet's own"),
    ({"snapshot": Path("/x"), "memory": MIB}, "has the memory that it has"),
    ({"snapshot": Path("/x"), "options": {"shares": {}, "kernel": "cloud"}}, "restored with another kernel"),
])  # fmt: skip
def test_what_does_not_go_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EmuError, match=message):
        Origin(**arguments)
