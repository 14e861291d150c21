"""The bench of the panel: its material, its measurements on a tiny clip, its figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from bench import gaming, panel, panel_jobs, panel_labels, panel_material, panel_table
from tests.support.media import make_clip
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.resources import WEIGHTS
from vqaloop.encoding.encode import encode as encoded
from vqaloop.errors import InputError
from vqaloop.media.probe import probe_source
from vqaloop.panel.labels import LABELS
from vqaloop.panel.measure import PanelTools
from vqaloop.panel.soft_minimum import Member, Panel
from vqaloop.quality import full_reference
from vqaloop.training.attacks import ATTACKS

XPSNR = Panel((Member("xpsnr", ((0.0, 10.0), (80.0, 30.0), (100.0, 40.0))),))
"""A panel that puts an XPSNR of 30 dB at 80 points at most."""


def weights(path: Path, **header: str) -> Path:
    """The shipped student with more in its header, and no other panel."""
    with safe_open(WEIGHTS / "internvqa-mini.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        known = {k: v for k, v in (file.metadata() or {}).items() if k != "panel"}
        save_file(tensors, path, known | header)
    return path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One encoder, two kinds of damage and one trick."""
    monkeypatch.setattr(panel_jobs, "ENCODERS", (("libx264", "veryfast"),))
    kinds = {name: ATTACKS[name] for name in ("luma flicker", "posterised")}
    monkeypatch.setattr(panel_jobs, "ATTACKS", kinds)
    tricks = {name: gaming.TRICKS[name] for name in ("plain", "chroma-qp-offset +12")}
    monkeypatch.setattr(gaming, "TRICKS", tricks)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_all_parts_of_a_tiny_clip_and_the_bench_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "tiny.y4m", size="240x160", frames=24)
    file = weights(tmp_path / "new.safetensors", panel=XPSNR.to_json())
    out = tmp_path / "out"
    words = [str(clip), f"--out={out}", f"--panel={file}", "--heights=160", "--seconds=1"]
    judges = "--judges=vmaf-sampled,vmaf,vmaf-v1,vmaf-neg,xpsnr,psnr"
    assert panel.main([*words, judges]) == 0
    text, table = capsys.readouterr().out, pd.read_csv(out / "table.csv")
    assert text == (out / "panel.md").read_text() + "\n"
    for heading in ("Against panel", "Against v1", "Loss of a ladder", "Damage", "Tricks", "CPU"):
        assert heading in text
    assert table.groupby("part").size().to_dict() == {
        **{"agreement": 9, "attacks": 6, "cost": 1, "gaming": 8}
    }
    measured = table[table.part != "cost"]
    columns = ["panel", *panel_labels.CHEAP, "vmaf-sampled", "cpu vmaf-sampled"]
    assert measured[columns].notna().all().all()
    assert (measured.panel <= measured.v1 + 1e-3).all()
    # VMAF v1 passes flicker over, which is 24 dB: the panel does not
    own = measured[measured.encode == "luma flicker 1"].iloc[0]
    assert own.v1 > 95 and own.xpsnr < 30 and own.panel < 80
    assert "| luma flicker | 3 | 3 |" in text
    cost = table[table.part == "cost"].iloc[0]
    assert cost["cpu vmaf"] > 0 and cost["cpu vmaf-sampled"] > 0
    assert cost["once vmaf-sampled"] >= 0
    assert not [path.name for path in out.iterdir() if path.suffix in (".y4m", ".mp4")]

    def remade(*_: object) -> None:
        raise AssertionError("made again")

    with monkeypatch.context() as patched:
        patched.setattr(panel.Bench, "_look_closer", remade)
        patched.setattr(panel_jobs.Original, "frames", property(remade))
        whole = (out / "panel.csv").read_bytes()
        assert panel.main([*words, judges]) == 0
        assert (out / "panel.csv").read_bytes() == whole
    # another judge adds a column, and labels are not measured again
    monkeypatch.setattr(panel_labels, "measure_frames", remade)
    monkeypatch.setattr(panel_jobs, "FRACTIONS", (1,))
    assert panel.main([*words, "--parts=agreement", f"--judges=vmaf-sampled,new={file}"]) == 0
    again = pd.read_csv(out / "panel.csv")
    assert again["new"].notna().sum() == again["cpu new"].notna().sum() == 3
    assert "| new | 3 |" in capsys.readouterr().out


