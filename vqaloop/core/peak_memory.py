"""Peak memory of a program by itself.

Linux counts the memory that a process had before it became another program towards the peak of
that program, so one started from here seems to need at least what we need ourselves: hundreds of
megabytes once a scorer is loaded. A small interpreter in between starts and measures it instead.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vqaloop.core import process
from vqaloop.errors import ToolError

_STARTER = """
import json, os, sys, time
report, *argv = sys.argv[1:]
start = time.monotonic()
try:
    pid = os.posix_spawn(argv[0], argv, os.environ)
except OSError as error:
    found = {"error": error.strerror}
else:
    _, status, usage = os.wait4(pid, 0)
    found = {
        "returncode": os.waitstatus_to_exitcode(status),
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": time.monotonic() - start,
        "peak_bytes": usage.ru_maxrss * 1024,
    }
with open(report, "w") as file:
    json.dump(found, file)
"""


def run_measured(argv: Sequence[str], *, timeout_s: float, folder: Path) -> process.Finished:
    """Run a program to its end or its time limit, and measure it without this process's memory.

    Args:
        argv: The program, by its path, and its arguments; its stdout is thrown away.
        timeout_s: Wall seconds that it may take.
        folder: Takes a small file.

    Returns:
        CPU seconds, wall seconds and peak memory of the program and of what it waited for; peaks
        below some 10 MB cannot be distinguished.

    Raises:
        ToolError: The program cannot be started.
    """
    report = folder / "measured.json"
    starter = [sys.executable, "-I", "-S", "-c", _STARTER, os.fspath(report)]
    # not again: whoever measures knows what a program that hung means
    done = process.run(
        [*starter, *argv], timeout_s=timeout_s, again=False, stdout=subprocess.DEVNULL
    )
    if done.timed_out:
        return done
    try:
        found = json.loads(report.read_text("utf-8"))
    except (OSError, ValueError):
        # a program that kills its process group takes the one in between with it
        return replace(done, returncode=done.returncode or 1)
    if "error" in found:
        raise ToolError(f"could not start {argv[0]}: {found['error']}")
    return replace(done, **found)
