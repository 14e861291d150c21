"""Bitrate that sets of encoder parameters save on clips, by every measure that judges them.

    python -m bench.params CLIP... --sets "psy-rd=0 aq-mode=0" "trellis=2" --csv OUT.csv

Each clip is cut to its first frames and encoded with the defaults and with each set at the same
knobs; savings are BD-rates by the steering metric and by the guards of tuning, in percent.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.grid import cut
from vqaloop.execution.options import JobOptions
from vqaloop.execution.session import open_session
from vqaloop.execution.tools import chosen_tools
from vqaloop.quality.bdrate import NotComparable, bd_rate
from vqaloop.quality.registry import DEFAULT_METRIC
from vqaloop.tuning.default_curves import GUARDS, CurvePoint, measured_guards
from vqaloop.tuning.param_trials import ParamJudge, Setting
from vqaloop.tuning.samplers import Params

MEASURES = {"score": "score", **GUARDS, "psnr_y": "PSNR-Y"}
KNOBS = (0.2, 0.4, 0.6, 0.8)
"""Parts of the knob's search range."""


def savings(default: Sequence[CurvePoint], curve: Sequence[CurvePoint]) -> dict[str, float]:
    """Percent of bitrate saved by each measure; without those whose curves have no BD-rate."""
    found = {}
    for name in ("score", *measured_guards([*default, *curve]), "psnr_y"):
        pairs = [[(p.kbps, getattr(p, name)) for p in points] for points in (default, curve)]
        with contextlib.suppress(NotComparable):
            found[name] = -bd_rate(pairs[0], pairs[1], least_overlap=0.5)
    return found


def rows(clip: Path, codec: str, metric: str, sets: Sequence[str]) -> list[dict[str, object]]:
    """One line of the table for each set."""
    options = JobOptions(codec=codec, metric=metric)
    with open_session(clip, options, chosen_tools(options)) as session:
        setting = Setting(*session.sizes[0], session.preset, session.depth)
        judge = ParamJudge(session.shop, [session.source], setting)
        knob = session.spec.knob
        low, high = knob.search
        knobs = [knob.snap(low + part * (high - low)) for part in KNOBS]

        def curve(params: Params) -> list[CurvePoint]:
            return session.shop.map(
                lambda k: judge.measure(session.source, params, k, confirm=True), knobs
            )

        default = curve(())
        found: list[dict[str, object]] = []
        for text in sets:
            name_values = [word.partition("=")[::2] for word in text.split()]
            tuned = curve(tuple(sorted(name_values)))
            time = sum(p.cpu_s for p in tuned) / sum(p.cpu_s for p in default)
            head = {"clip": clip.stem, "codec": codec, "set": text}
            found.append({**head, **savings(default, tuned), "time": round(time, 2)})
        return found


def summary(table: pd.DataFrame) -> str:
    """The range over clips for each set, as Markdown."""
    lines = [f"| codec | set | clips | {' | '.join(MEASURES.values())} |"]
    lines.append("| --- " * (3 + len(MEASURES)) + "|")
    for (codec, text), part in table.groupby(["codec", "set"], sort=False):
        ranges = [
            f"{part[name].min():+.1f} to {part[name].max():+.1f}" if name in part else "-"
            for name in MEASURES
        ]
        lines.append(f"| {codec} | `{text}` | {len(part)} | {' | '.join(ranges)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--sets", nargs="+", required=True, metavar="NAME=VALUE...")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--codec", default="h264")
    parser.add_argument("--metric", default=DEFAULT_METRIC)
    parser.add_argument("--frames", type=int, default=32)
    options = parser.parse_args()
    work = options.csv.with_suffix("")
    found: list[dict[str, object]] = []
    for clip in options.clips:
        short = cut(clip, work, options.frames)
        found += rows(short, options.codec, options.metric, options.sets)
        pd.DataFrame(found).to_csv(options.csv, index=False)
    print(summary(pd.DataFrame(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
