"""Tables of opinion scores, the files they speak of, and splits."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqaloop.errors import InputError
from vqaloop.training.datasets import (
    AUTHORS,
    AVT,
    BVI_HD,
    WATERLOO,
    find,
    held_out,
    read_dataset,
    read_waterloo,
    score_of_dmos,
)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# tables


@pytest.mark.parametrize("comma", [", ", ",", "  ", "\t", ";"])
@pytest.mark.parametrize(
    "header", ["", "encoder, video_number, resolution, level, mos\n", "a, b, c, d, MOS \n\n"]
)
def test_waterloo_rows_are_all_read_with_and_without_header(
    tmp_path: Path, header: str, comma: str
) -> None:
    rows = "HEVC, 1, 540p, 1, 18.21\n\nAVC, 20, 2160p, 4, 97 \nAVS2, 03, 1920x1080, 2, 7.61"
    write(tmp_path / "scores.txt", (header + rows).replace(", ", comma))
    write(tmp_path / "h264" / "20" / "3840X2160_4.MKV", "")
    write(tmp_path / "hevc" / "01" / "960x540_1.yuv", "")
    write(tmp_path / "Sources" / "3-tall.y4m", "")
    dataset = read_waterloo(tmp_path)
    assert (dataset.name, dataset.label, dataset.expected) == ("waterloo", WATERLOO, 1200)
    first, second, third = dataset.videos
    assert (first.content, first.encoder, first.width, first.height, first.level) == (
        "waterloo-01", "hevc", 960, 540, 1,
    )  # fmt: skip
    assert (first.raw, first.score) == (18.21, 18.21)
    assert first.path == tmp_path / "hevc" / "01" / "960x540_1.yuv"
    assert (second.encoder, second.raw) == ("h264", 97)
    assert second.path == tmp_path / "h264" / "20" / "3840X2160_4.MKV"
    assert third.path == tmp_path / "AVS2" / "03" / "1920x1080_2.mp4"
    assert dataset.sources == {"waterloo-03": tmp_path / "Sources" / "3-tall.y4m"}
    found = find(dataset)
    assert found.videos == (first, second) and found.missing == (third.path,)
    assert found.encoders == {"avs2": (0, 1), "h264": (1, 1), "hevc": (1, 1)}
    assert str(found).startswith("2 of 1200 videos found (avs2 0/1, h264 1/1, hevc 1/1)")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("HEVC, 1, 540p, 1", "line 2 has 4 fields"),
        ("HEVC, 1, 540p, 1, high", "line 2: MOS 'high' is not a number from 0 to 100"),
        ("HEVC, 1, 540p, 1, 100.5", "MOS '100.5'"),
        ("HEVC, 1, 540p, 1, nan", "MOS 'nan'"),
        ("HEVC, 1, 540p, 1, 1_0", "MOS '1_0'"),
        ("HEVC, one, 540p, 1, 5", "content 'one' is not a whole number"),
        ("HEVC, 1, 540p, -1, 5", "level '-1'"),
        ("HEVC, 1, 540i, 1, 5", "'540i' is no resolution"),
        ("../HEVC, 1, 540p, 1, 5", "'../HEVC' is no encoder"),
        ("AV1, 2, 540p, 1, 5", "videos twice"),
        ('AV1, "2, 540p, 1, 5', "check its quotes"),
        ("AV1, 2, 540p\0, 1, 5", "line 2 holds a control character"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    table = write(tmp_path / "scores.txt", f"AV1, 2, 540p, 1, 5\n{row}\n")
    with pytest.raises(InputError) as caught:
        read_waterloo(tmp_path)
    assert message in str(caught.value) and str(table) in str(caught.value)


HOSTILE = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.lists(
            st.sampled_from(
                ["path", "score", "content", "Name", "dmos", "mos", "1", "5", "540p", "-2"]
                + [
                    "1e999",
                    "٣",
                    "../../x",
                    "/etc/passwd",
                    '"',
                    "HEVC",
                    "",
                    "a_b",
                    "\u2028",
                    "C:\\",
                ]
            ),
            max_size=6,
        ).map(", ".join),
        max_size=5,
    ).map(lambda lines: "\n".join(lines).encode()),
)


@pytest.mark.parametrize("kind", ["waterloo", "bvi-hd", "avt-vqdb", "csv"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=HOSTILE)
def test_hostile_tables_are_read_or_refused_in_words(
    tmp_path: Path, kind: str, data: bytes
) -> None:
    names = {"waterloo": "scores.txt", "bvi-hd": "BVIHD.txt", "avt-vqdb": "AVT_clean.txt"}
    table = tmp_path / names.get(kind, "table.csv")
    table.write_bytes(data)
    try:
        dataset = read_dataset(kind, table if kind == "csv" else tmp_path)
    except InputError as error:
        assert str(tmp_path) in str(error)
    else:
        assert dataset.videos and all(0 <= video.score <= 100 for video in dataset.videos)
        assert kind == "csv" or all(v.path.is_relative_to(tmp_path) for v in dataset.videos)
        assert all(".." not in v.path.parts for v in dataset.videos) or kind == "csv"
        find(dataset)


def test_bvi_hd_as_the_authors_of_internvqa_list_it(tmp_path: Path) -> None:
    write(
        tmp_path / "BVIHD.txt",
        "Original_Name,Name,dmos,encoder,distortion_level\n"
        "Bookcase_1920x1080_60fps,Bookcase_1920x1080_60fps_HEVC_QP22,-5.5,HEVC,1\n"
        "Bookcase_1920x1080_60fps,Bookcase_1920x1080_60fps_x.mp4,64.67,HEVC-SYNTH,6\n",
    )
    path = write(tmp_path / "HEVC" / "Bookcase_1920x1080_60fps_HEVC_QP22.yuv", "")
    source = write(tmp_path / "ORIG" / "Bookcase_1920x1080_60fps.yuv", "")
    dataset = read_dataset("bvi-hd", tmp_path)
    better, worse = dataset.videos
    assert (dataset.expected, dataset.label, dataset.sources) == (
        384,
        BVI_HD,
        {"Bookcase": source},
    )
    assert better.path == path and worse.path.parent.name == "HEVC-SYNTH"
    assert (better.content, better.encoder, better.width, better.level, better.raw) == (
        "Bookcase", "hevc", 1920, 1, -5.5,
    )  # fmt: skip
    assert better.score > worse.score


def test_bvi_hd_as_a_folder_with_a_csv(tmp_path: Path) -> None:
    write(tmp_path / "dmos.csv", "file,DMOS\nToys_1920x1080_50fps_HEVC_QP37.yuv,29.7\n")
    path = write(tmp_path / "hevc" / "Toys_1920x1080_50fps_HEVC_QP37.yuv", "")
    (video,) = read_dataset("bvi-hd", tmp_path).videos
    assert video.path == path
    assert (video.content, video.encoder, video.level) == ("Toys", "hevc", 37)
    write(tmp_path / "second.csv", "")
    with pytest.raises(InputError, match=r"no bvihd\.txt and 2 \.csv files"):
        read_dataset("bvi-hd", tmp_path)


@given(st.lists(st.floats(-10, 100), min_size=2, max_size=2))
def test_dmos_is_turned_round_by_a_straight_line(pair: list[float]) -> None:
    low, high = sorted(pair)
    assert 100 >= score_of_dmos(low) >= score_of_dmos(high) >= 0
    assert score_of_dmos(low) - score_of_dmos(high) == pytest.approx((high - low) / 1.1)


@pytest.mark.parametrize("header", ["", "video_name,mos\n"])
def test_avt_grades_become_scores_and_excerpts_share_a_title(tmp_path: Path, header: str) -> None:
    write(
        tmp_path / "AVT_clean.txt",
        header + "water_netflix_200kbps_360p_60.0fps_h264.mp4,1\n"
        "segments/water_netflix_8s_40000kbps_2160p_60.0fps_vp9.mkv,4.6\n",
    )
    path = write(tmp_path / "test_1" / "water_netflix_200kbps_360p_60.0fps_h264.mp4", "")
    dataset = read_dataset("avt-vqdb", tmp_path)
    first, second = dataset.videos
    assert (first.content, first.encoder, first.score) == ("water_netflix", "h264", 0)
    assert (second.content, second.encoder) == ("water_netflix_8s", "vp9")
    assert second.score == pytest.approx(90)
    assert dataset.title(second.content) == "water_netflix" and dataset.label == AVT
    assert find(dataset).videos == () and path.exists()


def test_any_table_with_path_score_and_content(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere" / "b.mp4", "")
    table = write(
        tmp_path / "set" / "scores.csv",
        'Path,Score,Content,Encoder,Level,Reference\n"a, 1.mp4",4,x,AVC,2,../r.mp4\n'
        f"{elsewhere},1,y,,,\n",
    )
    write(tmp_path / "r.mp4", "")
    dataset = read_dataset("csv", table, "1:5")
    first, second = dataset.videos
    assert first.path == tmp_path / "set" / "a, 1.mp4" and first.score == 75
    assert (first.encoder, first.level, second.encoder, second.level) == ("h264", 2, None, None)
    assert list(dataset.sources) == ["x"] and find(dataset).videos == (second,)
    assert [v.score for v in read_dataset("csv", table, "100:0").videos] == [96, 99]
    for scale in ("5:5", "1-5", "nan:1"):
        with pytest.raises(InputError, match="scale"):
            read_dataset("csv", table, scale)
    with pytest.raises(InputError, match="line 2: score '4' is not a number from 0 to 1"):
        read_dataset("csv", table, "0:1")
    with pytest.raises(InputError, match="--scale is for csv"):
        read_dataset("waterloo", tmp_path, "1:5")
    with pytest.raises(InputError, match="choose one of waterloo"):
        read_dataset("konvid", tmp_path)


# splits


@dataclass(frozen=True)
class Piece:
    content: str
    label: str = WATERLOO


WHOLE = [Piece(f"waterloo-{i:02}") for i in range(1, 21)]


def test_the_authors_hold_out_contents_1_to_4_and_six_of_bvi_hd() -> None:
    assert held_out(WHOLE, "authors") == {f"waterloo-0{i}" for i in (1, 2, 3, 4)}
    both = [Piece("Music", BVI_HD), Piece("Toys", BVI_HD)]
    assert held_out(both, "authors") == {"Music"} and len(AUTHORS[BVI_HD]) == 6
    for pieces in (WHOLE[4:], WHOLE[:4], [Piece("a", "opinion scores of x")]):
        with pytest.raises(InputError, match="one side empty"):
            held_out(pieces, "authors")


@given(st.integers(2, 20), st.integers(0, 9))
def test_folds_are_disjoint_and_cover_all_titles(parts: int, seed: int) -> None:
    folds = [held_out(WHOLE * 2, f"fold {k}/{parts}", seed) for k in range(1, parts + 1)]
    assert sum(map(len, folds)) == 20
    assert frozenset().union(*folds) == {piece.content for piece in WHOLE}
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


def test_folds_follow_the_seed() -> None:
    assert held_out(WHOLE, "fold 1/5") == held_out(WHOLE[::-1], "fold 1/5")
    assert held_out(WHOLE, "fold 1/5") != held_out(WHOLE, "fold 1/5", seed=1)
    for kind in ("fold 0/5", "fold 6/5", "fold 1/1", "fold 1/21", "half", "fold 1/5 "):
        with pytest.raises(InputError, match="split"):
            held_out(WHOLE, kind)
