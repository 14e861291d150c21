"""Checks of options that every long job takes: workers, seed, device, metric, output folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.core.folders import check_writable, is_study_file
from vqaloop.core.option_fields import fault_of
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.execution.executor import Executor, executor_of

if TYPE_CHECKING:
    from vqaloop.quality.metric import Metric

DEVICES = ("auto", "cpu", "cuda")
LONGEST_ENCODE_S = 1e7
"""Seconds, some months: more than a timer of the system takes is beyond it."""


def check_folder(folder: Path, source: Path, what: str = "ladder") -> None:
    """Raises InputError unless a ladder of `source`, or a tuning, can be written there.

    Without harm to anything: an earlier one is replaced, other files are not mixed with.
    """
    remedy = "choose another folder with -o"
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{quoted(folder)} is a file; give the output another name with -o")
        place = next(place for place in (folder, *folder.parents) if place.exists())
        if not place.is_dir():
            raise InputError(f"{quoted(place)} is a file, not a folder; {remedy}")
        check_writable(place, remedy)
        if not folder.is_dir():
            return
        # a study, or its mark, is of a run that was ended while it delivered
        ours = (folder / f"{what}.json").exists() or any(map(is_study_file, folder.iterdir()))
        if any(folder.iterdir()) and not ours:
            raise InputError(f"{quoted(folder)} holds other files and no {what}; {remedy}")
        if source.resolve().parent == folder.resolve():
            raise InputError(
                f"{quoted(source)} lies in the output folder, where it could be replaced; {remedy}"
            )
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot use the folder {quoted(folder)}: {why}; {remedy}") from error


@contextlib.contextmanager
def folder_undone(folder: Path) -> Iterator[bool]:
    """Folders made inside for this one go on a failure, where nothing is left in them.

    Yields whether the folder is new.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield folder in missing
    except BaseException:
        with contextlib.suppress(OSError):
            for place in missing:
                place.rmdir()
        raise


def check_run(
    workers: int | Executor | None, seed: int, device: str, timeout_s: float | None = None
) -> None:
    """Raises InputError unless these are words and numbers to work with."""
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    executor_of(workers)
    if seed < 0:
        raise InputError(f"the seed must not be negative; it is {seed}")
    if timeout_s is not None and not 0 < timeout_s <= LONGEST_ENCODE_S:
        with fault_of("timeout_s"):
            raise InputError(
                f"the time limit must lie above 0 and up to {LONGEST_ENCODE_S:.0f} s, "
                f"not {timeout_s:g}"
            )


def check_metric(
    metric: "Metric",
    weights: str | os.PathLike[str] | None,
    anchored: bool = True,
    canvas: tuple[int, int] | None = None,
) -> None:
    """Raises InputError for a device that is not there, and for weights that do not load.

    `weights`: those, or the prompt, that were named. `anchored`: or that cannot judge against a
    source; nor one of `canvas`, its width and height.

    A student loads when it first scores; what a user named is better refused before any encode.
    """
    # here, since it brings decoders, which training does without
    from vqaloop.quality.student_metric import StudentMetric

    if not isinstance(metric, StudentMetric):
        if weights is not None:
            raise InputError(f"{metric.name} takes no weights; leave out --weights or --metric")
        return
    _ = metric.device
    if weights is not None:
        metric.check(anchored, canvas)
