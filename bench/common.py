"""What all benchmarks share: runs in turn, medians, a table for people, and a JSON file for machines."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["OUTPUT", "ROOT", "VARIATION_LIMIT", "Report", "in_turn", "ratio_of_medians", "variation"]

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "bench" / "out"
VARIATION_LIMIT = 0.1           # a coefficient of variation above this is told beside the figure

Plain = float | int | str | bool | None


def in_turn(runs: int, contestants: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Run every contestant once, then all again: A B A B, so that a drifting machine hits all alike.

    Args:
        runs: how often each of them runs.
        contestants: by name, what returns one measurement.

    Returns:
        By name, the measurements in the order made.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(runs):
        for name, run in contestants.items():
            samples[name].append(run())
    return samples


def ratio_of_medians(ours: Sequence[float], rival: Sequence[float]) -> float:
    """How many times the rival's time ours is."""
    return statistics.median(ours) / statistics.median(rival)


def variation(samples: Sequence[float]) -> float:
    """Coefficient of variation: standard deviation over mean; 0 for fewer than two samples."""
    return statistics.stdev(samples) / statistics.fmean(samples) if len(samples) > 1 else 0.0


@dataclass
class Report:
    """Figures of one benchmark.

    Args:
        name: of the file: bench/out/NAME.json.
        title: what was measured, and how, in one line.

    Attributes:
        figures: what the file holds, under plain keys.
    """

    name: str
    title: str
    figures: dict[str, Plain] = field(default_factory=dict)
    _rows: list[tuple[str, str, str]] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)

    def samples(self, key: str, samples: Sequence[float], unit: str = "s", more: str = "") -> None:
        """Add the median of repeated measurements, and say so where they vary much; `more` goes behind that."""
        remark = f"median of {len(samples)}{self._unstable(key, samples)}{more}"
        self.figure(key, statistics.median(samples), unit, remark)

    def versus(self, name: str, times: Mapping[str, Sequence[float]]) -> float | None:
        """Add, in one row, NAME_ours_s, and where there is a rival NAME_qemu_s and NAME_ratio.

        Args:
            name: of the work.
            times: seconds, by side: "ours", and "qemu" if it ran.

        Returns:
            The ratio of the medians, None without a rival.
        """
        remark = f"medians of {len(times['ours'])}"
        shown = []
        for side, samples in times.items():
            key, median = f"{name}_{side}_s", _rounded(statistics.median(samples))
            self.figures[key] = median
            shown.append(f"{side} {median:g} s")
            remark += self._unstable(key, samples)
        ratio = ratio_of_medians(times["ours"], times["qemu"]) if "qemu" in times else None
        if ratio is not None:
            self.figures[f"{name}_ratio"] = _rounded(ratio)
            shown.append(f"ratio {ratio:.3f}")
        self._rows.append((name, ", ".join(shown), remark))
        return ratio

    def _unstable(self, key: str, samples: Sequence[float]) -> str:
        spread = variation(samples)
        if spread <= VARIATION_LIMIT:
            return ""
        self.figures[f"{key}_variation"] = _rounded(spread)
        return f", {key} varies by {spread:.0%}"

    def figure(self, key: str, value: Plain, unit: str = "", remark: str = "") -> None:
        """Add one figure to the table and the file."""
        self.figures[key] = _rounded(value) if isinstance(value, float) else value
        shown = f"{_rounded(value):g}" if isinstance(value, float) else str(value)
        self._rows.append((key, f"{shown} {unit}".strip(), remark))

    def note(self, line: str) -> None:
        """Add a line below the table."""
        self._notes.append(line)

    def finish(self) -> None:
        """Print the table and write the file."""
        print(self.title)
        width = max((len(key) for key, _, _ in self._rows), default=0)
        value_width = max((len(value) for _, value, _ in self._rows), default=0)
        for key, value, remark in self._rows:
            print(f"  {key:<{width}}  {value:>{value_width}}  {remark}".rstrip())
        for line in self._notes:
            print(line)
        OUTPUT.mkdir(parents=True, exist_ok=True)
        path = OUTPUT / f"{self.name}.json"
        path.write_text(json.dumps(self.figures | {"notes": self._notes}, indent=2) + "\n")
        print(f"written to {path.relative_to(ROOT)}", flush=True)


def _rounded(value: float) -> float:
    """Four significant digits."""
    return 0.0 if not value else round(value, 3 - math.floor(math.log10(abs(value))))
