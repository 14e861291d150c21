"""Judging a real, tiny corpus: answers, figures, files."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tests.support.lessons import CROPS, SHARDS, opinions
from tests.support.nets import shaken
from vqaloop.cli.main import main
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import InputError
from vqaloop.media.colour import to_clips
from vqaloop.models import create_student
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.student import Student
from vqaloop.models.weights import save_student
from vqaloop.quality.full_reference import measure_clips
from vqaloop.training.datasets import BVI_HD, WATERLOO
from vqaloop.training.evaluate import (
    ShardScores,
    _fewer_clips,
    clip_scores,
    crop_spread,
    evaluate,
    score_shards,
    summary,
)
from vqaloop.training.evaluation_report import figures_text, worst_titles, write_evaluation
from vqaloop.training.paper import PublishedRow, published_row
from vqaloop.training.shards import load_corpus, shard_paths, write_shard
from vqaloop.training.targets import Label

CPU = torch.device("cpu")
NAMES = ("v1", "xpsnr", "fdim")


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    student = create_student("internvqa-mini")
    shaken(student, scale=0.05)
    return student.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of four titles: five encodes, of more and more noise, and two that are damaged."""
    base = tmp_path_factory.mktemp("data")
    encodes = [
        {"encoder": ("x264", "x265")[e % 2], "width": 224, "height": (224, 112, 80)[e % 3]}
        for e in range(5)
    ]
    for seed, name in enumerate("abcd"):
        rng = np.random.default_rng(seed)
        rows: list[dict[str, Any]] = [
            {**row, "score": 95.0 - 15 * e + seed} for e, row in enumerate(encodes)
        ]
        for kind, score in (("flicker", 90.0), ("blur", 60.0)):
            damage = {"name": kind, "strength": 0.5}
            rows.append({"encoder": "x264", "score": score, "attack": damage})
        source = rng.integers(60, 180, (8, 2, 168, 112), np.int16)
        noise = (
            rng.normal(0, 1, (7, *source.shape)) * (np.arange(7) + 1)[:, None, None, None, None]
        )
        labels = np.empty((2, 7, 2, len(NAMES)), np.float32)
        labels[..., 0] = np.array([row["score"] for row in rows])[:, None]
        labels[..., 0] += [-2, 2]  # of the two places
        labels[0, ..., 0] += rng.normal(0, 2, (7, 2))
        labels[..., 1] = labels[..., 0] / 3 + 10
        labels[..., 2] = labels[..., 0] / 25 + 1
        labels[:, 5:, :, 2] = 1.5
        labels[1, ..., 2] = np.nan  # of regions alone
        arrays = {
            "distorted": (source + noise).clip(16, 235).astype(np.uint8),
            "reference": source.astype(np.uint8),
            "region_labels": labels[0],
            "frame_labels": labels[1],
        }
        scene = {"content": name, "canvas": [224, 224], "distances": [1, 5], "places": [0, 9]}
        path = base / f"{name}.safetensors"
        write_shard(path, arrays, scene, rows, "VMAF v1", labels=NAMES, region=4)
    return base


@pytest.fixture(scope="module")
def judged(student: Student, folder: Path) -> ShardScores:
    return score_shards(
        student,
        load_corpus([folder]),
        CPU,
        metrics=("psnr", "ssim", "xpsnr"),
        ffmpeg=ffmpeg_path(),
    )


def test_answers_are_the_student_s_own(
    student: Student, folder: Path, judged: ShardScores
) -> None:
    shard = load_corpus([folder])[0]
    assert shard.reference is not None
    with torch.inference_mode():
        look = student.look(
            to_clips(shard.distorted[1]), student.anchor(to_clips(shard.reference))
        )
        assert look.anchored is not None
        regions = [
            student.anchored_answers(*(x[4 * r : 4 * r + 4].sum(0) for x in look.anchored))[0]
            for r in range(2)
        ]
        whole = [
            student.alone_answers(*(x[4 * r : 4 * r + 4].sum(0) for x in look.alone))[0]
            for r in range(2)
        ]
    row = judged.table.iloc[1]
    assert (row["scene"], row["content"], row["encoder"]) == (
        shard.name,
        shard.content,
        shard.encodes[1]["encoder"],
    )
    assert row["label"] == shard.encodes[1]["score"]
    assert row["anchored"] == pytest.approx(100 * torch.stack(regions).mean().item(), abs=1e-3)
    assert row["alone"] == pytest.approx(100 * torch.stack(whole).mean().item(), abs=1e-3)
    assert abs(regions[0] - regions[1]) > 5e-5
    single = judged.regions.query("scene == @shard.name and encode == 1 and region == 1").iloc[0]
    assert single["anchored"] == pytest.approx(100 * regions[1].item(), abs=1e-3)
    assert shard.region_labels is not None
    assert single["label"] == pytest.approx(shard.region_labels[1, 1, 0].item())