def test_labels_of_frames_are_those_of_the_files(tmp_path: Path) -> None:
    ffmpeg = ffmpeg_path()
    clip = make_clip(tmp_path / "tiny.y4m", size="240x160", frames=6)
    opened = panel_jobs.open_clip(clip, "tiny", "-", 5, ffmpeg)
    original = panel_jobs.Original(opened, tmp_path / "x", ffmpeg)
    original.folder.mkdir()
    job = next(
        job for job in panel_jobs.jobs_of(opened, ["agreement"], 3) if job.size != (240, 160)
    )
    made = job.make(original)
    table = panel_labels.measure_frames(original.frames, made.frames, ffmpeg=ffmpeg, uhd=False)
    names = ["vmaf", "vmaf-v1", "vmaf-neg", "xpsnr", "psnr"]
    found = full_reference.measure(original.source, made.path, names, ffmpeg=ffmpeg)
    assert len(table) == 5
    for name, score in found.items():
        column = table[panel_table.MEASURED.get(name, name)].to_numpy()
        assert column == pytest.approx(np.array(score.clips), abs=1e-4), name


def test_failed_encodes_are_named_and_left_out(
    tmp_path: Path, few: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "tiny.y4m", size="240x160", frames=4)

    def encode(source, rendition, out, **options):  # type: ignore[no-untyped-def]
        if rendition.width == 160:
            raise InputError("no such size")
        return encoded(source, rendition, out, **options)

    monkeypatch.setattr(panel_jobs, "encode", encode)
    words = [str(clip), f"--out={tmp_path / 'out'}", "--parts=agreement", "--judges=vmaf,psnr"]
    assert panel.main(words) == 1
    said = capsys.readouterr()
    assert "160x106" in said.err and "no such size" in said.err and "3 files are left" in said.err
    assert "6 encodes of 1 titles" in said.out


def test_what_cannot_be_done_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / "tiny.y4m", frames=2)
    bare = weights(tmp_path / "bare.safetensors")
    for words, status, message in (
        ([], 2, "no clips"),
        ([str(clip), "--judges=netflix"], 2, "unknown: netflix"),
        ([str(clip), "--judges=new=none.safetensors"], 2, "no such file: none.safetensors"),
        ([str(clip), "--parts=all"], 2, "unknown: all"),
        ([str(clip), f"--panel={bare}"], 1, "its header has no panel"),
    ):
        with pytest.raises(SystemExit) as refused:
            panel.main([*words, f"--out={tmp_path}"])
        assert refused.value.code == status and message in capsys.readouterr().err


def test_the_fused_label_is_pooled_over_time_by_the_power_of_the_weights(tmp_path: Path) -> None:
    table = pd.DataFrame({"v1": [100.0, 100, 100, 60], "xpsnr": [40.0, 40, 30, 40]})
    header = {"panel": XPSNR.to_json(), "heads": json.dumps({"time_power": 1.0})}
    mean = panel_labels.read_fusion(weights(tmp_path / "a.safetensors", **header))
    assert mean.label(table, ["v1", "xpsnr"]) == pytest.approx(100 - (20 + 40) / 4)
    assert mean.label(table, ["v1"]) == pytest.approx(90)
    header["heads"] = json.dumps({"time_power": 2.0})
    other = panel_labels.read_fusion(weights(tmp_path / "b.safetensors", **header))
    assert other.label(table, ["v1", "xpsnr"]) == pytest.approx(100 - ((400 + 1600) / 4) ** 0.5)


def test_a_value_stands_for_the_frames_around_it() -> None:
    nan = np.nan
    found = panel_labels.nearest(np.array([nan, 2.0, nan, nan, nan, 5.0, nan]))
    assert found.tolist() == [2, 2, 2, 2, 5, 5, 5]
    assert np.isnan(panel_labels.nearest(np.full(3, nan))).all()


def test_dear_judges_see_runs_over_all_of_the_time_and_parts_of_large_pictures() -> None:
    frames = np.zeros((20, 1080, 1280), np.uint8)
    frames += np.arange(20, dtype=np.uint8)[:, None, None]
    runs = panel_labels.runs_of(frames, frames + 1)
    assert runs.starts == [4, 11]
    for start, one, other in zip(runs.starts, runs.reference, runs.distorted, strict=True):
        assert one[:, 0, 0].tolist() == list(range(start, start + 5))
        assert (other == one + 1).all()
        height, width = one.shape[1] * 2 // 3, one.shape[2]
        assert 0.98 < height * width / panel_labels.MOST_PIXELS < 1.02
        assert width / height == pytest.approx(1280 / 720, rel=0.02)
    small = np.zeros((3, 120, 160), np.uint8)
    assert [run.shape for run in panel_labels.runs_of(small, small).reference] == [small.shape] * 2


