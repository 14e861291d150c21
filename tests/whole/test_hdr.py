"""HDR through the whole program: what is read, encoded, delivered and scored of each kind.

The table of docs/input.md is made of what these find: VQALOOP_WRITE_DOCS=1 with -m '' writes it
again.
"""

import json
import os
import re
import shlex
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.quality.test_cvvdp import stand_in
from tests.support import docpages
from tests.support.commandline import Room
from tests.support.deliveries import make_ladder, variants, write
from tests.support.hdr import KINDS, STATIC, make_kind, told
from tests.support.media import REPOSITORY, frame_hashes, run_ffmpeg
from vqaloop.audit.audit import audit_ladder
from vqaloop.bitstream.hdr_metadata import alike
from vqaloop.bitstream.mp4_boxes import read_video_entry
from vqaloop.cli.main import main
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.delivery.package import package_ladder
from vqaloop.encoding.checks import checked_depth, hdr_warnings
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import default_encoder, get_encoder, load_encoders
from vqaloop.errors import InputError
from vqaloop.execution.cache_keys import encode_key
from vqaloop.execution.document_parts import source_json
from vqaloop.ladder.options import LadderOptions
from vqaloop.ladder.store import read_ladder
from vqaloop.media.excerpt import excerpt
from vqaloop.media.frames import picks_from, read_source
from vqaloop.media.hdr import HdrUse
from vqaloop.media.probe import probe_source
from vqaloop.quality.full_reference import measure
from vqaloop.records import Rendition, Source
from vqaloop.regress.compare import compare_builds

FFMPEG = ffmpeg_path()
DOCUMENT = REPOSITORY / "docs" / "input.md"
HEAD = (
    "| source | without an option | rungs and encodes, 10 bit at least where HDR | delivered as | "
    "with `--tonemap` | scored by |"
)
ROW, END = "| --- | --- | --- | --- | --- | --- |", "<!-- end of the table of colours -->"
HDR10 = "PQ with mastering display and light levels (HDR10)"
NS = {"d": "urn:mpeg:dash:schema:mpd:2011"}


def taken(path: Path, **how: Any) -> Source | None:
    try:
        return probe_source(path, **how)
    except InputError:
        return None


def in_words(about: dict[str, Any]) -> str:
    """Bits, tags and metadata of a file."""
    parts = [f"{about['bits']} bit", "/".join(about["tags"][:3]), about["tags"][3]]
    static = about["static"]
    parts += ["mastering display"] * bool(static and static.primaries)
    parts += ["MaxCLL, MaxFALL"] * bool(static and static.light)
    assert not about["dynamic"]
    return ", ".join(parts)


def properties(manifest: Path) -> str:
    """How the manifest speaks of colours."""
    found = {
        part.tag.rpartition("}")[2]: part
        for part in ET.parse(manifest).iter()
        if "cicp" in part.get("schemeIdUri", "")
    }
    return " and ".join(sorted(found)) or "none"


def row_of(kind: str, folder: Path) -> str:
    """The line of the table, by what is made of a clip."""
    path = make_kind(folder, kind)
    plain, judged = taken(path), taken(path, hdr=HdrUse(judged=True))
    allowed, mapped = taken(path, allow_hdr=True), taken(path, hdr=HdrUse(tonemap=True))
    assert allowed is not None
    spec = default_encoder("hevc")
    ladder = make_ladder(
        folder / "made", allowed, "hevc", [(64, 64, 30)], checked_depth(allowed, spec, None)
    )
    about = told(ladder.folder / ladder.rungs[0].file)
    assert alike(about["static"], allowed.static_hdr)
    assert hdr_warnings(allowed, spec, [ladder.folder / ladder.rungs[0].file]) == []
    made = package_ladder(ladder.folder, out=folder / "out", audio=False)
    (variant,) = variants(made.folder).values()
    manifests = (
        f"VIDEO-RANGE={variant['VIDEO-RANGE']}; CICP: {properties(made.folder / 'manifest.mpd')}"
    )
    if mapped is None:
        to_sdr = "refused"
    elif mapped.prep == allowed.prep:
        to_sdr = "the same"
    else:
        out = folder / "mapped.mp4"
        depth = checked_depth(mapped, spec, None)
        encode(mapped, Rendition(64, 64, spec.name, 30, "ultrafast", depth), out, ffmpeg=FFMPEG)
        to_sdr = in_words(told(out))
    lost = f"; {allowed.dynamic_hdr[0]} is dropped" if allowed.dynamic_hdr else ""
    others = "any" if plain else "cvvdp; any with `--allow-hdr`"
    scored = others if judged else "any with `--allow-hdr`, in wrong colours"
    status = "taken" if plain else "refused"
    return f"| {kind} | {status} | {in_words(about)}{lost} | {manifests} | {to_sdr} | {scored} |"


