"""The table of metrics: agreement with the panel's label, damage seen, tricks, loss, CPU seconds.

    python -m bench.panel [CLIP...] [--titles titles.csv --set third] --out DIR
        [--judges NAME[=FILE],...] [--panel FILE] [--parts agreement,attacks,gaming,cost]
        [--fdim FILE] [--cvvdp PROGRAM] [--ssimulacra2]

agreement: each clip's first frames encoded by three encoders at three sizes and several qualities,
labelled over all frames by the judges of the panel, whose fused label, by the panel of the weights
named, is the truth; scored by every judge as `vqaloop score` does. From the same encodes: what is
lost where a judge chooses the size at each bitrate. attacks: the damage of
`vqaloop/training/attacks.py`, and who sees what the panel sees. gaming: the tricks of
`bench/gaming.py`. cost: CPU seconds of a score at several heights.

`DIR/panel.csv` has a row a file, `DIR/frames/` its labels frame by frame; what is there is kept,
so that the bench resumes, and other weights or judges add their columns. `bench.panel_material`
makes the list of titles and montages.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from bench import panel_labels, panel_table
from bench.attacks import SEEN
from bench.judges import Judges, Results, check_names, split_judge
from bench.panel_jobs import (
    AGREEMENT,
    ATTACKED,
    COST,
    GAMED,
    PARTS,
    Clip,
    Job,
    Made,
    Original,
    jobs_of,
    open_clip,
)
from bench.panel_labels import Fusion, Runs
from bench.scoring import make_title
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import write_whole
from vqaloop.encoding.encode import encode
from vqaloop.errors import VqaloopError
from vqaloop.panel.measure import PanelTools
from vqaloop.quality.registry import metric_names
from vqaloop.quality.scorer import Scorer
from vqaloop.records import Rendition
from vqaloop.training.attacks import PERIOD

KEY = ("part", "set", "title", "clip", "canvas", "encode", "size")
CPU = "cpu "
"""Before a judge's name: the column of its CPU seconds."""
ONCE = "once "
"""Likewise: CPU seconds of a title's first score beyond those of the next."""
JUDGES = ("vmaf-sampled", "vmaf-v1-sampled", "vmaf", "vmaf-v1", "vmaf-neg", "xpsnr", "psnr")
COST_CRF = 26.0
OVERHEAD = 15.0
"""Megapixels of frames that starting programs and scoring take as long as, for the time left."""


def cpu_s() -> float:
    """CPU seconds of this process and of all programs it has run."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


@dataclass
class Bench:
    """What every measurement needs."""

    results: Results
    judges: Judges
    tools: PanelTools
    fusion: Fusion | None
    out: Path
    every: int
    """Of so many encodes one is labelled by the dear judges."""
    waiting: list[tuple[Path, pd.DataFrame, Runs]] = field(default_factory=list)
    """What ColorVideoVDP is still to measure of the clip at hand."""

    def place(self, clip: Clip, job: Job) -> Path:
        """The file of a job's labels."""
        name = job.name.replace("/", "-")
        return self.out / "frames" / job.part / clip.name / f"{name}.csv"

    def lacks(self, clip: Clip, job: Job, number: int) -> bool:
        """Whether anything of a job is still to be measured; `number` is its place in the clip."""
        place = self.place(clip, job)
        if not place.exists() or self.results.missing(key(clip, job), list(self.judges.scorers)):
            return True
        return self._dear(job, number, pd.read_csv(place))

    def measure(self, clip: Clip, job: Job, number: int, original: Original) -> None:
        """Add what is missing of a job: labels of its frames, and scores."""
        at, place = key(clip, job), self.place(clip, job)
        missing = self.results.missing(at, list(self.judges.scorers))
        table = pd.read_csv(place) if place.exists() else None
        made = job.make(original)
        row = {"kbps": made.kbps} if made.kbps == made.kbps else {}
        if table is None:
            table = panel_labels.measure_frames(
                original.frames, made.frames, ffmpeg=self.judges.ffmpeg, uhd=clip.uhd
            )
            panel_labels.write(place, table)
        if self._dear(job, number, table):
            self._look_closer(job, place, table, original, made)
        for name in missing:
            before = cpu_s()
            row[name] = self.judges.scorers[name].score(made.path, original.path).value
            row[CPU + name] = cpu_s() - before
        made.path.unlink()
        if row:
            self.results.add(at, row)

    def _dear(self, job: Job, number: int, table: pd.DataFrame) -> bool:
        """Whether dear judges are still to label a job's file."""
        if job.part == GAMED:
            return False
        wanted = [n for n in self.tools.names if n not in panel_labels.CHEAP and n not in table]
        if job.part == AGREEMENT:
            return bool(wanted) and number % self.every == 0
        # damage that the others see is visible whatever these say
        return bool(wanted) and not self._seen(table)

    def _seen(self, table: pd.DataFrame) -> bool:
        return self.fusion is not None and self.fusion.label(table, table.columns) < SEEN

    def _look_closer(
        self, job: Job, place: Path, table: pd.DataFrame, original: Original, made: Made
    ) -> None:
        runs = panel_labels.runs_of(original.frames, made.frames)
        if [n for n in self.tools.names if n in panel_labels.PICTURES and n not in table]:
            table = panel_labels.measure_pictures(table, runs, self.tools)
            panel_labels.write(place, table)
        if self.tools.cvvdp and (job.part == AGREEMENT or not self._seen(table)):
            self.waiting.append((place, table, runs))

    def finish(self, clip: Clip) -> None:
        """ColorVideoVDP of all that waits for it."""
        if self.waiting:
            places, tables, runs = zip(*self.waiting, strict=True)
            found = panel_labels.measure_cvvdp(
                tables, runs, self.tools, fps=float(clip.source.fps), uhd=clip.uhd
            )
            for place, table in zip(places, found, strict=True):
                panel_labels.write(place, table)
        self.waiting.clear()


