"""Exit statistics as a picture: where the time went, and how long the calls of each handler took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emu.errors import EmuError
from emu.stats import ExitRow, ExitStats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = ["SUFFIXES", "check_picture", "draw"]

SUFFIXES = ".png", ".svg"
MOST_ROWS = 14                          # of one part of the picture, the last of them for all others together
WIDTH_INCHES, ROW_INCHES, FRAME_INCHES, TITLE_INCHES = 10.0, 0.26, 2.1, 0.5
DPI = 150
WIDEST_LINE = 100                       # characters of a title
NARROWEST_LABEL = 0.07                  # share of the whole from which on a part of the split has its name in it
BAR, MARK = "#4477aa", "#222222"
SPLIT_COLOURS = "#dddddd", "#4477aa", "#99bbdd", "#f4f4f4", "#aaaaaa"       # told apart without colours, too


def check_picture(path: Path) -> None:
    """See that a picture of this name can be drawn.

    Raises:
        EmuError: the name ends in none of SUFFIXES, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise EmuError(f"{path}: a picture's name ends in {' or '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise EmuError("a picture needs matplotlib: pip install 'pvemu[plot]'") from None


def draw(path: Path, title: str, parts: Sequence[tuple[str, ExitStats]]) -> None:
    """Draw statistics with times, one part below the other.

    Args:
        path: the file; its name's end says the format.
        title: what was measured.
        parts: a name for each of the statistics.

    Raises:
        EmuError: as `check_picture`.
        OSError: the file cannot be written.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    shown = [_largest(stats) for _, stats in parts]
    heights = [len(rows) * ROW_INCHES + FRAME_INCHES for rows in shown]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + TITLE_INCHES), dpi=DPI, layout="constrained")
    figure.suptitle(_one_line(title), parse_math=False)
    pieces = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for piece, (name, stats), rows in zip(pieces, parts, shown, strict=True):
        _draw_part(piece, name, stats, rows)
    figure.savefig(path)


def _one_line(text: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return text if len(text) <= WIDEST_LINE else f"{text[:WIDEST_LINE]}…"


def _largest(stats: ExitStats) -> list[tuple[str, ExitRow]]:
    """The rows with the most time, named, and one for all others together."""
    rows = [row for row in stats.rows() if row.has_times]
    largest = rows if len(rows) <= MOST_ROWS else rows[: MOST_ROWS - 1]
    named = [(f"{row.kind}  {row.handler}", row) for row in largest]
    if others := rows[len(largest) :]:
        histogram = tuple(map(sum, zip(*(row.histogram for row in others), strict=True)))
        count, total_ns = sum(row.count for row in others), sum(row.total_ns for row in others)
        together = ExitRow(others[0].kind, "", count, total_ns, max(row.longest_ns for row in others), histogram)
        named.append((f"{len(others)} others", together))
    return named


def _draw_part(piece: SubFigure, name: str, stats: ExitStats, rows: list[tuple[str, ExitRow]]) -> None:
    piece.suptitle(f"{_one_line(name)}: {stats.driven_ns / 1e6:,.1f} ms", fontsize="medium", parse_math=False)
    grid = piece.add_gridspec(2, 2, height_ratios=(1, max(len(rows), 2)), width_ratios=(3, 2))
    _draw_split(piece.add_subplot(grid[0, :]), stats)
    totals = piece.add_subplot(grid[1, 0])
    _draw_totals(totals, rows)
    _draw_times(piece.add_subplot(grid[1, 1], sharey=totals), [row for _, row in rows])


def _draw_split(axes: Axes, stats: ExitStats) -> None:
    """One bar for all of the time, with what it was spent on."""
    whole = sum(ns for _, ns in stats.split()) or 1
    left = 0.0
    for (part, ns), colour in zip(stats.split(), SPLIT_COLOURS, strict=True):
        share = ns / whole
        axes.barh(0, share, left=left, color=colour, edgecolor=MARK, linewidth=0.5, label=f"{part} {share:.1%}")
        if share >= NARROWEST_LABEL:
            dark = colour == BAR
            axes.text(left + share / 2, 0, part, ha="center", va="center", color="white" if dark else MARK)
        left += share
    axes.set_xlim(0, 1)
    axes.axis("off")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(SPLIT_COLOURS), fontsize="small", frameon=False)


def _draw_totals(axes: Axes, rows: list[tuple[str, ExitRow]]) -> None:
    """A bar for each handler: its time, with the number of calls at its end."""
    bars = axes.barh(range(len(rows)), [row.total_ns / 1e6 for _, row in rows], color=BAR)
    axes.bar_label(bars, [f"{row.count:,} ×" for _, row in rows], padding=3, fontsize="small")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize="small", parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("ms in all, and calls")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_times(axes: Axes, rows: list[ExitRow]) -> None:
    """For each handler a line from the median of its calls' times to the 99th percentile."""
    places = range(len(rows))
    middle, late = ([row.quantile_ns(share) / 1e3 for row in rows] for share in (0.5, 0.99))
    axes.hlines(places, middle, late, color=MARK, linewidth=1)
    axes.plot(middle, places, "o", color=MARK, markersize=5, label="p50")
    axes.plot(late, places, "|", color=MARK, markersize=9, markeredgewidth=2, label="p99")
    if rows:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("µs for one call")
    axes.grid(axis="x", color="#dddddd")
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small", frameon=False, borderaxespad=0)
