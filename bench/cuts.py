"""Recall and precision of scene cuts on concatenated clips, whose cuts are known to the frame.

    python -m bench.cuts CLIP... [--titles 60]

Half of the clips, chosen by `group` of a MANIFEST.csv beside them (a clip without is its own
group), are those the threshold was set on; the other half are held out. Single clips should have
no cut: false positives in them are listed.
"""

import argparse
import csv
import random
import sys
import tempfile
from pathlib import Path

from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import find_cuts

SIZE = (160, 90)


def groups_of(clips: list[Path]) -> dict[Path, str]:
    """The group of each clip."""
    known: dict[str, str] = {}
    for folder in {clip.parent for clip in clips}:
        if (table := folder / "MANIFEST.csv").exists():
            with open(table, encoding="utf-8", newline="") as file:
                known |= {row["file"]: row["group"] for row in csv.DictReader(file)}
    return {clip: known.get(clip.name, clip.stem) for clip in clips}


def small(clip: Path, ffmpeg: str) -> bytes:
    """A clip's frames, all of one size."""
    argv = [ffmpeg, "-nostdin", "-v", "error", "-i", file_url(clip), "-map", "0:V:0"]
    argv += ["-vf", f"scale={SIZE[0]}:{SIZE[1]}:flags=area,format=yuv420p"]
    done = process.run([*argv, "-fps_mode", "passthrough", "-f", "rawvideo", "-"], timeout_s=300)
    if done.returncode:
        raise SystemExit(f"{clip}: {done.reason()}")
    return done.stdout


def cuts_of(parts: list[bytes], ffmpeg: str) -> tuple[set[int], set[int]]:
    """Cuts of concatenated parts: the true ones, and those detected."""
    frame = SIZE[0] * SIZE[1] * 3 // 2
    edges = [0]
    for part in parts:
        edges.append(edges[-1] + len(part) // frame)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "title.y4m")
        with open(path, "wb") as file:
            file.write(f"YUV4MPEG2 W{SIZE[0]} H{SIZE[1]} F25:1 Ip A1:1 C420jpeg\n".encode())
            for part in parts:
                for at in range(0, len(part), frame):
                    file.write(b"FRAME\n" + part[at : at + frame])
        found = find_cuts(probe_source(path, ffmpeg=ffmpeg), ffmpeg=ffmpeg)
    return set(edges[1:-1]), set(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--titles", type=int, default=60)
    options = parser.parse_args()
    ffmpeg, groups = ffmpeg_path(), groups_of(options.clips)
    names = sorted(set(groups.values()))
    random.Random(1).shuffle(names)
    half = set(names[: len(names) // 2])
    if not half:
        parser.error("give clips of two groups at least: half of them are held out")
    if options.titles < 1:
        parser.error("--titles must be 1 or more")
    pixels = {clip: small(clip, ffmpeg) for clip in options.clips}
    print("| clips | singles | found in them | titles | cuts | recall | precision |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, inside in (("threshold set on", True), ("held out", False)):
        own = [clip for clip in options.clips if (groups[clip] in half) == inside]
        singles = {clip: sorted(cuts_of([pixels[clip]], ffmpeg)[1]) for clip in own}
        said = ", ".join(f"{clip.stem} {cuts}" for clip, cuts in singles.items() if cuts)
        rng, total, right, wrong = random.Random(5), 0, 0, 0
        for _ in range(options.titles):
            chosen: dict[str, Path] = {}
            for _ in range(rng.randint(2, 5)):
                clip = rng.choice(own)
                chosen.setdefault(groups[clip], clip)
            there, found = cuts_of([pixels[clip] for clip in chosen.values()], ffmpeg)
            total, right = total + len(there), right + len(there & found)
            wrong += len(found - there)
        # of a single group every title is one clip, without a cut to find
        recall = f"{right / total:.3f}" if total else "no cuts"
        figures = [name, len(own), said or "none", options.titles, total]
        figures += [recall, f"{right / max(1, right + wrong):.3f}"]
        print(f"| {' | '.join(map(str, figures))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
