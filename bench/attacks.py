"""Which damage each metric sees: attacks of three strengths, judged by students and metrics.

    python -m bench.attacks CLIP... --out DIR [--frames N] [--attacks NAME,...]
        [--judges NAME,...] [--csv FILE] [--table FILE.md]

The first frames of each clip are written without loss, before and after each attack of
`vqaloop/training/attacks.py`, at a quarter of its full strength, a half and all of it. A row of
the CSV is one attacked clip, a column one judge; what is there is kept, so that the bench resumes.
Remove a column to measure that judge again.

Seen is an attack to which a judge of 0..100 gives less than 92, XPSNR less than 35 dB, PSNR less
than 41 dB, and by which the student without a reference falls by more than 8 points.
"""

import sys
from functools import partial
from pathlib import Path
from typing import cast

import pandas as pd

from bench.judges import (
    ALONE,
    Judges,
    Results,
    check_names,
    in_order,
    make_parser,
    pipes,
    run,
    write_y4m,
)
from vqaloop.media.frames import read_source
from vqaloop.media.probe import probe_source
from vqaloop.training.attacks import ATTACKS, attack

STRENGTHS = (0.25, 0.5, 1.0)
NONE = "none"
KEY = ("clip", "attack", "strength")
SEEN_BELOW = {"xpsnr": 35.0, "psnr": 41.0}
"""dB of plain x264 where its VMAF is 92: the mean of the clips in `gaming.csv`."""
SEEN, FALL = 92.0, 8.0


def measure(
    attacks: list[str], clip: Path, results: Results, judges: Judges, out: Path, frames: int
) -> None:
    """Add to the results what they lack of a clip."""
    source = probe_source(clip, allow_hdr=True, ffmpeg=judges.ffmpeg)
    original = read_source(source, range(min(frames, source.frames)), ffmpeg=judges.ffmpeg)
    paths = out / f"{clip.stem}.y4m", out / f"{clip.stem}-attacked.y4m"
    write_y4m(paths[0], original, source)
    for name, strength in [(NONE, 0.0), *((a, s) for a in attacks for s in STRENGTHS)]:
        at = clip.stem, name, strength
        if names := results.missing(at, judges.names):
            damaged = original if name == NONE else attack(original, name, strength)
            write_y4m(paths[1], damaged, source)
            results.add(at, judges.scores(*paths, names))
            print(*at, results.rows[at], file=sys.stderr, flush=True)
    for path in paths:
        path.unlink(missing_ok=True)


def judges_of(table: pd.DataFrame) -> list[str]:
    """The judges that a table has, in their usual order."""
    return in_order(str(name) for name in table if name not in KEY)


def seen(table: pd.DataFrame) -> pd.DataFrame:
    """1.0 where a judge sees the attack of a row, 0.0 where not, NaN where it did not judge."""
    intact = table[table.attack == NONE].set_index("clip")
    found = {}
    for judge in judges_of(table):
        limits = pd.Series(SEEN_BELOW.get(judge, SEEN), table.index)
        if judge == ALONE:
            limits = table["clip"].map(intact[judge] - FALL)
        found[judge] = (table[judge] < limits).astype(float).where(table[judge].notna())
    return pd.DataFrame(found)


def markdown(table: pd.DataFrame) -> str:
    """Attack by judge: the mean over the clips, and on how many of them it was seen."""
    judges, found = judges_of(table), seen(table)
    lines = [["attack", *judges]]
    for at, rows in table.groupby(["attack", "strength"], sort=False):
        name, strength = cast(tuple[str, float], at)
        means, counts = rows[judges].mean(), found.loc[rows.index].sum()
        text = NONE if name == NONE else f"{name}: {ATTACKS[name].describe(strength)}"
        lines.append([text, *(f"{means[j]:.1f} ({counts[j]:.0f})" for j in judges)])
    attacked = found[table.attack != NONE]
    lines.append(["seen", *(f"{attacked[j].sum():.0f} of {attacked[j].count()}" for j in judges)])
    return pipes(lines)


def main() -> int:
    parser = make_parser("attacks", __doc__)
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    options = parser.parse_args()
    attacks = options.attacks.split(",")
    check_names(parser, attacks, list(ATTACKS))
    return run(parser, options, KEY, partial(measure, attacks), markdown)


if __name__ == "__main__":
    sys.exit(main())
