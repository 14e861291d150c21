"""A ladder at a terminal: the table of rungs, warnings and cost."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vqaloop.core.text import counted, printable, shown, shown_rate
from vqaloop.ladder.warnings import UNTRUSTED
from vqaloop.quality.guard import WORST_SECOND
from vqaloop.records import Ladder, Rung
from vqaloop.report.console import WIDTH, console_for, print_line, table
from vqaloop.report.cost import spent_words

if TYPE_CHECKING:
    from rich.table import Table


def ladder_table(ladder: Ladder) -> "Table":
    """The rungs, lowest first, within 80 columns; bitrates in kb/s."""
    knob = printable(knob_heading(ladder))[:9]
    opinions, means = has_opinions(ladder), pool_of(ladder) != "mean"
    # of places alone there is no worst second, but an interval
    sampled = any("vmaf" in rung.guard_interval for rung in ladder.rungs)
    rows = [
        [
            str(number),
            f"{rung.width}x{rung.height}",
            shown_rate(rung.bitrate_kbps),
            shown_rate(rung.peak_kbps),
            knob_value(ladder, rung),
            shown(rung.score),
            *([shown(rung.score_mean)] if means else []),
            *([shown(rung.opinion)] if opinions else []),
            shown(rung.score_predicted),
            shown(rung.guard.get("vmaf")),
            shown(spread_of(rung, "vmaf") if sampled else rung.guard.get(WORST_SECOND)),
        ]
        for number, rung in enumerate(ladder.rungs, 1)
    ]
    headings = ["#", "size", "kb/s", "peak", knob, *score_headings(ladder)]
    headings += ["predicted", "VMAF", "±" if sampled else "worst s"]
    return table(headings, rows)


def knob_heading(ladder: Ladder) -> str:
    """Of what steered the encoder: its knob, or in two passes the rate in kb/s it was to reach."""
    if any(rung.two_pass for rung in ladder.rungs):
        return "goal"
    return ladder.rungs[0].knob[0] if ladder.rungs else "knob"


def knob_value(ladder: Ladder, rung: Rung) -> str:
    """What steered the encoder of a rung; its knob by name among goals."""
    if rung.two_pass:
        return shown_rate(rung.two_pass.goal_kbps)
    named = rung.knob[0] if knob_heading(ladder) == "goal" else ""
    return f"{printable(named)} {rung.knob[1]:g}".strip()


def spread_of(rung: Rung, figure: str) -> float | None:
    """Half-width of a sampled figure's 95 % interval; None where it is of the whole title."""
    spread = rung.guard_interval.get(figure)
    return (spread[1] - spread[0]) / 2 if spread else None


def pool_of(ladder: Ladder) -> str:
    """How its scores are pooled over time."""
    return str(ladder.about["metric"].get("pool") or "mean")


def score_headings(ladder: Ladder) -> list[str]:
    """Of a rung's score, and of what is shown beside it."""
    pool, opinion = pool_of(ladder), ["opinion"] if has_opinions(ladder) else []
    return ["score", *opinion] if pool == "mean" else [pool, "mean", *opinion]


def has_opinions(ladder: Ladder) -> bool:
    """Whether its scores are mapped from a scale of opinions, which is shown beside."""
    return any(rung.opinion is not None for rung in ladder.rungs)


def label_line(ladder: Ladder) -> str:
    """How scores mapped from a scale of opinions came about; "" for others."""
    metric = ladder.about["metric"]
    scale = metric.get("scale")
    if not scale:
        return ""
    return (
        f"opinion: {printable(metric['label'] or 'no label')}, for the score mapped to "
        f"{printable(scale['target'])} (error {scale['rmse']:.1f} points on titles left out)"
    )


def parts_line(ladder: Ladder) -> str:
    """Which rungs have less quality than their knob says, in parts; empty where none has."""
    if ladder.about.get("per_shot"):
        return ""
    places = [str(at) for at, rung in enumerate(ladder.rungs, 1) if rung.scenes]
    if not places:
        return ""
    which = f"rung{'s' * (len(places) > 1)} {', '.join(places)}"
    return f"{which}: less quality than the knob says where the peak was above its bound"


def audience_line(ladder: Ladder) -> str:
    """What the audience that placed the rungs gets; "" where none did."""
    found = ladder.about.get("audience")
    if not found:
        return ""
    stalls = f", {found['unserved']:.1%} too slow for the lowest" if found["unserved"] else ""
    return (
        f"audience {printable(found['name'])}: mean score {shown(found['score'], 2)} at "
        f"{shown_rate(found['bitrate_kbps'])} kb/s, by {found['bandwidth_share']:.0%} of each "
        f"session's bandwidth{stalls}"
    )