def _table(text: str) -> list[str]:
    start = text.index(HEAD)
    return text[start : text.index(END)].splitlines()[2:]


MORE = {
    "SDR, BT.709, 10 bit",
    "SDR, BT.601",
    "PQ with light levels alone",
    "PQ without metadata",
    "PQ of 8 bit",
    "PQ with primaries and matrix of BT.709",
    "Dolby Vision profile 8.2 (over SDR)",
}
"""Kinds like others, which the default run leaves out."""
WRITTEN: dict[str, str] = {}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in MORE else ()) for k in KINDS]
)
def test_the_table_says_what_is_made(kind: str, tmp_path: Path) -> None:
    WRITTEN[kind] = row_of(kind, tmp_path)
    if not os.environ.get("VQALOOP_WRITE_DOCS"):
        assert WRITTEN[kind] in _table(DOCUMENT.read_text()), "docs/input.md is out of date"
        return
    if list(WRITTEN) == list(KINDS):
        text = DOCUMENT.read_text()
        start, end = text.index(HEAD), text.index(END)
        table = "\n".join([HEAD, ROW, *WRITTEN.values()])
        DOCUMENT.write_text(text[:start] + table + "\n" + text[end:])


def test_every_encoder_keeps_hdr10_or_says_why_not(tmp_path: Path) -> None:
    source = probe_source(make_kind(tmp_path, HDR10), allow_hdr=True)
    assert source.static_hdr == STATIC
    for spec in load_encoders().values():
        if spec.hdr.cannot:
            with pytest.raises(InputError, match=re.escape(spec.hdr.cannot)):
                checked_depth(source, spec, None)
        elif not spec.hardware:
            out = tmp_path / f"{spec.name}{spec.suffix}"
            fast = Rendition(64, 64, spec.name, spec.knob.snap(40), spec.presets[-1], 10)
            encode(source, fast, out, ffmpeg=FFMPEG)
            about = told(out)
            assert alike(about["static"], STATIC), spec.name
            assert about["tags"] == ("bt2020", "smpte2084", "bt2020nc", "tv"), spec.name
            alone = bool(hdr_warnings(source, spec, [out]))
            assert alone == (spec.hdr.metadata == "container")
    with pytest.raises(InputError, match="takes 10 bits a sample: with 8 its gradients"):
        checked_depth(source, get_encoder("libx265"), 8)


def test_metadata_survive_an_excerpt_and_are_missed(tmp_path: Path) -> None:
    source = probe_source(make_kind(tmp_path, HDR10), allow_hdr=True)
    spec = default_encoder("av1")
    part = excerpt(source, [(2, 3), (7, 2)], tmp_path / "part.mkv", ffmpeg=FFMPEG)
    small = Rendition(64, 64, spec.name, 40, "13", 10)
    encode(part, small, tmp_path / "a.mp4", ffmpeg=FFMPEG)
    assert alike(told(tmp_path / "a.mp4")["static"], STATIC)
    bare = replace(part, prep=("sidedata=mode=delete:type=MASTERING_DISPLAY_METADATA",))
    encode(bare, small, tmp_path / "b.mp4", ffmpeg=FFMPEG)
    (warning,) = hdr_warnings(source, spec, [tmp_path / "b.mp4"])
    assert "b.mp4 has MaxCLL 1000, MaxFALL 400, where its source has R(0.6800" in warning


def test_dynamic_metadata_are_refused_where_that_is_asked(tmp_path: Path) -> None:
    path = make_kind(tmp_path, "PQ with HDR10+")
    with pytest.raises(InputError, match=r"has dynamic HDR metadata \(HDR10\+\).*--dynamic-hdr"):
        probe_source(path, allow_hdr=True, hdr=HdrUse(refuse_dynamic=True))
    source = probe_source(path, allow_hdr=True)
    assert source.dynamic_hdr == ("HDR10+",)
    # libaom would write them
    spec, out = get_encoder("libaom-av1"), tmp_path / "a.mp4"
    encode(source, Rendition(64, 64, spec.name, 50, "6", 10), out, ffmpeg=FFMPEG)
    assert not told(out)["dynamic"] and told(path)["dynamic"]
    # and what is removed keeps no frame from being picked
    assert picks_from(source) == picks_from(replace(source, prep=()))
    with pytest.raises(InputError, match="--dynamic-hdr 'keep' is neither drop nor refuse"):
        LadderOptions(codec="hevc", dynamic_hdr="keep")  # type: ignore[arg-type]


