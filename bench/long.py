"""What a ladder of a long title takes: time, memory, disk and passes of each stage, by length.

    python -m bench.long --hours 2 --out DIR [--clips FOLDER] [--size 1920x1080] [--codec h264]
                         [--options OPTIONS]
    python -m bench.long --minutes 3,6,12 --rungs 2,4,8 --out DIR

The clips of FOLDER ($VQALOOP_CLIPS) are joined at the size and encoded once by x264 at its fastest
preset, 25 fps; that loop is repeated to each length without another encode. Each ladder is a
`vqaloop ladder` of its own, at the encoder's fastest preset, with an empty cache and a folder for
temporary files of its own; the process and its programs are looked at several times a second.
Stages are those of `--progress json`, the excerpt's in two: `windows`, where they are chosen, and
`cut`, where they are written. CPU seconds are of the process and all its programs. "Passes" are
the bytes that programs which name the title have read, over its size: how often it is decoded, and
a little more, since MP4 is read again as its index goes to its front.
Memory is the sum of what the process and its programs hold; pages that they share count in each.

DIR/long.csv gets a row a ladder as soon as it is known; the same command goes on. DIR/long.png is
drawn of all rows.
"""

import argparse
import csv
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pandas as pd

from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.registry import default_encoder
from vqaloop.report.plotting import COLOURS, as_png, style

STAGES = ("probe", "windows", "cut", "search", "verify", "guard", "write")
FPS = 25
EVERY_S = 0.2
"""Seconds between two looks at the processes."""
MOST_S = 86_400.0
"""Seconds that one ladder may take."""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def clips_of(folder: Path) -> list[Path]:
    """The clips of a folder, by name."""
    found = sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".mkv", ".y4m"))
    if not found:
        raise SystemExit(f"{folder} has no clips (mp4, mkv or y4m); name another by --clips")
    return found


def joined(parts: Sequence[Path], size: str, out: Path, crf: int = 26) -> Path:
    """Clips one after another, every frame of each, by x264 at its fastest preset."""
    width, height = size.split("x")
    fit = f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=bicubic"
    fit += f",crop={width}:{height},setsar=1,setpts=N/{FPS}/TB,fps={FPS},format=yuv420p"
    graph = ";".join(f"[{i}:V]{fit}[v{i}]" for i in range(len(parts)))
    graph += ";" + "".join(f"[v{i}]" for i in range(len(parts))) + f"concat=n={len(parts)}"
    words = [word for part in parts for word in ("-threads", "1", "-i", file_url(part))]
    words += ["-filter_complex", graph, "-c:v", "libx264", "-preset", "ultrafast"]
    return _made(out, [*words, "-crf", str(crf), "-g", str(2 * FPS)])


def repeated(loop: Path, minutes: float, out: Path) -> Path:
    """A loop as often as it takes, nothing encoded."""
    words = ["-stream_loop", "-1", "-i", file_url(loop), "-map", "0:V:0", "-c", "copy"]
    return _made(out, [*words, "-frames:v", str(round(60 * FPS * minutes))])


def _made(out: Path, words: list[str]) -> Path:
    if not out.exists():
        part = out.with_suffix(".part.mkv")
        argv = [ffmpeg_path(), "-nostdin", "-v", "error", "-y", *words, file_url(part)]
        done = process.run(argv, timeout_s=MOST_S)
        if done.returncode:
            raise SystemExit(f"{out.name} could not be made: {done.reason()}")
        part.rename(out)
    return out


@dataclass(frozen=True)
class Seen:
    """A process at one moment."""

    parent: int
    cpu_s: float
    """With its children that have ended."""
    memory: int
    """Bytes it holds."""


def seen(pid: int) -> Seen | None:
    """None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    ticks, pages = sum(map(int, fields[11:15])), int(fields[21])
    return Seen(int(fields[1]), ticks * TICK_S, pages * os.sysconf("SC_PAGE_SIZE"))


def family(root: int) -> dict[int, Seen]:
    """A process and all below it."""
    every = {pid: found for pid in _numbers() if (found := seen(pid))}
    kin: dict[int, Seen] = {}
    new = {root} & every.keys()
    while new:
        kin |= {pid: every[pid] for pid in new}
        new = {pid for pid, found in every.items() if found.parent in new}
    return kin


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def bytes_below(folder: Path) -> int:
    """Of all files, those without a name excepted."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                continue
    return total


