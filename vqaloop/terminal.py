"""What a person at a shell sees: progress on stderr; tables and what it cost on stdout.

Names of files and words of programs are data: no control character of theirs reaches a terminal.
"""

import contextlib
import math
import os
import sys
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from vqaloop.errors import EncoderMissing
from vqaloop.process import check_cancelled
from vqaloop.records import Event, Ladder

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod, OverflowMethod
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from rich.table import Table
    from rich.text import Text


WIDTH = 80
"""Columns a table keeps to, however wide the terminal."""


def printable(text: str) -> str:
    """`text` on one line; control, bidirectional and undecodable characters as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def counted(count: int, thing: str) -> str:
    """ "1 encode", "2 encodes"."""
    return f"{count} {thing}{'s' * (count != 1)}"


def metric_name(name: str) -> str:
    """A metric as people know it."""
    return {"vmaf": "VMAF", "psnr_y": "PSNR-Y"}.get(name, printable(name))


def shown(value: float | None, digits: int = 1) -> str:
    """A number for a table; "-" where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def shown_rate(kbps: float | None) -> str:
    """A rate in kb/s for a table, with a decimal where it is below 100."""
    return shown(kbps, 1 if kbps is not None and kbps < 99.95 else 0)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence["str | Text"]],
    *,
    left: Collection[int] = (),
    padding: int = 1,
    overflow: "OverflowMethod" = "ellipsis",
) -> "Table":
    """A table with a line under its headings and none around it; cells are printable text.

    Columns with an index in `left` are aligned to the left, the others, of numbers, to the right.
    `padding` columns stand between them; `overflow` is what becomes of a cell without room.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, padding), pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        side: JustifyMethod = "left" if index in left else "right"
        drawn.add_column(Text(heading), justify=side, no_wrap=True, overflow=overflow)
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in row))
    return drawn


def ladder_table(ladder: Ladder) -> "Table":
    """The rungs, lowest first, within 80 columns; bitrates in kb/s."""
    knob = printable(ladder.rungs[0].knob[0])[:9] if ladder.rungs else "knob"
    rows = [
        [
            str(number),
            f"{rung.width}x{rung.height}",
            shown_rate(rung.bitrate_kbps),
            shown_rate(rung.peak_kbps),
            f"{rung.knob[1]:g}",
            shown(rung.score),
            shown(rung.score_predicted),
            shown(rung.guard.get("vmaf")),
            shown(rung.guard.get("psnr_y")),
        ]
        for number, rung in enumerate(ladder.rungs, 1)
    ]
    headings = ("#", "size", "kb/s", "peak", knob, "score", "predicted", "VMAF", "PSNR-Y")
    return table(headings, rows)


def cost_line(ladder: Ladder) -> str:
    """What making the ladder took, in one line.

    The encodes are the encoder runs of that call, the pixels theirs; those recalled from the
    cache come on top. Seconds are CPU seconds, the last ones are on the clock.
    """
    cost = ladder.about["cost"]
    recalled = sum(bool(trial.get("cached")) for trial in ladder.about["trials"])
    again = f" ({recalled} more from the cache)" if recalled else ""
    encodes = counted(cost["encodes"], "encode") + again
    frames = f"{cost['encoded_frames']} frames, {_si(cost['encoded_pixels'])}pixel"
    spent = [("encoding", "encode_cpu_s"), ("scoring", "score_s"), ("guard", "guard_s")]
    seconds = [f"{what} {cost[key]:.1f} s CPU" for what, key in spent if cost.get(key) is not None]
    return ", ".join([f"{encodes}: {frames}", *seconds, f"{cost['wall_s']:.1f} s in all"])


def estimate_line(estimate: Mapping[str, Any]) -> str:
    """How far the windows were from the title they stood for."""
    if not estimate["encodes"]:
        return "the windows that stood for the title had promised nothing of these files"
    return (
        f"the whole title took {estimate['bitrate_percent']:+.1f} % of bitrate and scored "
        f"{estimate['score']:+.1f} against what its windows promised (at worst "
        f"{estimate['bitrate_percent_worst']:+.1f} % and {estimate['score_worst']:+.1f}), "
        "mended in these rungs"
    )


def _si(value: float) -> str:
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.4g} T"


def print_ladder(ladder: Ladder) -> None:
    """Table, warnings, what it cost and where it is, on stdout."""
    console = console_for(sys.stdout)
    console.print(ladder_table(ladder), width=min(console.width, WIDTH))
    _say(console, "")
    for warning in ladder.about.get("warnings") or ():
        _say(console, f"warning: {warning}", "yellow")
    if not ladder.trusted:
        _say(console, "not to be trusted: a score missed its prediction", "bold red")
    if ladder.about.get("estimate"):
        _say(console, estimate_line(ladder.about["estimate"]))
    _say(console, cost_line(ladder))
    _say(console, f"in {ladder.folder}")


def survey_encoders() -> list[dict[str, Any]]:
    """Every known encoder as JSON, with its version, or why it does not run here."""
    from vqaloop import process
    from vqaloop.encoder import encoder_version, load_encoders

    binary, found = process.ffmpeg_path(), []
    for spec in load_encoders().values():
        version, why = None, None
        try:
            version = encoder_version(spec, binary)
        except EncoderMissing as error:
            why = str(error)
        knob = {"name": spec.knob.name, "min": spec.knob.min, "max": spec.knob.max}
        found.append(
            {
                "name": spec.name,
                "codec": spec.codec,
                "default": spec.default,
                "available": why is None,
                "version": version,
                "why_not": why,
                "knob": {**knob, "step": spec.knob.step, "search": list(spec.knob.search)},
                "presets": list(spec.presets),
                "default_preset": spec.default_preset,
                "bit_depths": list(spec.bit_depths),
                "quirks": list(spec.quirks),
            }
        )
    return found


def print_encoders(found: Sequence[dict[str, Any]], verbose: bool = False) -> None:
    """What `survey_encoders` found, by codec, on stdout; a star marks a codec's default."""
    console = console_for(sys.stdout)
    for item in sorted(found, key=lambda item: (item["codec"], not item["default"])):
        head = f"{item['codec']:5} {item['name'] + '*' * item['default']:13} "
        state = item["version"] if item["available"] else "not here"
        _say(console, head + state, None if item["available"] else "dim")
        if verbose:
            knob, depths = item["knob"], " and ".join(map(str, item["bit_depths"]))
            details = [
                f"{knob['name']} {knob['min']:g} to {knob['max']:g} by {knob['step']:g}; "
                f"{depths} bit",
                f"presets, slow to fast: {' '.join(item['presets'])} "
                f"(default {item['default_preset']})",
                *item["quirks"],
                *([item["why_not"]] if item["why_not"] else []),
            ]
            for line in details:
                _say(console, f"      {line}")


