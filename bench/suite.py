"""Which benchmarks there are, what of each stands in the one table, and what it has to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SUITE", "Benchmark", "Figure", "table"]

JOBS = "shell_loop", "cat_200", "sha256", "gzip_twice", "awk_floats", "syscalls", "sort"
GROWN = "memory_mib", "exports", "disks", "hypercalls"


@dataclass(frozen=True)
class Figure:
    """A key figure of a benchmark.

    Attributes:
        key: in its file.
        unit: of the value.
        most: what it should not exceed, if there is a target.
    """

    key: str
    unit: str = ""
    most: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """One of the suite.

    Attributes:
        name: of its module and of its file: bench.NAME, bench/out/NAME.json.
        figures: what the table has of it.
        quick: arguments for a look; None: the shortest run is too long for that.
        needs: a program that has to be installed.
    """

    name: str
    figures: tuple[Figure, ...]
    quick: tuple[str, ...] | None = None
    needs: str | None = None


SUITE = (
    Benchmark(
        "boot",
        (
            Figure("generic_ours_s", "s"), Figure("generic_ratio", most=0.35),
            Figure("cloud_ours_s", "s"), Figure("cloud_ratio", most=0.8),
            Figure("as_shipped_ratio"), Figure("busy_thread_ratio"),
        ),
    ),
    Benchmark("boots", (Figure("failures", most=0), Figure("generic_s", "s"), Figure("cloud_s", "s"))),
    Benchmark(
        "guest",
        (
            Figure("geomean_ratio", most=1.0),
            *(Figure(f"{job}_ratio", most=1.0 if job == "syscalls" else 1.3) for job in JOBS),
            Figure("alpine_geomean_ratio"), Figure("idle_cpu_percent", "%"),
        ),
    ),
    Benchmark(
        "ninep",
        (
            Figure("cat_ratio", most=0.8), Figure("find_ratio"), Figure("seqread_ratio", most=0.8),
            Figure("seqwrite_ratio"), Figure("host_read_us", "µs"),
        ),
    ),
    Benchmark(
        "exec",
        (Figure("exec_wall_ms", "ms", 150), Figure("exec_ratio"), Figure("imports_ms", "ms")),
        ("--runs", "3"),
    ),
    Benchmark(
        "fork",
        (
            Figure("fork_p50_ms", "ms", 1.5), Figure("restored_fork_p50_ms", "ms"), Figure("command_p50_ms", "ms"),
            Figure("clones_total_ms", "ms"), Figure("clones_private_kib", "KiB"),
        ),
        ("--forks", "20", "--clones", "10"),
    ),
    Benchmark(
        "pool",
        (Figure("true_pool2_per_s", "/s"), Figure("true_against_exec", "times"), Figure("creation_percent", "%")),
    ),
    Benchmark(
        "fleet",
        (Figure("start_one_s", "s"), Figure("start_all_s", "s"), Figure("wait_all_compute_s", "s")),
        ("--runs", "1", "--machines", "3"),
    ),
    Benchmark(
        "serial",
        (
            Figure("identical"), Figure("guest_full_ns", "ns"), Figure("guest_bypass_ns", "ns"),
            Figure("bypass_ratio"), Figure("guest_hvc_ns", "ns"),
        ),
        ("--rounds", "3"),
    ),
    Benchmark(
        "hypercall",
        (Figure("empty_us", "µs"), Figure("console_byte_us", "µs"), Figure("pv_read_ratio"), Figure("clock_ratio")),
    ),
    Benchmark(
        "syscalls",
        (Figure("other_on_ns", "ns"), Figure("empty_host_ns", "ns"), Figure("getrandom_64k_host_ns", "ns")),
        ("--rounds", "2", "--boots", "1"),
    ),
    Benchmark(
        "micro",
        (
            Figure("read8_over_read4_aligned", most=1.05), Figure("read8_over_read4_unaligned", most=1.05),
            Figure("host_read8_aligned_ns", "ns"), Figure("handler_read8_aligned_ns", "ns"),
            Figure("guest_read8_aligned_ns", "ns"), Figure("guest_write8_aligned_ns", "ns"),
            *(
                Figure(f"exit_{name}_ns", "ns")
                for name in ("exit", "mmio_read", "hypercall", "hlt", "interrupt", "syscall", "cpuid")
            ),
        ),
        ("--quick",),
    ),
    Benchmark(
        "growth",
        (
            *(Figure(f"{what}_by_{grows}") for what in ("hypercall", "restore", "fork") for grows in GROWN),
            Figure("fork_by_clones"),
        ),
        ("--rounds", "5"),
    ),
    Benchmark("guard", (Figure("failed", most=0), Figure("worst_percent", "%")), (), "valgrind"),
)  # fmt: skip
"""All of them, in the order in which they run."""


def table(figures: Mapping[str, Mapping[str, object] | None]) -> list[str]:
    """The one table, as lines of Markdown.

    Args:
        figures: of each benchmark that ran, by its name; None: it has failed.
    """
    rows = [("benchmark", "figure", "value", "target", "")]
    for benchmark in SUITE:
        if benchmark.name not in figures:
            continue
        found = figures[benchmark.name]
        if found is None:
            rows.append((benchmark.name, "", "", "", "FAILED"))
            continue
        rows += [(benchmark.name, *_cells(figure, found)) for figure in benchmark.figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]
    return [lines[0], f"| {' | '.join('-' * max(width, 3) for width in widths)} |", *lines[1:]]


def _cells(figure: Figure, found: Mapping[str, object]) -> tuple[str, str, str, str]:
    """Name, value, target, and what is to be said of it."""
    value = found.get(figure.key)
    target = "" if figure.most is None else f"≤ {figure.most:g}"
    if value is None:                   # no rival, or nothing to compare with
        return figure.key, "", target, "not measured"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    shown = f"{value:,g} {figure.unit}".rstrip() if is_number else str(value)
    remarks = []
    if figure.most is not None and isinstance(value, int | float):
        remarks.append("reached" if value <= figure.most else "NOT REACHED")
    if spread := _variation(figure.key, found):
        remarks.append(f"varies by {spread:.0%}")
    return figure.key, shown, target, ", ".join(remarks)


def _variation(key: str, found: Mapping[str, object]) -> float:
    """The largest coefficient of variation, above the limit, of what a figure is made of."""
    work = key.removesuffix("_ratio")
    keys = [key] if work == key else [f"{work}_ours_s", f"{work}_qemu_s"]
    spreads = [found.get(f"{each}_variation") for each in keys]
    return max((each for each in spreads if isinstance(each, int | float)), default=0.0)
