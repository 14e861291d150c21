"""A ladder against fixed ones and others: scores interpolated on its measurements, and costs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import vqaloop
from tests.ladder.test_store import make_ladder
from tests.support.commandline import Room
from vqaloop.errors import InputError
from vqaloop.ladder.against import FIXED, set_against
from vqaloop.ladder.store import write_reports
from vqaloop.records import Ladder
from vqaloop.search.audience import Audience, Session

CROWD = Audience("test", (Session(1000, 0.5), Session(6000, 0.5)), 0.7)


@pytest.fixture
def made(tmp_path: Path) -> Ladder:
    (tmp_path / "a").mkdir()
    return make_ladder(tmp_path / "a")


def test_a_fixed_ladder_is_interpolated_on_the_title_s_own_measurements(made: Ladder) -> None:
    found = set_against(made, "apple", CROWD)
    # 1080p is larger than the source
    assert [rung.height for rung in found.b.rungs] == [234, 360, 432, 432, 540, 720, 720]
    by_rate = {rung.bitrate_kbps: rung for rung in found.b.rungs}
    # 365 kb/s lies between two trials of 640x360: CRF 35 and 39
    low, high = (410.7 * 2 ** (-4 / 6), 63.8 - 2.1 * 4), (410.7, 63.8)
    part = math.log(365 / low[0]) / math.log(high[0] / low[0])
    assert by_rate[365].basis == "size"
    assert by_rate[365].score == pytest.approx(low[1] + part * (high[1] - low[1]))
    # no trial of 960x540 has as much: the best of all sizes counts for it
    assert by_rate[2000].basis == "hull"
    assert 80.2 < by_rate[2000].score < 92.6
    # above all that was measured the score stays
    assert by_rate[4500].basis == "beyond"
    assert by_rate[4500].score == pytest.approx(92.6 + 2.1 * 3)
    assert "2 of 7 rungs at their own size" in found.notes[0]
    assert found.notes[1] == "left out: 2 rungs larger than the source"


def test_the_public_function_takes_what_the_command_takes(made: Ladder, tmp_path: Path) -> None:
    table = tmp_path / "crowd.csv"
    table.write_text("bandwidth_kbps,share\n1000,0.5\n6000,0.5\n")
    found = vqaloop.ladder_against(made, "apple", audience=table)
    known = set_against(made, "apple", CROWD)
    assert (found.a, found.b, found.gain) == (known.a, known.b, known.gain)
    half = vqaloop.ladder_against(made, "apple", audience=table, bandwidth_share=0.35)
    assert half.a.delivered.kbps < found.a.delivered.kbps
    own = replace(made, about={**made.about, "audience": CROWD.to_json()})
    assert vqaloop.ladder_against(own, "apple").a == known.a
    assert vqaloop.ladder_against(own, "apple", bandwidth_share=0.35).a == half.a
    with pytest.raises(InputError, match="neither apple nor netflix2015"):
        vqaloop.ladder_against(made, "nobody")


def test_what_the_audience_gets_and_what_it_costs(made: Ladder) -> None:
    found = set_against(made, "netflix2015", CROWD)
    # 700 and 4200 kb/s: its second and its highest rung
    assert found.a.delivered.score == pytest.approx((63.8 + 92.6) / 2)
    assert found.a.delivered.kbps == pytest.approx((410.7 + 2904.9) / 2)
    assert found.b.delivered.kbps == pytest.approx((560 + 3000) / 2)
    assert found.a.storage_kbps == pytest.approx(148.2 + 410.7 + 1120.4 + 2904.9)
    assert found.b.storage_kbps == 235 + 375 + 560 + 750 + 1050 + 1750 + 2350 + 3000
    document = found.to_json()
    assert document["score_gain"] == pytest.approx(found.gain, abs=1e-4)
    expected = 100 * (found.a.storage_kbps / found.b.storage_kbps - 1)
    assert document["storage_percent"] == pytest.approx(expected, abs=1e-3)


def test_other_codecs_take_the_last_table(made: Ladder) -> None:
    av1 = replace(made, about={**made.about, "codec": "av1"})
    found = set_against(av1, "apple", CROWD)
    assert found.b.rungs[0].bitrate_kbps == 145 and found.b.rungs[0].height == 360
    assert "its rates are for hevc, and the ladder is av1" in found.notes


@pytest.mark.parametrize("name", FIXED)
def test_fixed_ladders_ascend(name: str) -> None:
    for table in FIXED[name].rungs.values():
        assert list(table) == sorted(table, key=lambda rung: (rung[2], rung[0] * rung[1]))
        assert [w * h for w, h, _ in table] == sorted(w * h for w, h, _ in table)


def test_a_small_source_has_the_lowest_rung(made: Ladder) -> None:
    source = {**made.about["source"], "width": 160, "height": 90}
    small = replace(made, about={**made.about, "source": source})
    (rung,) = set_against(small, "apple", CROWD).b.rungs
    assert (rung.width, rung.height, rung.bitrate_kbps) == (160, 90, 145)


def test_another_ladder(made: Ladder, room: Room) -> None:
    (room.folder / "b").mkdir()
    other = make_ladder(room.folder / "b")
    rungs = [replace(r, bitrate_kbps=r.bitrate_kbps * 1.5) for r in other.rungs]
    write_reports(replace(other, rungs=tuple(rungs)))
    write_reports(made)
    found = set_against(made, str(room.folder / "b" / "ladder.json"), CROWD)
    assert found.b.storage_kbps == pytest.approx(1.5 * found.a.storage_kbps)
    # at 1.5 times the rate the dearer session no longer affords the highest
    assert found.gain == pytest.approx((92.6 - 80.2) / 2)
    pooled = {**made.about, "metric": {**made.about["metric"], "pool": "p5"}}
    with pytest.raises(InputError, match="the metric of one is internvqa-mini, anchored, by p5"):
        set_against(replace(made, about=pooled), "b", CROWD)
    with pytest.raises(InputError, match="neither apple nor netflix2015 nor a ladder"):
        set_against(made, "hulu", CROWD)


def test_the_command(made: Ladder, room: Room) -> None:
    write_reports(made)
    table = room.folder / "mine.csv"
    table.write_text("bandwidth_kbps,share\n1000,1\n6000,1\n")
    words = ("report", made.folder, "--against", "apple")
    said = room.run(*words, "--audience", table, "--json", "out.json")
    assert said.status == 0, said.err
    document = json.loads((room.folder / "out.json").read_text())
    assert document["schema"] == "vqaloop.ladder-against/1"
    assert document["audience"]["sessions"] == [[1000.0, 0.5, None], [6000.0, 0.5, None]]
    assert document["a"]["score"] == pytest.approx((63.8 + 92.6) / 2, abs=1e-3)
    assert "mean score" in said.out and "78.20" in said.out
    assert "audience mine.csv, by 70% of each session's bandwidth" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    default = room.run(*words, "--bandwidth-share", "0.8")
    assert "audience default, by 80% of each" in default.out
    # a ladder made for an audience is set against others for it
    own = {"score": 1.0, "bitrate_kbps": 1.0, "unserved": 0.0, **CROWD.to_json()}
    write_reports(replace(made, about={**made.about, "audience": own}))
    assert "audience test, by 70% of each" in room.run(*words).out
    assert room.run(*words, "--bandwidth-share", "3").status == 2
    assert "are of --against" in room.run("report", made.folder, "--audience", table).err
    assert "--against takes one ladder" in room.run(*words, "--html", "x.html").err