def test_a_delivery_has_one_range_and_one_set_of_metadata(tmp_path: Path) -> None:
    ladders, sources = {}, {}
    for name, kind in (("hdr10", HDR10), ("bare", "PQ without metadata"), ("hlg", "HLG")):
        (tmp_path / name).mkdir()
        sources[name] = probe_source(make_kind(tmp_path / name, kind), allow_hdr=True)
        ladders[name] = make_ladder(
            tmp_path / name / "l", sources[name], "hevc", [(64, 64, 30), (96, 64, 30)], 10
        )
    made = package_ladder(ladders["hdr10"].folder, out=tmp_path / "out", audio=False)
    for rung in made.about["renditions"]:
        entry = read_video_entry((made.folder / rung["id"] / "init.mp4").read_bytes())
        assert entry.static_hdr == STATIC
    upper = ladders["hdr10"].rungs[1].file
    for other, said in (("bare", "has no mastering display or light levels"), ("hlg", "is HLG")):
        file = ladders[other].folder / ladders[other].rungs[1].file
        (ladders["hdr10"].folder / upper).write_bytes(file.read_bytes())
        with pytest.raises(InputError, match=f"{upper}' {said}"):
            package_ladder(ladders["hdr10"].folder, out=tmp_path / "out", audio=False)
    ladder = ladders["hlg"]
    ladder.about["source"]["hdr"] = source_json(sources["hdr10"])["hdr"]
    write(ladder)
    with pytest.raises(InputError, match="is tagged HLG, and its ladder is PQ"):
        package_ladder(ladder.folder, out=tmp_path / "out", audio=False)


def test_tone_mapping_is_part_of_how_a_source_is_read(tmp_path: Path) -> None:
    path = make_kind(tmp_path, HDR10)
    source = probe_source(path, hdr=HdrUse(tonemap=True))
    as_is = probe_source(path, allow_hdr=True)
    assert (source.hdr, source.bit_depth, source.static_hdr) == (False, 8, None)
    assert dict(source.colour)["color_trc"] == "bt709"
    assert "Tone-mapped from PQ (peak 1000 cd/m²) to SDR" in " ".join(source.notes)
    assert frame_hashes(source) == frame_hashes(source) != frame_hashes(as_is)
    keys = [encode_key(s, [], "") for s in (source, as_is)]
    assert keys[0] != keys[1] and json.dumps(keys[0]).count("tonemap=hable")
    # what an encode is made of is what it is scored against
    spec = default_encoder("h264")
    out = tmp_path / "a.mp4"
    encode(source, Rendition(96, 64, spec.name, 1, "ultrafast"), out, ffmpeg=FFMPEG)
    assert measure(source, out, ["psnr"], ffmpeg=FFMPEG)["psnr"].value > 50
    assert measure(as_is, out, ["psnr"], ffmpeg=FFMPEG)["psnr"].value < 30
    part = excerpt(source, [(2, 3)], tmp_path / "part.mkv", ffmpeg=FFMPEG)
    seen = read_source(source, [2, 3, 4], ffmpeg=FFMPEG)
    assert abs(read_source(part, [0, 1, 2], ffmpeg=FFMPEG).astype(int) - seen).max() <= 1


@pytest.mark.parametrize("kind", ["HLG", "PQ with no other tags", "PQ of 8 bit"])
def test_tone_mapped_white_is_brighter_than_grey(kind: str, tmp_path: Path) -> None:
    source = probe_source(make_kind(tmp_path, kind), hdr=HdrUse(tonemap=True))
    luma = read_source(source, [0], ffmpeg=FFMPEG)[0, :64]
    assert 16 <= luma.min() < 80 and 150 < luma.max() <= 245


def test_score_says_where_its_metric_is_not_made_for_hdr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = os.fspath(make_kind(tmp_path, "HLG"))
    words = ["score", path, "--reference", path, "--metric"]
    for more, kind in (
        (["psnr", "--allow-hdr"], "HLG"),
        (["psnr", "--allow-hdr", "--tonemap"], None),
        (["cvvdp", "--cvvdp", os.fspath(stand_in(tmp_path))], None),
    ):
        assert main([*words, *more]) == 0
        doubt = f"HDR ({kind} transfer); scores of SDR metrics, and of students through PU21"
        assert (doubt in capsys.readouterr().out) is (kind is not None)