def test_dear_judges_are_asked_only_where_the_others_see_nothing(
    tmp_path: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "tiny.y4m", size="240x160", frames=24)
    file = weights(tmp_path / "new.safetensors", panel=XPSNR.to_json())
    asked: list[str] = []

    def pictures(table: pd.DataFrame, runs: panel_labels.Runs, tools: PanelTools) -> pd.DataFrame:
        values = np.full(len(table), np.nan)
        values[runs.starts[0]] = 90.0
        return table.assign(ssimulacra2=values)

    plain = panel_labels.write

    def write(path: Path, table: pd.DataFrame) -> None:
        if "ssimulacra2" in table:
            asked.append(path.stem)
        plain(path, table)

    monkeypatch.setattr(panel_labels, "measure_pictures", pictures)
    monkeypatch.setattr(panel_labels, "write", write)
    words = [str(clip), f"--out={tmp_path / 'out'}", f"--panel={file}", "--judges=xpsnr"]
    words += ["--ssimulacra2", "--every=4"]
    assert panel.main([*words, "--parts=agreement,attacks"]) == 0
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    encodes, damaged = (table[table.part == part] for part in ("agreement", "attacks"))
    assert encodes["ssimulacra2"].notna().tolist() == [True, *[False] * 3] * 2 + [True]
    unseen = damaged[damaged.ssimulacra2.notna()]
    assert 0 < len(unseen) < len(damaged)
    assert (unseen.panel >= 92).all() and (damaged.drop(unseen.index).panel < 92).all()
    assert len(asked) == len(set(asked)) == 3 + len(unseen)