def film_grain_line(ladder: Ladder) -> str:
    """What was found of the source's film grain, and done about it; "" where nothing was."""
    found = ladder.about.get("film_grain")
    if not found:
        return ""
    seen = "no film grain was found in the source"
    if found.get("deviation") is not None:
        seen = (
            "the source has film grain, of a standard deviation of about "
            f"{found['deviation']:.1f} of 255 levels"
        )
    if found.get("strength"):
        kept = f"a table of strength {found['strength']}"
        if found.get("saving_percent") is not None:
            kept += f" saves {found['saving_percent']:.1f} % of bitrate at equal score"
        return f"{seen}; {kept}; scores are without the synthesised grain, which the files have"
    if found.get("why"):
        return f"{seen}; no table: {printable(found['why'])}"
    if found.get("asked") == "off":
        return f"{seen}; --film-grain auto tries to synthesise it (AV1)"
    return seen


def cost_line(ladder: Ladder) -> str:
    """Cost of making the ladder, in one line.

    The encodes are the encoder runs of that call, the pixels theirs; encodes taken from the cache
    come on top.
    """
    cost = ladder.about["cost"]
    cached = sum(bool(trial.get("cached")) for trial in ladder.about["trials"])
    encodes = counted(cost["encodes"], "encode")
    encodes += f" ({cached} more from the cache)" if cached else ""
    frames = f"{cost['encoded_frames']} frames, {_si(cost['encoded_pixels'])}pixel"
    shots = ladder.about.get("per_shot") or {}
    whole = shots.get("equivalents_per_rung")
    scenes = f", {shots['scenes']} scenes, {whole:.2f} whole titles a rung" if whole else ""
    return f"{encodes}: {frames}{scenes}, {spent_words(cost)}"


def overhead_line(ladder: Ladder) -> str:
    """All CPU seconds over those of encoding the rungs alone; "" where that is not known."""
    cost = ladder.about["cost"]
    if not cost.get("overhead"):
        return ""
    busy, have = cost.get("busy"), cost.get("processors")
    used = f"; {busy:.0%} of {have} processors in use while encoding" if busy and have else ""
    return (
        f"overhead {cost['overhead']:.2f}: {cost['cpu_s']:.1f} s CPU in all, of which encoding "
        f"these rungs took {cost['delivered_cpu_s']:.1f}{used}"
    )


def earlier_line(ladder: Ladder) -> str:
    """What earlier runs of the same ladder cost, which is not in the cost of the last; or ""."""
    cost = ladder.about["cost"].get("earlier")
    if not cost:
        return ""
    encodes = counted(int(cost.get("encodes", 0)), "encode")
    return f"{counted(int(cost.get('runs', 1)), 'earlier run')}: {encodes}, {spent_words(cost)}"


def estimate_line(estimate: Mapping[str, Any]) -> str:
    """How far the excerpt's predictions were from the whole title."""
    if not estimate["encodes"]:
        return "the excerpt made no prediction for these renditions"
    return (
        f"the whole title took {estimate['bitrate_percent']:+.1f} % of bitrate and scored "
        f"{estimate['score']:+.1f} against what its excerpt predicted (at worst "
        f"{estimate['bitrate_percent_worst']:+.1f} % and {estimate['score_worst']:+.1f}), "
        "corrected in these rungs"
    )


def _si(value: float) -> str:
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.4g} T"


def print_ladder(ladder: Ladder) -> None:
    """Table, warnings, cost and folder, on stdout."""
    console = console_for(sys.stdout)
    console.print(ladder_table(ladder), width=min(console.width, WIDTH))
    print_line(console, "")
    if label_line(ladder):
        print_line(console, label_line(ladder))
    for warning in ladder.about.get("warnings") or ():
        print_line(console, f"warning: {warning}", "yellow")
    if not ladder.trusted:
        print_line(console, f"not to be trusted: {UNTRUSTED}", "bold red")
    if parts_line(ladder):
        print_line(console, parts_line(ladder))
    if audience_line(ladder):
        print_line(console, audience_line(ladder))
    if ladder.about.get("estimate"):
        print_line(console, estimate_line(ladder.about["estimate"]))
    if film_grain_line(ladder):
        print_line(console, film_grain_line(ladder))
    print_line(console, cost_line(ladder))
    if earlier_line(ladder):
        print_line(console, earlier_line(ladder))
    if overhead_line(ladder):
        print_line(console, overhead_line(ladder))
    print_line(console, f"in {ladder.folder}")