def test_audits_and_comparisons_take_hdr_by_cvvdp(tmp_path: Path) -> None:
    """Without it they refuse, and name no option that they lack."""
    path, given = make_kind(tmp_path, HDR10), stand_in(tmp_path)
    source = probe_source(path, allow_hdr=True)
    ladder = make_ladder(tmp_path / "l", source, "hevc", [(96, 64, 40), (96, 64, 25)], 10)
    only = "give --metric cvvdp, which is made for HDR, or --allow-hdr to go on"
    with pytest.raises(InputError, match=only):
        audit_ladder(ladder.folder, path, metric="psnr")
    found = audit_ladder(ladder.folder, path, metric="cvvdp", display="tv", cvvdp=given)
    assert [0 < rung.score < 10 for rung in found.rungs] == [True, True]
    asked: dict[str, Any] = {"codec": "hevc", "clips": [path], "knobs": (20, 25, 30, 35)}
    asked |= {"preset": "ultrafast", "cache": False}
    with pytest.raises(InputError, match=only):
        compare_builds(FFMPEG, FFMPEG, metric="psnr", **asked)
    compared = compare_builds(FFMPEG, FFMPEG, metric="cvvdp", cvvdp=given, **asked)
    assert compared.verdict == "no change"


@pytest.mark.slow
def test_an_hdr10_ladder_plays_with_its_metadata(room: Room) -> None:
    """The commands of the pages; by the real program where $VQALOOP_CVVDP names it."""
    make_kind(room.folder, HDR10, frames=30, size="192x108").rename(room.folder / "hdr10.mp4")
    place = Path(os.environ.get("VQALOOP_CVVDP") or stand_in(room.folder))
    (room.folder / "CVVDP" / "bin").mkdir(parents=True)
    (room.folder / "CVVDP" / "bin" / "cvvdp").symlink_to(place)
    program = ("--cvvdp", "CVVDP/bin/cvvdp")
    small = ("--rungs", "2", "--resolutions", "192x108,128x72", "--guard", "off")
    made = [c for c in docpages.commands("docs/input.md") if c.startswith("vqaloop ladder hdr10")]
    assert len(made) == 3
    for command, out in zip(made, ("hdr", "sdr", "refusing"), strict=True):
        more = ["--dry-run"] if out == "refusing" else ["-o", out, "--quiet"]
        said = room.run(*shlex.split(command)[1:], *program, *small, *more)
        assert said.status in (0, 3), said.err
    upper = None
    for codec in ("hevc", "av1"):
        ladder = read_ladder(room.folder / "hdr" / codec)
        assert ladder.about["metric"]["name"] == "cvvdp"
        assert not any("not to be trusted" in warning for warning in ladder.about["warnings"])
        scores = [rung.score for rung in ladder.rungs]
        assert len(scores) == 2 and scores == sorted(scores) and scores[0] < scores[1] <= 10
        for rung in ladder.rungs:
            upper = ladder.folder / rung.file
            run_ffmpeg("-xerror", "-i", str(upper), "-f", "null", "-")
            about = told(upper)
            assert alike(about["static"], STATIC) and about["bits"] == 10
            assert about["tags"] == ("bt2020", "smpte2084", "bt2020nc", "tv")
    said = room.run("deliver", "hdr", "-o", "out")
    assert said.status == 0, said.err
    assert {v["VIDEO-RANGE"] for v in variants(room.folder / "out").values()} == {"PQ"}
    assert properties(room.folder / "out" / "manifest.mpd") == "EssentialProperty"
    for init in (room.folder / "out").glob("*/init.mp4"):
        assert alike(read_video_entry(init.read_bytes()).static_hdr, STATIC)
    sdr = read_ladder(room.folder / "sdr")
    assert told(sdr.folder / sdr.rungs[0].file)["tags"][1] == "bt709"
    assert upper is not None
    upper.rename(room.folder / "rung.mp4")
    for command in docpages.commands("docs/scoring.md"):
        if "hdr10.mp4" in command:
            named = "--cvvdp" in command
            said = room.run(*shlex.split(command)[1:], *(program if not named else ()))
            assert said.status in (0, 1), said.err
    assert alike(told(room.folder / "out.mp4")["static"], STATIC)