def key(clip: Clip, job: Job) -> tuple[str, ...]:
    canvas, size = (f"{w}x{h}" for w, h in (clip.source.canvas, job.size))
    return job.part, clip.set, clip.title, clip.name, canvas, job.name, size


def measure_all(bench: Bench, work: Sequence[tuple[Clip, list[Job]]]) -> int:
    """Every job of every clip, with the time left on stderr; how many failed."""
    todo = [
        (clip, [(n, job) for n, job in enumerate(jobs) if bench.lacks(clip, job, n)])
        for clip, jobs in work
    ]
    shares = [clip.pixels * clip.frames / 1e6 + OVERHEAD for clip, _ in todo]
    total = sum(share * len(jobs) for share, (_, jobs) in zip(shares, todo, strict=True))
    failed, done, start = 0, 0.0, time.monotonic()
    for share, (clip, jobs) in zip(shares, todo, strict=True):
        original = Original(clip, bench.out, bench.judges.ffmpeg)
        try:
            for number, job in jobs:
                before = cpu_s()
                try:
                    bench.measure(clip, job, number, original)
                except VqaloopError as error:
                    failed += 1
                    print(f"{clip.name}: {job.name} is left out: {error}", file=sys.stderr)
                done += share
                left = (time.monotonic() - start) * (total - done) / done / 60
                print(
                    f"{clip.name}, {job.part}: {job.name}: {cpu_s() - before:.1f} CPU s; "
                    f"about {left:.0f} min left",
                    file=sys.stderr,
                    flush=True,
                )
            bench.finish(clip)
        finally:
            original.close()
    return failed


def measure_cost(bench: Bench, paths: list[Path], heights: Sequence[int], seconds: int) -> None:
    """CPU seconds of one rung by each judge, of titles made of the clips at several heights."""
    ffmpeg = bench.judges.ffmpeg
    scorers = dict(bench.judges.scorers)
    scorers |= {name: Scorer(name, ffmpeg=ffmpeg) for name in bench.judges.full}
    for height in heights:
        width = height * 16 // 9
        rendition = Rendition(width, height, "libx264", COST_CRF, "veryfast")
        size = f"{width}x{height}"
        at = (COST, "-", "joined", f"{height}p {seconds} s", size, rendition.encoder, size)
        missing = [n for n in scorers if bench.results.missing(at, [CPU + n])]
        if not missing:
            continue
        title, rung = make_title(paths, height, bench.out, ffmpeg, seconds), bench.out / "cost.mp4"
        encode(title, rendition, rung, ffmpeg=ffmpeg)
        for name in missing:
            spent = []
            # the first score of a title pays for the source's part
            for _ in range(1 if name in bench.judges.full else 2):
                before = cpu_s()
                scorers[name].score(rung, title.path)
                spent.append(cpu_s() - before)
            once = max(0.0, spent[0] - spent[-1])
            bench.results.add(at, {CPU + name: spent[-1], ONCE + name: once})
            print(f"{height}p: {name}: {spent[-1]:.1f} CPU s", file=sys.stderr, flush=True)
        rung.unlink()
        title.path.unlink()


