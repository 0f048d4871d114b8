"""Pictures of what the benchmarks wrote: bench/out/*.png, of the files that are there.

    python -m bench.pictures
    python -m bench.pictures --svg docs/pictures        # as text, for the documentation
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.common import OUTPUT, ROOT
from bench.micro.access import SIDES, SIZES
from bench.suite import SUITE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_all"]

WIDTH_INCHES, ROW_INCHES, PANEL_INCHES, FRAME_INCHES = 10.0, 0.28, 3.2, 1.4
DPI = 130
COLOURS = "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"
LIMIT = "#222222"
AS_TEXT = {"svg.fonttype": "none", "svg.hashsalt": "pvemu"}            # words as words; the same file each time
NO_JOB = "empty"                        # what a measurement takes by itself
GROWN = re.compile(r"(boot_ms|restore_ms|fork_ms|hypercall_ns|device_load_ns)_(\w+)_(\d+)")
PLACED = re.compile(r"(\w+)_(read|write)(\d)_(\w+)_ns")

Figures = Mapping[str, Any]


def draw_all(directory: Path = OUTPUT, svg: Path | None = None) -> list[Path]:
    """Draw what can be drawn.

    Args:
        directory: with the benchmarks' files; the pictures are put there, too.
        svg: where to put them as SVG instead.

    Returns:
        The pictures' files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    results = {
        benchmark.name: json.loads(file.read_text())
        for benchmark in SUITE if (file := directory / f"{benchmark.name}.json").is_file()
    }
    micro = results.get("micro", {})
    target = svg or directory
    target.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw, figures in (
        ("rival", _ratios, _of_rival(results)), ("memory", _memory, micro), ("exits", _exits, micro),
        ("growth", _growth, results.get("growth", {})),
    ):  # fmt: skip
        figure = Figure(dpi=DPI, layout="constrained")
        if draw(figure, figures):
            drawn.append(target / f"{name}.{'svg' if svg else 'png'}")
            with rc_context(AS_TEXT):
                figure.savefig(drawn[-1], metadata={"Date": None} if svg else None)
    return drawn


def _of_rival(results: Mapping[str, Figures]) -> Figures:
    """All ratios to QEMU's TCG."""
    return {
        f"{name}: {key.removesuffix('_ratio')}": value
        for name, figures in results.items() for key, value in figures.items()
        if key.endswith("_ratio") and f"{key.removesuffix('_ratio')}_qemu_s" in figures and NO_JOB not in key
    }  # fmt: skip


def _ratios(figure: Figure, ratios: Figures) -> bool:
    """Bars, the shorter the better; 1 is the rival."""
    return bool(ratios) and _bars(figure, ratios, "time over QEMU TCG's", rival=1.0)


def _exits(figure: Figure, micro: Figures) -> bool:
    """What each way out of the guest takes."""
    found = {
        key[len("exit_") : -len("_ns")].replace("_", " "): value
        for key, value in micro.items() if key.startswith("exit_") and key.endswith("_ns")
    }  # fmt: skip
    return bool(found) and _bars(figure, found, "ns from the guest's instruction to the one behind it")


def _bars(figure: Figure, values: Figures, label: str, rival: float | None = None) -> bool:
    figure.set_size_inches(WIDTH_INCHES, len(values) * ROW_INCHES + FRAME_INCHES)
    axes = figure.add_subplot()
    bars = axes.barh([*values], [*values.values()], color=COLOURS[0])
    axes.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values.values()], padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.margins(x=0.12)
    if rival is not None:
        axes.axvline(rival, color=LIMIT, linewidth=1)
    return True


def _memory(figure: Figure, micro: Figures) -> bool:
    """Accesses by size, a panel for each side, a group for each size."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for key, value in micro.items():
        if (match := PLACED.fullmatch(key)) and match[1] in SIDES:
            kind = f"{match[2]} {match[4].replace('_', ' ')}"
            found.setdefault(match[1], {}).setdefault(kind, {})[int(match[3])] = value
    figure.set_size_inches(WIDTH_INCHES, PANEL_INCHES * max(len(found), 1))
    for number, (side, kinds) in enumerate(found.items(), 1):
        axes = figure.add_subplot(len(found), 1, number)
        _groups(axes, kinds)
        axes.set_title(side)
        if number == 1:
            axes.legend(ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.12))
    return bool(found)


def _groups(axes: Axes, kinds: Mapping[str, Mapping[int, float]]) -> None:
    """A group of bars for each size, on a scale of powers of ten, since accesses across pages tower over the rest."""
    for index, (kind, by_size) in enumerate(kinds.items()):
        places = [group + index / (len(kinds) + 1) for group in range(len(SIZES))]
        axes.bar(places, [by_size.get(size, 0.0) for size in SIZES], 1 / (len(kinds) + 2), label=kind)
    axes.set_xticks([group + 0.4 for group in range(len(SIZES))], [str(size) for size in SIZES])
    axes.set_xlabel("bytes")
    axes.set_yscale("log")
    axes.set_ylim(bottom=min(value for by_size in kinds.values() for value in by_size.values()) / 3)
    axes.set_ylabel("ns")


def _growth(figure: Figure, growth: Figures) -> bool:
    """Lines, a panel for each thing that grows; a line's first point is 1."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for key, value in growth.items():
        if match := GROWN.fullmatch(key):
            found.setdefault(match[2], {}).setdefault(match[1], []).append((int(match[3]), value))
    figure.set_size_inches(WIDTH_INCHES, PANEL_INCHES * max(-(-len(found) // 2), 1))
    for number, (grows, lines) in enumerate(found.items(), 1):
        _panel(figure.add_subplot(-(-len(found) // 2), 2, number), grows, lines)
    return bool(found)


def _panel(axes: Axes, grows: str, lines: Mapping[str, list[tuple[int, float]]]) -> None:
    for colour, (what, points) in zip(COLOURS, lines.items(), strict=False):
        name, _, unit = what.rpartition("_")
        sizes, values = zip(*sorted(points), strict=True)
        label = f"{name.replace('_', ' ')}, {round(values[0], 1):,g} {unit}"
        axes.plot(sizes, [value / values[0] for value in values], marker="o", color=colour, label=label)
    axes.set_xlabel(grows.replace("_mib", ", MiB"))
    axes.set_ylabel("times the first")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def main(arguments: Sequence[str] = ()) -> None:
    """Draw, and say what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svg", type=Path, metavar="DIRECTORY", help="SVG files, into this directory")
    svg = parser.parse_args(arguments).svg
    try:
        drawn = draw_all(svg=svg)
    except ImportError:
        print("pictures need matplotlib: pip install 'pvemu[plot]'")
        return
    print(f"drawn: {', '.join(os.path.relpath(path, ROOT) for path in drawn) or 'nothing; there are no figures yet'}")


if __name__ == "__main__":
    main(sys.argv[1:])