def unnamed_bytes(pids: list[int], folder: Path) -> int:
    """Of files in a folder that have no name any more, as processes hold them open."""
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for number in numbers:
            try:
                target, about = (
                    os.readlink(f"/proc/{pid}/fd/{number}"),
                    os.stat(f"/proc/{pid}/fd/{number}"),
                )
            except OSError:
                continue
            if target.startswith(str(folder)) and not about.st_nlink:
                found[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(found.values())


@dataclass
class Watch:
    """What a ladder's processes take, stage by stage, while it runs."""

    root: int
    title: Path
    folder: Path
    """Of temporary files, of the cache (`cache`) and of the ladder."""
    stage: str = "probe"
    memory: int = 0
    memory_stage: str = ""
    temporary: int = 0
    cache: int = 0
    wall_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    read: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Bytes that programs which name the title have read."""
    programs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _readers: dict[int, int] = field(default_factory=dict)
    _spent: float = 0.0
    _at: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Account what was spent since the last look to the stage that is under way."""
        stage, now, kin = self.stage, time.monotonic(), family(self.root)
        spent = sum(one.cpu_s for one in kin.values())
        # a program that ended between two readings is for a moment in neither of them
        self.cpu_s[stage] += max(0.0, spent - self._spent)
        self._spent = max(spent, self._spent)
        self.wall_s[stage] += now - self._at
        self._at = now
        held = sum(one.memory for one in kin.values())
        if held > self.memory:
            self.memory, self.memory_stage = held, stage
        temporary = bytes_below(self.folder / "tmp") + unnamed_bytes([*kin], self.folder)
        self.temporary = max(self.temporary, temporary)
        for pid in kin.keys() - {self.root}:
            self._read(pid, stage)

    def _read(self, pid: int, stage: str) -> None:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            # vqaloop itself names it too, and so does its copy that is to become a program
            if str(self.title).encode() not in command or b"ffmpeg" not in command.split(b"\0")[0]:
                return
            text = Path(f"/proc/{pid}/io").read_text()
        except OSError:
            return
        total = int(text.split("rchar:")[1].split()[0])
        self.programs[stage] += pid not in self._readers
        self.read[stage] += max(0, total - self._readers.get(pid, 0))
        self._readers[pid] = total

    def hear(self, lines: IO[bytes], log: IO[bytes]) -> None:
        """Follow the stages by the events of a run."""
        for line in lines:
            log.write(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            # what is done before the title is looked at counts with that
            if event.get("event") != "progress" or event["stage"] not in (*STAGES, "excerpt"):
                continue
            stage = event["stage"]
            if stage == "probe" and not event["message"].startswith("looking at"):
                # the title is described: it has been probed
                stage = "windows"
            elif stage == "excerpt":
                stage = "cut" if event["total"] else "windows"
            self.stage = stage


def watched(argv: list[str], title: Path, folder: Path) -> Watch:
    """Run a ladder to its end."""
    (folder / "tmp").mkdir(parents=True)
    places = {"TMPDIR": str(folder / "tmp"), "VQALOOP_CACHE": str(folder / "cache")}
    with (folder / "events.ndjson").open("wb") as log:
        child = subprocess.Popen(argv, env=os.environ | places, stderr=subprocess.PIPE)
        assert child.stderr is not None
        watch = Watch(child.pid, title, folder)
        hearing = threading.Thread(target=watch.hear, args=(child.stderr, log))
        hearing.start()
        try:
            while child.poll() is None:
                if sum(watch.wall_s.values()) > MOST_S:
                    raise SystemExit(f"{title.name} took more than {MOST_S:.0f} s")
                watch.look()
                time.sleep(EVERY_S)
        finally:
            child.kill()
            child.wait()
            hearing.join()
            child.stderr.close()
    if child.returncode not in (0, 3):
        raise SystemExit(f"{title.name}: exit status {child.returncode}; see {log.name}")
    watch.cache = bytes_below(folder / "cache")
    return watch


def row_of(watch: Watch, ladder: Path) -> dict[str, Any]:
    """The figures of a ladder."""
    document = json.loads((ladder / "ladder.json").read_text())
    cost, trials = document["cost"], document["trials"]
    size = watch.title.stat().st_size
    found: dict[str, Any] = {
        "title_mb": size / 1e6,
        "rungs": len(document["rungs"]),
        "excerpt_encodes": sum(not trial["whole_title"] for trial in trials),
        "whole_encodes": sum(trial["whole_title"] for trial in trials),
        "wall_s": sum(watch.wall_s.values()),
        "cpu_s": sum(watch.cpu_s.values()),
        "encoding_s": cost["encode_cpu_s"],
        "scoring_s": cost["score_s"],
        "guarding_s": cost["guard_s"],
        "overhead": cost["overhead"] or math.nan,
        "memory_mb": watch.memory / 1e6,
        "memory_stage": watch.memory_stage,
        "temporary_mb": watch.temporary / 1e6,
        "cache_mb": watch.cache / 1e6,
        "rungs_mb": sum((ladder / r["file"]).stat().st_size for r in document["rungs"]) / 1e6,
        "report_mb": (ladder / "report.html").stat().st_size / 1e6,
        "document_mb": (ladder / "ladder.json").stat().st_size / 1e6,
        "passes": sum(watch.read.values()) / size,
        "trusted": document["trusted"],
    }
    for stage in STAGES:
        found[f"{stage}_wall_s"] = watch.wall_s[stage]
        found[f"{stage}_cpu_s"] = watch.cpu_s[stage]
        found[f"{stage}_passes"] = watch.read[stage] / size
        found[f"{stage}_programs"] = watch.programs[stage]
    return {name: round(v, 3) if isinstance(v, float) else v for name, v in found.items()}


def draw(table: pd.DataFrame, out: Path) -> None:
    """CPU seconds of each stage, memory and disk, by minutes."""
    from matplotlib.figure import Figure

    with style(9, "#222"):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        times, sizes = figure.subplots(1, 2)
        least = table.sort_values("rungs_asked").drop_duplicates("minutes").sort_values("minutes")
        stages = ("probe", "windows", "search", "verify", "guard", "write")
        for stage, colour in zip(stages, COLOURS, strict=True):
            times.plot(least.minutes, least[f"{stage}_cpu_s"], "o-", color=colour, label=stage)
        for name, colour in zip(("memory", "temporary", "report"), COLOURS, strict=False):
            sizes.plot(least.minutes, least[f"{name}_mb"], "o-", color=colour, label=name)
        for axes, unit in ((times, "CPU s"), (sizes, "MB")):
            axes.set(xscale="log", yscale="log", xlabel="minutes of video", ylabel=unit)
            lengths = sorted(set(table["minutes"].astype(float)))
            axes.set_xticks(lengths, [f"{minutes:g}" for minutes in lengths])
            axes.minorticks_off()
            # powers of ten would be set as formulas, which this style has no letters for
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
        out.write_bytes(as_png(figure))


def growth(table: pd.DataFrame) -> pd.DataFrame:
    """How each figure grows with length: the exponents between neighbouring lengths."""
    names = [f"{stage}_cpu_s" for stage in STAGES] + ["memory_mb", "temporary_mb", "report_mb"]
    rows = []
    for key, group in table.groupby("rungs_asked", dropna=False):
        group = group.sort_values("minutes")
        for (_, a), (_, b) in zip(group[:-1].iterrows(), group[1:].iterrows(), strict=True):
            octaves = math.log2(b.minutes / a.minutes)
            powers = {n: math.log2((b[n] + 1e-9) / (a[n] + 1e-9)) / octaves for n in names}
            rows.append({"rungs_asked": key, "from": a.minutes, "to": b.minutes, **powers})
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.long")
    lengths = parser.add_mutually_exclusive_group(required=True)
    lengths.add_argument("--hours", type=float)
    lengths.add_argument("--minutes", help="one or several, with commas")
    parser.add_argument("--rungs", default="auto", help="of ladder's --rungs, with commas")
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--codec", default="h264")
    parser.add_argument("--clips", type=Path, default=os.environ.get("VQALOOP_CLIPS"))
    parser.add_argument("--options", type=shlex.split, default=[], help="of vqaloop ladder")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    if options.clips is None:
        parser.error("--clips FOLDER, or $VQALOOP_CLIPS, is needed")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    minutes = [60 * options.hours] if options.hours else map(float, options.minutes.split(","))
    loop, kept = None, out / "long.csv"
    for length in minutes:
        for rungs in options.rungs.split(","):
            key = {
                "minutes": f"{length:g}",
                "size": options.size,
                "codec": options.codec,
                "rungs_asked": rungs,
                "options": shlex.join(options.options),
            }
            if kept.exists():
                there = pd.read_csv(kept, dtype=str, keep_default_na=False)
                if (there[list(key)] == pd.Series(key)).all(axis=1).any():
                    continue
            if loop is None:
                clips = clips_of(options.clips)
                loop = joined(clips, options.size, out / f"loop.{options.size}.mkv")
            title = repeated(loop, length, out / f"{length:g}min.{options.size}.mkv")
            folder = out / f"{title.stem}.{options.codec}.{rungs}"
            shutil.rmtree(folder, ignore_errors=True)
            ladder = folder / "ladder"
            argv = [sys.executable, "-m", "vqaloop", "ladder", str(title), "-o", str(ladder)]
            argv += ["--codec", options.codec, "--rungs", rungs, "--progress", "json"]
            if "--preset" not in options.options:
                argv += ["--preset", default_encoder(options.codec).presets[-1]]
            row = key | row_of(watched([*argv, *options.options], title, folder), ladder)
            shutil.rmtree(folder / "cache")
            new = not kept.exists()
            with kept.open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if new:
                    writer.writeheader()
                writer.writerow(row)
            print(row, file=sys.stderr, flush=True)
    table = pd.read_csv(kept)
    print(table.round(2).T.to_string())
    print(growth(table).round(2).to_string(index=False))
    draw(table, out / "long.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