def console_for(stream: TextIO) -> "Console":
    """A console that colours for a terminal alone, whatever FORCE_COLOR says."""
    from rich.console import Console

    class Candid(Console):
        # rich would end the program with status 1; it calls this while it handles the error
        def on_broken_pipe(self) -> None:
            raise

    live = _is_terminal(stream)
    return Candid(
        file=stream,
        force_terminal=live,
        force_jupyter=False,
        width=None if live else WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _is_terminal(stream: TextIO) -> bool:
    with contextlib.suppress(ValueError):  # a closed stream
        return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return False


def _say(console: "Console", line: str, style: str | None = None) -> None:
    encoding = console.encoding
    text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    console.print(text, style=style, soft_wrap=True)


class Progress:
    """Progress on stderr: a live bar on a terminal, plain lines elsewhere, nothing when quiet.

    A context manager, and the watcher that `build_ladder` calls; safe to call from any thread.
    Trouble with stderr itself (closed, full) never stops the work.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._stream = sys.stderr
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._counted: tuple[str, int, int] | None = None

    def __enter__(self) -> "Progress":
        if not self.quiet and _is_terminal(self._stream):
            self._bar = _make_bar(console_for(self._stream))
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def live(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def __call__(self, event: "Event") -> None:
        """Show an event; on a terminal a failed trial leaves a line that stays.

        Raises CalledOff where the work that it is of was called off.
        """
        check_cancelled()
        if self._bar is None:
            # a count is said when it changes
            now, count = (event.stage, event.done, event.total), ""
            if event.total and now != self._counted:
                count = f" {event.done}/{event.total}{' at most' * event.at_most}"
            self._counted = now
            self.log(f"{event.stage}{count}: {event.message}")
            return
        if event.trial is not None and event.trial.error:
            self.log(event.message)
        with self._lock:
            if self._task is None:
                self._task = self._bar.add_task(event.stage, total=None, message="")
            self._bar.update(
                self._task,
                description=event.stage,
                completed=event.done,
                # without a total the bar pulses
                total=event.total or None,
                message=printable(event.message),
            )

    def log(self, line: str) -> None:
        """One line, above the bar where there is one. Raises CalledOff as above."""
        check_cancelled()
        if self.quiet:
            return
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._bar is not None:
                _say(self._bar.console, line)
                return
            encoding = self._stream.encoding or "utf-8"
            text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
            self._stream.write(text + "\n")
            self._stream.flush()


def _make_bar(console: "Console") -> "Bar":
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    message = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[message]}", markup=False, table_column=message),
        console=console,
        transient=True,
        expand=True,
        redirect_stdout=False,  # stdout is the caller's
    )