def test_facts_of_each_encode_reach_its_score_without_reference(folder: Path) -> None:
    torch.manual_seed(0)
    informed = create_student("internvqa-mini", config=HeadConfig(bits=True))
    shaken(informed, scale=0.05)
    whole = load_corpus([folder])[0]
    rows = [{**row, "kbps": 40.0 * 3**e, "height": 112} for e, row in enumerate(whole.encodes)]
    shard = replace(whole, encodes=rows, fps=25.0)
    assert shard.stream[:5, 2].all() and not shard.stream[5:].any(), "of damaged ones none"
    known, unknown = (
        score_shards(informed.eval(), [x], CPU).table for x in (shard, replace(shard, fps=None))
    )
    assert known["anchored"].to_numpy() == pytest.approx(unknown["anchored"].to_numpy())
    gaps = (known["alone"] - unknown["alone"]).abs()
    assert (gaps[:5] > 1e-3).all() and (gaps[5:] == 0).all()
    with torch.inference_mode():
        sums, weights = informed.look(to_clips(shard.distorted[2])).alone
        regions = [
            informed.alone_answers(sums[part].sum(0), weights[part].sum(0), None, shard.stream[2])
            for part in (slice(4), slice(4, 8))
        ]
        single = informed.alone_answers(sums, weights, None, shard.stream[2])[:, 0]
    expected = 100 * torch.stack(regions)[:, 0].mean().item()
    assert known["alone"].iloc[2] == pytest.approx(expected, abs=1e-3)
    assert clip_scores(informed, shard, CPU, "alone")[2] == pytest.approx(
        100 * single.numpy(), abs=1e-3
    )


