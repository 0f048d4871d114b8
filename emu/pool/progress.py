"""A progress bar for jobs; on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["job_progress"]


@contextmanager
def job_progress(total: int | None, wanted: bool = True) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error while the body of a `with` calls what it is given, once for each job that is over.

    Args:
        total: how many jobs there are, None if that is not known.
        wanted: False for none at all.
    """
    if not (wanted and sys.stderr.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("jobs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("jobs", total=total)
        yield lambda: bar.advance(task)