def labelled(bench: Bench, work: Sequence[tuple[Clip, list[Job]]]) -> pd.DataFrame:
    """The results with the labels of every file, fused by the panel where there is one."""
    rows = []
    for clip, jobs in work:
        files = {job: bench.place(clip, job) for job in jobs}
        tables = {job: pd.read_csv(file) for job, file in files.items() if file.exists()}
        for job, table in tables.items():
            # all encodes of a clip alike, or those that more judges saw would seem worse
            same = [set(t) for j, t in tables.items() if j.part == job.part]
            names = set(table) if job.part == ATTACKED else set.intersection(*same)
            row = dict(zip(KEY, key(clip, job), strict=True)) | panel_labels.means(table)
            if bench.fusion is not None:
                row[panel_labels.PANEL] = bench.fusion.label(table, names)
            rows.append(row)
    scored = bench.results.table()
    if scored.empty:
        return pd.DataFrame(rows)
    cost = scored[scored.part == COST]
    if not rows:
        return cost
    return pd.concat([pd.DataFrame(rows).merge(scored, "left", list(KEY)), cost])


def read_titles(path: Path, group: str) -> list[tuple[Path, str, str]]:
    """(file, title, set) of the rows of a set in `bench.panel_material`'s list."""
    table = pd.read_csv(path)
    own = table[table["set"] == group] if group else table
    if own.empty:
        known = ", ".join(sorted(set(table["set"])))
        raise SystemExit(f"{path} has no titles of the set {group}; it has {known}")
    return [(Path(str(r.file)), str(r.title), str(r.set)) for r in own.itertuples(index=False)]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bench.panel", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--titles", type=Path, help="of bench.panel_material, besides CLIP")
    parser.add_argument("--set", default="", help="of the list of titles: validation or third")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judges", default=",".join(("internvqa", *JUDGES)))
    parser.add_argument("--panel", type=Path, help="weights whose panel fuses the labels")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--frames", type=int, default=48, help="of each clip, the first")
    parser.add_argument("--knobs", type=int, default=3, help="qualities of an encoder and size")
    parser.add_argument("--attacked", type=int, default=3, help="clips that are attacked")
    parser.add_argument("--gamed", type=int, default=2, help="clips that are encoded with tricks")
    parser.add_argument("--every", type=int, default=9, help="encodes to one seen by dear judges")
    parser.add_argument("--fdim", type=Path, help="FDIM's wheel or checkpoint")
    parser.add_argument("--cvvdp", help="ColorVideoVDP's program")
    parser.add_argument("--ssimulacra2", action="store_true")
    parser.add_argument("--heights", default="540,1080,2160", help="of the titles for cost")
    parser.add_argument("--seconds", type=int, default=4, help="of the titles for cost")
    parser.add_argument("--table", type=Path, help="Markdown; DIR/panel.md by default")
    return parser


def spread(clips: Sequence[Clip], count: int) -> list[Clip]:
    """So many of the clips that are neither large nor too short for pumping, evenly."""
    small = [clip for clip in clips if not clip.large and clip.frames >= PERIOD]
    if not 0 < count < len(small):
        return small if count else []
    return [small[(2 * i + 1) * len(small) // (2 * count)] for i in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    o = parser.parse_args(argv)
    names, parts = o.judges.split(","), o.parts.split(",")
    check_names(parser, names, metric_names())
    check_names(parser, parts, PARTS)
    ffmpeg = ffmpeg_path()
    o.out.mkdir(parents=True, exist_ok=True)
    listed = [(path, path.stem, "-") for path in o.clips]
    try:
        listed += read_titles(o.titles, o.set) if o.titles else []
        if not listed:
            parser.error("no clips: name some, or a list with --titles")
        clips = [open_clip(*row, o.frames, ffmpeg) for row in listed]
        tools = PanelTools(ffmpeg, o.fdim, o.cvvdp, o.ssimulacra2)
        tools.check()
        fusion = panel_labels.read_fusion(o.panel) if o.panel else None
        results = Results(o.out / "panel.csv", KEY)
        bench = Bench(results, Judges(names, ffmpeg), tools, fusion, o.out, o.every)
        few = {ATTACKED: spread(clips, o.attacked), GAMED: spread(clips, o.gamed)}
        work = []
        for clip in clips:
            own = [part for part in parts if clip in few.get(part, clips)]
            work.append((clip, list(jobs_of(clip, own, o.knobs))))
        failed = measure_all(bench, work)
        if COST in parts:
            heights = [int(word) for word in o.heights.split(",")]
            paths = [clip.path for clip in spread(clips, 4) or clips[:1]]
            measure_cost(bench, paths, heights, o.seconds)
        table = labelled(bench, work)
    except VqaloopError as error:
        parser.exit(1, f"{error}\n")
    judges = [split_judge(name)[0] for name in names]
    write_whole(o.out / "table.csv", table.to_csv(index=False, float_format="%.3f"))
    text = panel_table.markdown(table, judges, list(sys.argv[1:] if argv is None else argv))
    write_whole(o.table or o.out / "panel.md", text)
    print(text)
    if failed:
        print(f"{failed} files are left out, see above; run again for them", file=sys.stderr)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
