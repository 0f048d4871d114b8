"""Compares counts with a saved baseline, and says what has become of each."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["COUNTS", "RATIOS", "BadBaseline", "Baseline", "Limits", "Row", "Verdict", "compare", "markdown"]


@dataclass(frozen=True)
class Limits:
    """From how many whole percents on more is told, and is a failure."""

    warn: int
    fail: int


COUNTS = Limits(5, 10)                  # a count is good to less than half a percent
RATIOS = Limits(10, 20)                 # another build of the same Python has moved a ratio by 11 %


class Verdict(enum.StrEnum):
    """What is said of a figure."""

    FAIL = "**worse**"
    WARN = "a little worse"
    MISSING = "not measured any more"
    NEW = "not in the baseline"
    BETTER = "better: the baseline wants an update"
    SAME = "same"


class BadBaseline(Exception):
    """A file is no baseline; the message says why, in a line."""


@dataclass(frozen=True)
class Baseline:
    """Figures to compare with; of each, less is better.

    Attributes:
        made_by: what instructions depend on besides our code: versions and builds, by name.
        counts: instructions, for the same `made_by` only.
        ratios: of each to a count of plain Python, for any other.
    """

    made_by: Mapping[str, str]
    counts: Mapping[str, float]
    ratios: Mapping[str, float]

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read it.

        Raises:
            BadBaseline: there is none, or it is damaged.
        """
        try:
            data = json.loads(path.read_text())
            counts, ratios = ({str(key): float(data[kind][key]) for key in data[kind]} for kind in ("counts", "ratios"))
            if not all(value > 0 for value in (*counts.values(), *ratios.values())):
                raise ValueError("a figure that is not positive")
            return cls({str(key): str(value) for key, value in data["made_by"].items()}, counts, ratios)
        except OSError as error:
            raise BadBaseline(f"{path}: {error.strerror}; --update makes a baseline") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadBaseline(f"{path} is no baseline: {error}") from None

    def save(self, path: Path) -> None:
        """Write it, figures rounded to what they are good for.

        Raises:
            BadBaseline: it cannot be written.
        """
        data = {
            "made_by": dict(self.made_by),
            "counts": {key: round(value) for key, value in self.counts.items()},
            "ratios": {key: float(f"{value:.4g}") for key, value in self.ratios.items()},
        }
        try:
            path.write_text(json.dumps(data, indent=2) + "\n")
        except OSError as error:
            raise BadBaseline(f"{path}: {error.strerror}") from None


@dataclass(frozen=True)
class Row:
    """One figure, before and now; None where it was not measured.

    Attributes:
        percent: how much more it is now, in whole percents; None where there is nothing to compare.
    """

    key: str
    before: float | None
    now: float | None
    percent: int | None
    verdict: Verdict


def compare(before: Mapping[str, float], now: Mapping[str, float], limits: Limits) -> list[Row]:
    """Rows for all figures of the two, those of `before` first."""
    return [_row(key, before.get(key), now.get(key), limits) for key in {**before, **now}]


def _row(key: str, before: float | None, now: float | None, limits: Limits) -> Row:
    if before is None or now is None:
        return Row(key, before, now, None, Verdict.NEW if before is None else Verdict.MISSING)
    percent = round(100 * (now / before - 1))
    if percent >= limits.fail:
        verdict = Verdict.FAIL
    elif percent >= limits.warn:
        verdict = Verdict.WARN
    else:
        verdict = Verdict.BETTER if percent <= -limits.warn else Verdict.SAME
    return Row(key, before, now, percent, verdict)


def markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The report: what to look at first, then every row, then the notes."""
    loud = [row for row in rows if row.verdict is not Verdict.SAME]
    failed, warned = (sum(row.verdict is verdict for row in rows) for verdict in (Verdict.FAIL, Verdict.WARN))
    title = f"Of {len(rows)} figures {failed or 'none'} failed, {warned or 'none'} came near it."
    lines = ["# Regression guard", "", title, ""]
    if loud:
        lines += [*_table(sorted(loud, key=lambda row: [*Verdict].index(row.verdict))), ""]
    lines += ["## All figures", "", *_table(rows), ""]
    lines += [line for note in notes for line in (note, "")]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> list[str]:
    lines = ["| figure | baseline | now | | |", "| --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        percent = "" if row.percent is None else f"{row.percent:+d} %"
        lines.append(f"| {row.key} | {_shown(row.before)} | {_shown(row.now)} | {percent} | {row.verdict.value} |")
    return lines


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
