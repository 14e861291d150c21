"""A ladder's guard by mode, its limit of banding, and what the ladder cost over its rungs."""

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import vqaloop
from tests.support.commandline import Room
from tests.support.media import make_clip
from vqaloop.errors import InputError
from vqaloop.execution.executor import Local
from vqaloop.ladder.steps import Loop
from vqaloop.ladder.store import read_ladder
from vqaloop.ladder.summary import ladder_table, overhead_line
from vqaloop.media.probe import probe_source
from vqaloop.quality.guard import SAMPLING, Guarded, GuardPlan
from vqaloop.records import Encode, Score, Source
from vqaloop.report.console import console_for

SMALL: dict[str, Any] = {
    "codec": "h264",
    "metric": "psnr",
    "preset": "ultrafast",
    "resolutions": [(224, 160), (112, 80)],
    "rungs": 2,
    "min_step": 0.2,
    "min_ratio": 1.2,
    "prior": "none",
}


def test_a_ladder_by_each_guard(room: Room) -> None:
    clip = make_clip(room.folder / "a.mp4", size="224x160", frames=24)
    made = vqaloop.build_ladder(clip, **SMALL, guard="sampled", max_banding=0)
    document = room.document("a.h264.ladder")
    about = document["guard"]
    assert about["mode"] == "sampled" and 0 < about["places"] <= about["frames"] == 24
    for rung in made.rungs:
        low, high = rung.guard_interval["vmaf"]
        assert low <= rung.guard["vmaf"] <= high and "vmaf_worst_s" not in rung.guard
        # what steers has measured all frames
        assert "psnr_y" not in rung.guard_interval
    assert [rung.guard_interval.keys() for rung in read_ladder(made.folder).rungs] == [
        rung.guard_interval.keys() for rung in made.rungs
    ]
    assert {"vmaf_low", "vmaf_high", "cambi_low"} <= set(made.to_frame().columns)
    # more banding than the limit that was asked for
    assert not made.trusted and any("CAMBI" in line for line in document["warnings"])
    table = io.StringIO()
    console_for(table).print(ladder_table(made))
    assert "±" in table.getvalue() and "worst s" not in table.getvalue()

    cost = document["cost"]
    rungs = cost["delivered_cpu_s"]
    assert cost["overhead"] == pytest.approx(cost["cpu_s"] / rungs, rel=0.01) and rungs > 0
    assert cost["cpu_s"] > cost["encode_cpu_s"] + cost["score_s"] + cost["guard_s"]
    assert cost["encode_cpu_s"] > rungs and "overhead" in overhead_line(made)

    blind = vqaloop.build_ladder(clip, **SMALL, guard="off")
    assert blind.trusted and all(rung.guard == {} for rung in blind.rungs)
    assert blind.about["guard"] == {"mode": "off"} and blind.about["cost"]["guard_s"] == 0
    assert any("guard was off" in line for line in blind.about["warnings"])
    # its encodes are those of the first ladder, and what they took is not of this one
    assert blind.about["cost"]["overhead"] is None and overhead_line(blind) == ""


@pytest.mark.parametrize(("halved", "looks"), [(False, 1), (True, 2)])
def test_an_open_verdict_is_looked_at_closer(halved: bool, looks: int, tmp_path: Path) -> None:
    positions: list[int] = []

    def guard(source: Source, path: Path, plan: GuardPlan) -> Guarded:
        assert plan.sampling is not None
        positions.append(plan.sampling.positions)
        # the score is 60 and may be 10 points off
        wide = 9.0 if not halved else 12.0 / len(positions)
        return Guarded({"vmaf": 60.0}, {"vmaf": (60 - wide, 60 + wide)})

    metric = SimpleNamespace(guarded_by="vmaf-hd", guard_gap=10.0, finer=lambda: None)
    shop: Any = SimpleNamespace(metric=metric, guard=guard, map=lambda work, n: list(map(work, n)))
    loop = Loop(*cast(Any, (shop, *[None] * 4, lambda event: None)))
    loop.guard = GuardPlan({"vmaf": 3}, SAMPLING)
    source = probe_source(make_clip(tmp_path / "a.y4m", size="64x64", frames=20))
    encode = SimpleNamespace(path=tmp_path, rendition=SimpleNamespace(width=64, height=64))
    checked: Any = [SimpleNamespace(encode=encode, score=SimpleNamespace(value=60.0, mean=None))]
    [found] = loop._guarded(source, checked)
    assert positions == [SAMPLING.positions * 4**n for n in range(looks)]
    assert found.intervals["vmaf"][1] <= 70
    loop.guard = None
    assert loop._guarded(source, checked) == [Guarded()]


class Watched(Local):
    """As many at once as the processors allow; notes when encodes end and guards begin."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: list[str] = []

    def encode(self, source: Source, *arguments: Any, **options: Any) -> Encode:
        made = super().encode(source, *arguments, **options)
        self.seen.append(f"encode of {source.frames}")
        return made

    def guard(self, *arguments: Any, **options: Any) -> dict[str, Score]:
        self.seen.append("guard")
        return super().guard(*arguments, **options)


def test_rungs_are_guarded_while_others_are_encoded(room: Room) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor only")
    clip = make_clip(room.folder / "a.mp4", size="160x96", frames=100, rate="2")
    options = {**SMALL, "resolutions": [(160, 96), (112, 64)], "rungs": 3, "cache": False}
    watched = Watched()
    made = vqaloop.build_ladder(clip, out="one", workers=watched, **options)
    last = len(watched.seen) - watched.seen[::-1].index("encode of 100")
    assert "guard" in watched.seen[:last]
    busy = made.about["cost"]["busy"]
    assert 0 < busy <= 1 and "processors in use" in overhead_line(made)
    alone = vqaloop.build_ladder(clip, out="two", workers=1, **options)
    assert [rung.to_json() for rung in made.rungs] == [rung.to_json() for rung in alone.rungs]
    assert made.about["warnings"] == alone.about["warnings"]


def test_a_limit_of_banding_that_cannot_be_measured_is_refused(room: Room) -> None:
    clip = make_clip(room.folder / "a.y4m", size="96x64", frames=4)
    with pytest.raises(InputError, match="max-banding needs VMAF v1"):
        vqaloop.build_ladder(clip, codec="h264", metric="psnr", max_banding=3)
    with pytest.raises(InputError, match="--guard off"):
        vqaloop.build_ladder(clip, codec="h264", guard="off", max_banding=3)
    with pytest.raises(InputError, match="not -1"):
        vqaloop.build_ladder(clip, codec="h264", max_banding=-1)
    with pytest.raises(InputError, match="cambi measures banding alone"):
        vqaloop.build_ladder(clip, codec="h264", metric="cambi")