def test_many_clips_are_judged_as_few(
    student: Student, folder: Path, judged: ShardScores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqaloop.training.evaluate.CLIPS_AT_ONCE", 2)
    table = score_shards(student, load_corpus([folder]), CPU).table
    for column in ("anchored", "alone"):
        assert table[column].to_numpy() == pytest.approx(judged.table[column].to_numpy(), abs=1e-3)


def test_without_a_reference_or_heads_there_is_no_anchored_score(
    student: Student, folder: Path
) -> None:
    shard = load_corpus([folder])[0]
    bare = opinions(shard)
    paper = create_student("internvqa-mini", heads=False).eval()
    for judge_, shown in ((student, bare), (paper, shard)):
        table = score_shards(judge_, [shown], CPU, crops=2).table
        assert table["anchored"].isna().all() and table["alone"].notna().all()
        assert set(evaluate(table, draws=0)["judges"]) == {"alone"}
        assert not any(not key.startswith("alone_") for key in summary(table))


def test_figures_are_scipy_s_on_the_predictions_written(
    judged: ShardScores, tmp_path: Path
) -> None:
    found = evaluate(judged.table, judged.regions, draws=100)
    names = {path.name for path in write_evaluation(tmp_path, judged, found)}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert names == {
        "predictions.csv",
        "figures.json",
        "worst.csv",
        "worst.png",
        "scatter-anchored.png",
        "scatter-no-reference.png",
    }
    for name in names:
        if name.endswith("png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert len(table) == 28
    table = table[table["attack"].isna()]
    written = json.loads((tmp_path / "figures.json").read_text())
    assert (written["encodes"], written["titles"]) == (len(table), 4)
    assert set(written["judges"]) == {"anchored", "alone", "psnr", "ssim", "xpsnr"}
    for name, judge_ in written["judges"].items():
        overall, x, y = judge_["overall"], table[name], table["label"]
        assert overall["srcc"] == pytest.approx(stats.spearmanr(x, y).statistic)
        assert overall["krcc"] == pytest.approx(stats.kendalltau(x, y).statistic)
        assert overall["plcc"] == pytest.approx(stats.pearsonr(x, y).statistic)
        if name in ("anchored", "alone"):
            assert overall["rmse"] == pytest.approx(math.sqrt(((x - y) ** 2).mean()))
        inside = [
            stats.spearmanr(p[name], p["label"]).statistic for _, p in table.groupby("content")
        ]
        assert overall["within_srcc"] == pytest.approx(np.mean(inside))
        assert "srcc" in overall["intervals"]
        for kind in ("by_encoder", "by_size"):
            assert sum(f["count"] for f in judge_[kind].values()) == len(table)
    one = table["encoder"].iloc[0]
    rows = table[table["encoder"] == one]
    group = written["judges"]["anchored"]["by_encoder"][one]
    assert group["srcc"] == pytest.approx(stats.spearmanr(rows["anchored"], rows["label"])[0])
    assert written["judges"]["anchored"]["single_regions"]["count"] == 2 * len(table)


def test_the_worst_are_one_a_title_and_largest_first(judged: ShardScores, tmp_path: Path) -> None:
    write_evaluation(tmp_path, judged, evaluate(judged.table, draws=0))
    worst = pd.read_csv(tmp_path / "worst.csv")
    errors = (judged.table["anchored"] - judged.table["label"]).abs()
    assert worst_titles(judged.largest_errors)[0].distorted.shape == (336, 224)
    largest = errors.groupby(judged.table["content"]).max().sort_values(ascending=False)
    assert list(worst["content"]) == list(largest.index)
    assert worst["error"].to_numpy() == pytest.approx(largest.to_numpy())
    twins = [replace(miss, row={**miss.row, "content": "same"}) for miss in judged.largest_errors]
    assert worst_titles(twins) == twins[:1]


def test_the_table_keeps_to_eighty_columns(judged: ShardScores) -> None:
    table = judged.table.assign(encoder="an encoder of a very long name\x1b[31m")
    text = figures_text(evaluate(table, judged.regions, draws=50))
    assert all(len(line) <= 80 and "\x1b" not in line for line in text.splitlines())
    assert "no reference" in text and "regions" in text


def test_the_notes_explain_what_the_table_has_and_no_more(judged: ShardScores) -> None:
    full = figures_text(evaluate(judged.table, judged.regions, draws=50))
    for word in ("SRCC", "PLCC4", "RMSE5", "within:", "from, to:"):
        assert word in full
    # two encodes: no fit, no correlation, no interval
    some = judged.table.iloc[:2].drop(columns=["label_xpsnr", "label_v1", "label_fdim"])
    few = figures_text(evaluate(some, draws=0))
    assert "RMSE" in few and "no reference" in few
    for word in ("SRCC", "PLCC", "RMSE4", "within", "from", "mapping", " -\n"):
        assert word not in few, few


def test_each_label_is_compared_with_and_attacks_stand_apart(
    judged: ShardScores, tmp_path: Path
) -> None:
    found = evaluate(judged.table, judged.regions, draws=0)
    assert found["encodes"] == 20 and len(judged.table) == 28
    plain = judged.table[judged.table["attack"].isna()]
    for head in ("anchored", "alone"):
        labels = found["judges"][head]["labels"]
        assert set(labels) == set(NAMES)
        for name in NAMES:
            x, y = plain[head], plain[f"label_{name}"]
            assert labels[name]["srcc"] == pytest.approx(stats.spearmanr(x, y).statistic)
            assert labels[name]["plcc"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert labels["xpsnr"]["rmse"] is labels["fdim"]["within_sd"] is None
        gap = plain[head] - plain["label_v1"]
        assert labels["v1"]["rmse"] == pytest.approx(math.sqrt((gap**2).mean()))
        inside = gap - gap.groupby(plain["content"]).transform("mean")
        sd = math.sqrt((inside**2).sum() / (20 - 4))
        assert labels["v1"]["within_sd"] == pytest.approx(sd)
        assert found["judges"][head]["overall"]["within_sd"] == pytest.approx(sd, rel=0.01)
    # of regions alone: their own mean
    assert judged.table["label_fdim"].notna().all()
    seen = judged.table.assign(
        anchored=judged.table["attack"].map({"flicker": 95.0, "blur": 91.0}).fillna(50.0)
    )
    attacks = evaluate(seen, draws=0)["judges"]["anchored"]["attacks"]
    assert {name: row["noticed"] for name, row in attacks.items()} == {
        "all": 0.5, "blur": 1.0, "flicker": 0.0,
    }  # fmt: skip
    assert attacks["all"]["count"] == 8 and attacks["flicker"]["label"] == 90
    assert summary(seen)["noticed"] == 0.5 and summary(seen)["within_sd"] is not None
    text = figures_text(evaluate(seen, draws=0))
    assert ["flicker", "4", "90.0", "95.0", "0.00"] in [line.split() for line in text.splitlines()]
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_label_is_that_of_the_student(student: Student, folder: Path) -> None:
    shards = load_corpus([folder])
    scored = replace(shards[0], label="of scores")
    for label, kind in (
        (Label("v1"), "VMAF v1"),
        (Label("neg"), "of scores"),
        (None, "of scores"),
    ):
        table = score_shards(student, [scored], CPU, crops=4, label=label).table
        assert set(table["label_kind"]) == {kind}
        assert shards[0].frame_labels is not None
        # the region that is left is of the first place; a score is of the whole video
        whole = scored.scores if kind == "of scores" else shards[0].frame_labels[:, 0, 0]
        assert table["label"].to_numpy() == pytest.approx(whole.numpy(), abs=1e-4)


def test_few_regions_are_of_all_places() -> None:
    whole = replace(SHARDS[1], places=(0, 0, 9, 9), distances=(1, 1, 5, 5))
    few = _fewer_clips(whole, 2 * CROPS)
    assert (few.places, few.distances) == ((0, 9), (1, 5))
    assert few.reference is not None and whole.reference is not None
    kept = [0, 1, 6, 7]
    assert torch.equal(few.reference, whole.reference[kept])
    assert torch.equal(few.distorted, whole.distorted[:, kept])
    assert few.region_labels is not None and whole.region_labels is not None
    assert torch.equal(few.region_labels[..., 0], whole.region_labels[:, [0, 3], 0])
    assert _fewer_clips(whole, 1).distorted.shape[1] == CROPS
    assert _fewer_clips(whole, 99).places == whole.places


def test_labels_of_two_kinds_are_refused(judged: ShardScores) -> None:
    table = judged.table.copy()
    table.loc[0, "label_kind"] = "MOS of people"
    with pytest.raises(InputError, match="MOS of people, VMAF"):
        evaluate(table)


def test_constant_answers_have_no_correlation(judged: ShardScores) -> None:
    found = evaluate(judged.table.assign(anchored=50.0), draws=50)
    overall = found["judges"]["anchored"]["overall"]
    assert overall["srcc"] is None and overall["plcc4"] is None and overall["rmse"] > 0
    json.dumps(found, allow_nan=False)
    figures_text(found)


def test_bands_are_parts_of_the_scene_s_largest(judged: ShardScores) -> None:
    # the same in every scene but for its size, of which nothing may depend
    table = judged.table.assign(place=judged.table.groupby("scene").cumcount()).query("place < 3")
    larger = table["scene"].ne("a") + 1
    heights = table["place"].map({0: 100, 1: 50, 2: 40}) * larger
    found = evaluate(table.assign(height=heights), draws=0)
    bands = found["judges"]["alone"]["by_size"]
    assert {name: f["count"] for name, f in bands.items()} == {
        "full size": 4,
        "half or more": 4,
        "below half": 4,
    }
    unknown = evaluate(judged.table.assign(height=None, encoder=None), draws=0)
    assert set(unknown["judges"]["alone"]["by_size"]) == {"unknown"}


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labelled set"):
        shard_paths([tmp_path])


@pytest.mark.parametrize("count", [8, 9])
def test_crop_spread_is_the_error_of_a_mean_over_crops(count: int) -> None:
    """Of scores that are plain means: the standard deviation of the mean, over many encodes."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.randn(400, count, 1, generator=generator) * 0.1
    found = crop_spread(lambda s, w: s / w, sums, torch.ones_like(sums), np.random.default_rng(0))
    assert np.sqrt((found**2).mean()) == pytest.approx(10 / math.sqrt(count), rel=0.05)
    one = crop_spread(lambda s, w: s, sums[:, :1], sums[:, :1], np.random.default_rng(0))
    assert np.isnan(one).all()


def test_weights_that_give_no_number_are_refused(folder: Path) -> None:
    broken = create_student("internvqa-mini").eval()
    assert broken.alone is not None
    for parameter in broken.alone.fuse.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    with pytest.raises(InputError, match="no number for a"):
        score_shards(broken, load_corpus([folder]), CPU)


def test_titles_trained_on_are_left_out_unless_asked_for(
    student: Student, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, out = tmp_path / "w.safetensors", tmp_path / "deep" / "out"
    argv = ["evaluate", str(weights), str(folder), "--quiet", "--device", "cpu", "--crops", "1"]

    def judged(titles: str, *options: str) -> int:
        save_student(student, weights, "internvqa-mini", "VMAF v0.6.1", {"titles": titles})
        return main([*argv, *options])

    assert judged('["a", "c", "e"]', "--json", str(tmp_path / "f.json")) == 0
    assert json.loads((tmp_path / "f.json").read_text("utf-8"))["titles"] == 2
    assert "left out 2 scenes" in capsys.readouterr().out
    every = '["a", "b", "c", "d"]'
    assert judged(every, "--all", "--json", str(tmp_path / "f.json")) == 0
    assert json.loads((tmp_path / "f.json").read_text("utf-8"))["titles"] == 4
    assert judged(every, "-o", str(out)) == 2
    assert "was trained on all titles there" in capsys.readouterr().err
    for damaged in ("{", "3", "[3]"):
        assert judged(damaged) == 2
        assert "header does not say" in capsys.readouterr().err
    assert not out.parent.exists()
    assert judged("[]", "-o", str(out)) == 0
    assert (out / "figures.json").exists()


def test_clips_of_another_view_give_a_warning(
    student: Student, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, found = tmp_path / "w.safetensors", tmp_path / "f.json"
    argv = ["evaluate", str(weights), str(folder), "--quiet", "--device", "cpu", "--crops", "1"]
    view = {"kind": "native", "frames": 2, "stride": 4, "size": 112, "clips": 4, "seed": 0}
    for stride, warned in ((1, 0), (4, 1)):
        about = {"view": json.dumps({**view, "stride": stride})}
        save_student(student, weights, "internvqa-mini", "VMAF v0.6.1", about)
        assert main([*argv, "--json", str(found)]) == 0
        warnings = json.loads(found.read_text("utf-8")).get("warnings", [])
        assert len(warnings) == capsys.readouterr().out.count("warning: ") == warned
    assert "w.safetensors' are weights of native clips of 2 frames, 4 apart" in warnings[0]
    save_student(student, weights, "internvqa-mini", "VMAF v0.6.1", {"view": "{}"})
    assert main(argv) == 2
    assert f"header of weights '{weights}' has no view that is known" in capsys.readouterr().err


def test_a_folder_for_figures_is_made_when_there_are_some(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = create_student("internvqa-mini").eval()
    assert broken.alone is not None
    torch.nn.init.constant_(broken.alone.fuse[0].weight, math.nan)  # type: ignore[arg-type]
    weights, out = tmp_path / "w.safetensors", tmp_path / "out"
    save_student(broken, weights, "internvqa-mini", "", {})
    argv = ["evaluate", str(weights), str(folder), "--quiet", "--device", "cpu"]
    assert main([*argv, "-o", str(out)]) == 2 and not out.exists()
    assert "hold what is no finite number" in capsys.readouterr().err
    argv[1] = "internvqa-mini"
    assert main([*argv, "--all", "-o", str(weights / "below")]) == 2
    assert "cannot write in" in capsys.readouterr().err


def test_clips_are_measured_one_by_one() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(40, 200, (3, 2, 96, 64), dtype=np.uint8)
    noise = rng.integers(-9, 10, source.shape)
    coded = (source + noise * np.array([1, 2, 4])[:, None, None, None]).clip(0, 255).astype("u1")
    ffmpeg = ffmpeg_path()
    found = measure_clips(source, coded, ("psnr", "ssim", "xpsnr"), ffmpeg=ffmpeg)
    error = (source[:, :, :64].astype(float) - coded[:, :, :64]) ** 2
    expected = 10 * np.log10(255**2 / error.mean((2, 3)))
    assert found["psnr"] == pytest.approx(expected, abs=0.01)
    for name, values in found.items():
        alone = [
            measure_clips(source[i : i + 1], coded[i : i + 1], (name,), ffmpeg=ffmpeg)
            for i in range(3)
        ]
        assert values == pytest.approx(np.concatenate([each[name] for each in alone]), abs=1e-6)
        assert values[0].mean() > values[1].mean() > values[2].mean()
    with pytest.raises(InputError, match="uint8"):
        measure_clips(source.astype(float), coded.astype(float), ("psnr",), ffmpeg=ffmpeg)
    with pytest.raises(InputError, match="choose among"):
        measure_clips(source, coded, ("vmaf",), ffmpeg=ffmpeg)


VIEW = {"kind": "native", "frames": 2, "stride": 1, "size": 112, "clips": 3, "seed": 0}


def test_one_clip_a_video_is_judged_beside_all(student: Student, folder: Path) -> None:
    shards = [replace(opinions(s), view=VIEW) for s in load_corpus([folder])]
    shards = [
        replace(
            s, distorted=s.distorted[:, :3], encodes=[{"score": e["score"]} for e in s.encodes]
        )
        for s in shards
    ]
    table = score_shards(student, shards, CPU).table
    one = score_shards(student, shards, CPU, crops=1).table
    # of three clips the one in the middle, also where a single clip is asked for
    assert one["alone"].to_numpy() == pytest.approx(table["alone_centre"].to_numpy(), abs=1e-4)
    first = [replace(s, distorted=s.distorted[:, :1], reference=None) for s in shards]
    assert (score_shards(student, first, CPU).table["alone"] - one["alone"]).abs().max() > 1e-3
    found = evaluate(table, draws=0)
    srcc = stats.spearmanr(table["alone_centre"], table["label"]).statistic
    assert found["judges"]["alone"]["centre_clip"]["srcc"] == pytest.approx(srcc)
    assert "centre clip" in figures_text(found)
    crops = score_shards(student, load_corpus([folder]), CPU).table
    assert crops["alone_centre"].isna().all()
    assert "centre_clip" not in evaluate(crops, draws=0)["judges"]["alone"]


def test_published_figures_stand_beside_ours_for_a_row_of_the_table(judged: ShardScores) -> None:
    recipe = {"teacher": {"model": "internvqa-1b"}, "loss": {"feature": 1.0}, "split": "authors"}
    about = {"model": "internvqa-small", "label": WATERLOO, "recipe": json.dumps(recipe)}
    row = published_row(about, WATERLOO)
    assert row == PublishedRow("InternVQA-Small_dist", plcc=0.821, srcc=0.794, same_titles=True)
    alone = {**recipe, "teacher": None, "loss": {"feature": 0.0}, "split": "fold 1/5"}
    other = {**about, "label": BVI_HD, "recipe": json.dumps(alone)}
    assert published_row(other, BVI_HD) == PublishedRow("InternVQA-Small", 0.686, 0.630, False)
    for changes, label in (
        ({}, BVI_HD),
        ({"model": "internvqa-mini"}, WATERLOO),
        ({"recipe": "{"}, WATERLOO),
        ({"recipe": "{}"}, WATERLOO),
        ({"recipe": json.dumps({**recipe, "loss": {"feature": 0}})}, WATERLOO),
    ):
        assert published_row({**about, **changes}, label) is None
    document = {**evaluate(judged.table, draws=0), "paper": asdict(row)}
    lines = [line.split() for line in figures_text(document).splitlines()]
    assert ["theirs", "0.794", "0.821"] in lines
    assert any(line[:3] == ["ours,", "all", "clips"] for line in lines)


def test_two_students_are_held_against_each_other(
    student: Student, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, found = tmp_path / "w.safetensors", tmp_path / "f.json"
    save_student(student, weights, "internvqa-mini", "VMAF v0.6.1", {})
    argv = ["evaluate", str(weights), str(folder), "--device", "cpu", "--crops", "1"]
    assert main([*argv, "--against", "internvqa-mini", "--json", str(found), "--quiet"]) == 0
    document = json.loads(found.read_text("utf-8"))
    assert document["against"]["weights"] == "internvqa-mini"
    gaps, own = (
        document["against"]["judges"]["anchored"],
        document["judges"]["anchored"]["overall"],
    )
    assert gaps["srcc"]["one"] == own["srcc"]
    assert gaps["srcc"]["difference"] == pytest.approx(own["srcc"] - gaps["srcc"]["other"])
    low, high = gaps["rmse"]["interval"]
    assert low < gaps["rmse"]["difference"] < high
    shown = capsys.readouterr().out
    assert "against internvqa-mini, on the same encodes" in shown
    assert main([*argv, "--against", "nothing"]) == 2
    assert "no weights 'nothing'" in capsys.readouterr().err