def encodes(sizes: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Encodes whose label is `a` + `b` log2 of the rate, by size; one judge prefers the size s,
    the other has all in the label's order."""
    rows = []
    for size, (a, b) in sizes.items():
        for step in range(4):
            kbps = 100 * 2**step
            rows.append({"size": size, "kbps": float(kbps), "v1": a + b * np.log2(kbps)})
    table = pd.DataFrame(rows)
    return table.assign(fond=table.v1 + 9 * (table["size"] == "s"), exact=table.v1 / 2)


def test_loss_is_what_a_wrong_size_costs() -> None:
    # the large size is 3 points, or 2^0.5 in rate, better throughout
    table = encodes({"l": (0.0, 6.0), "s": (-3.0, 6.0)})
    assert panel_table.loss(table, "exact", "v1") == pytest.approx((0, 0))
    found = panel_table.loss(table, "fond", "v1")
    assert found is not None and found[1] == pytest.approx(3, abs=1e-6)
    # at the lowest rates no less rate can be had
    assert 0.75 * 41.4 < found[0] < 41.5
    # curves that cross at 400 kb/s: half of the rates are chosen well
    table = encodes({"l": (-3 * np.log2(400), 9.0), "s": (0.0, 6.0)})
    mixed = panel_table.loss(table, "fond", "v1")
    # 3 points a doubling beyond 400 kb/s, of which there is one, and two octaves in three without
    assert mixed is not None and mixed[1] == pytest.approx(3 / 2 / 3, abs=0.05)
    assert panel_table.loss(table[table["size"] == "l"], "fond", "v1") is None
    assert panel_table.loss(table.iloc[:6], "fond", "v1") is None


def test_who_sees_what_the_panel_sees() -> None:
    table = pd.DataFrame(
        {
            "encode": ["grain 0.25", "grain 1", "grey 0.25", "grey 1"],
            "clip": "a",
            "panel": [95.0, 80, 91.9, 50],
            "xpsnr": [34.0, 30, 36, 36],
            "new": [99.0, 70, 93, 60],
        }
    )
    text = panel_table.attacked(table, ["new", "xpsnr"])
    assert "| grain | 2 | 1 | 1 | 1 |" in text and "| grey | 2 | 2 | 1 | 0 |" in text
    assert "| all | 4 | 3 | 2 | 1 |" in text and "| 66.7 % | 33.3 % |" in text
    assert "| seen, and not by the panel |  |  | 0 | 1 |" in text


def test_agreement_by_hand() -> None:
    rng = np.random.default_rng(0)
    count = 60
    label = rng.uniform(20, 95, count)
    titles = np.repeat([f"t{i}" for i in range(6)], 10)
    shift = np.repeat(rng.normal(0, 5, 6), 10)
    table = pd.DataFrame(
        {
            **{"part": "agreement", "set": "third", "title": titles, "clip": titles},
            **{"canvas": "640x360", "size": "640x360", "kbps": 1.0, "encode": "libx264 a"},
            **{"panel": label, "v1": label, "cambi": 100 - label, "new": label + shift},
            "xpsnr": 30 + 8 * np.arctanh((label - 50) / 100),
        }
    )
    text = panel_table.markdown(table, ["new", "xpsnr"], ["a b"])
    assert "python -m bench.panel 'a b'" in text
    assert "60 encodes of 6 titles (third)" in text
    row = next(line for line in text.splitlines() if line.startswith("| new | 60"))
    cells = [cell.strip() for cell in row.split("|")]
    assert float(cells[5].split()[0]) == pytest.approx(np.sqrt((shift**2).mean()), abs=0.006)
    assert cells[7].startswith("0.00 (0.00 to 0.00)")
    # dB are mapped before they are held against points
    row = next(line for line in text.splitlines() if line.startswith("| xpsnr | 60"))
    assert float(row.split("|")[5].split()[0]) < 1.5
    # CAMBI is worse where it is higher
    assert "| xpsnr | 1.000 / 1.000 | 1.000 / 1.000 | 1.000 / 1.000 |" in text
    assert list(LABELS) == [
        "v1",
        "neg",
        "v0.6.1",
        "cambi",
        "xpsnr",
        "ssimulacra2",
        "fdim",
        "cvvdp",
    ]


def test_clips_are_spread_and_large_ones_left_out() -> None:
    class Named:
        def __init__(self, number: int) -> None:
            self.number, self.large, self.frames = number, number == 3, 40 - 30 * (number == 8)

    clips = [Named(number) for number in range(9)]
    chosen = panel.spread(clips, 2)  # type: ignore[arg-type]
    assert [clip.number for clip in chosen] == [1, 6]  # type: ignore[attr-defined]
    assert len(panel.spread(clips, 20)) == 7  # type: ignore[arg-type]
    assert not panel.spread(clips, 0)  # type: ignore[arg-type]


def material(folder: Path) -> list[str]:
    """Folders of clips and stills with manifests; the options that name them."""
    clips, stills = folder / "clips", folder / "stills"
    for place in (clips, stills):
        place.mkdir()
    groups = {"b1": "beach", "a": "alley", "c": "city", "b2": "beach", "d": "dunes", "x": "xray"}
    rows = [
        {"file": f"{name}.mp4", "group": g, "licence_basis": "explicit" if name == "x" else "repo"}
        for name, g in groups.items()
    ]
    pd.DataFrame(rows).to_csv(clips / "MANIFEST.csv", index=False)
    rng, rows = np.random.default_rng(0), []
    for number in range(8):
        pixels = rng.integers(0, 255, (64 + 16 * (number % 2), 96, 3), np.uint8)
        Image.fromarray(pixels).save(stills / f"s{number}.png")
        rows.append({"file": f"s{number}.png", "licence_basis": "repo"})
    pd.DataFrame(rows).to_csv(stills / "MANIFEST.csv", index=False)
    return [f"--clips={clips}", f"--stills={stills}"]


def test_titles_alternate_between_the_sets_and_montages_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_material, "SIZES", ((160, 90), (240, 136)))
    words, out = material(tmp_path), tmp_path / "out"
    assert panel_material.main([*words, f"--out={out}", "--frames=4"]) == 0
    table = pd.read_csv(out / "titles.csv")
    # both clips of the beach are of one title; what was trained on is in no set
    assert dict(zip(table.title, table.set, strict=True)) == {
        **{"alley": "validation", "beach": "third", "city": "validation", "dunes": "third"},
        **{"montage-third-90": "third", "montage-third-136": "third"},
    }
    assert len(table) == 7 and panel.read_titles(out / "titles.csv", "validation")[0][1] == "alley"
    first = (out / "montage-third-90.y4m").read_bytes()
    source = probe_source(out / "montage-third-136.y4m", ffmpeg=ffmpeg_path())
    assert (source.canvas, source.frames) == ((240, 136), 4)
    (out / "montage-third-90.y4m").unlink()
    assert panel_material.main([*words, f"--out={out}", "--frames=4"]) == 0
    assert (out / "montage-third-90.y4m").read_bytes() == first
    with pytest.raises(SystemExit, match="no titles of the set fourth; it has third, validation"):
        panel.read_titles(out / "titles.csv", "fourth")


def test_stills_keep_their_pixels_and_the_camera_moves_by_parts_of_one() -> None:
    rng = np.random.default_rng(1)
    pictures = [torch.from_numpy(rng.random((3, tall, 40), np.float32)) for tall in (32, 36)]
    picture = panel_material.laid(pictures, (90, 60))
    assert picture.shape == (3, 60, 90)
    assert torch.equal(picture[:, :32, :40], pictures[0])
    assert torch.equal(picture[:, :32, 40:80], pictures[1][:, 2:34])
    assert torch.equal(picture[:, 32:, :40], pictures[1][:, 2:30])
    # over a slope a camera that moves by v sees it v steeper
    slope = torch.linspace(0.2, 0.8, 200).expand(3, 100, 200)
    frames = list(panel_material.pan(slope, (128, 64), 9))
    assert [frame.shape for frame in frames] == [(96, 128)] * 9
    step = 219 * 0.6 / 199 * panel_material.STEP[0]
    assert np.mean(frames[8][:64]) - np.mean(frames[0][:64]) == pytest.approx(8 * step, rel=0.05)
