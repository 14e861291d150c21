"""Small files of all colour and dynamic-range kinds, and what a file says of its own."""

import json
from pathlib import Path
from typing import Any

import av

from tests.media.test_probing_kinds import with_dolby_vision
from tests.support.media import run_ffmpeg
from vqaloop.bitstream.colour_tags import MATRICES, PRIMARIES, RANGES, TRANSFERS
from vqaloop.bitstream.hdr_metadata import static_of
from vqaloop.core.ffmpeg import file_url
from vqaloop.records import StaticHdr

MASTERING = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
STATIC = StaticHdr(
    ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.3127, 0.329)), (0.005, 1000.0), (1000, 400)
)
"""What MASTERING and LIGHT say."""
LIGHT = "max-cll=1000,400"
_PLUS = {
    "JSONInfo": {"HDRProfile": "A", "Version": "1.0"},
    "SceneInfo": [
        {
            "LuminanceParameters": {
                "AverageRGB": 1,
                "LuminanceDistributions": {
                    "DistributionIndex": [1, 5, 10, 25, 50, 75, 90, 95, 99],
                    "DistributionValues": list(range(1, 10)),
                },
                "MaxScl": [10, 10, 10],
            },
            "NumberOfWindows": 1,
            "TargetedSystemDisplayMaximumLuminance": 0,
            "SceneFrameIndex": 0,
            "SceneId": 0,
            "SequenceFrameIndex": 0,
        }
    ],
    "SceneInfoSummary": {"SceneFirstFrameIndex": [0], "SceneFrameNumbers": [1]},
    "ToolInfo": {"Tool": "none", "Version": "1"},
}
"""HDR10+ of the first frame, as x265 takes it."""


def tagged(primaries: str, transfer: str, matrix: str, full: bool = False) -> str:
    """The filter that sets colour tags."""
    tags = f"color_primaries={primaries}:color_trc={transfer}:colorspace={matrix}"
    return f"setparams={tags}:range={'pc' if full else 'tv'}"


SDR, WIDE = tagged("bt709", "bt709", "bt709"), tagged("bt2020", "bt2020-10", "bt2020nc")
PQ = tagged("bt2020", "smpte2084", "bt2020nc")
HLG = tagged("bt2020", "arib-std-b67", "bt2020nc")

KINDS: dict[str, tuple[str, int, str]] = {
    # tags, bits a sample, parameters of x265
    "SDR, BT.709, 8 bit": (SDR, 8, ""),
    "SDR, BT.709, 10 bit": (SDR, 10, ""),
    "SDR, BT.709, full range": (tagged("bt709", "bt709", "bt709", full=True), 8, ""),
    "SDR, BT.601": (tagged("smpte170m", "smpte170m", "smpte170m"), 8, ""),
    "SDR, BT.2020": (WIDE, 10, ""),
    "PQ with mastering display and light levels (HDR10)": (PQ, 10, f"{MASTERING}:{LIGHT}"),
    "PQ with light levels alone": (PQ, 10, LIGHT),
    "PQ without metadata": (PQ, 10, ""),
    "PQ of 8 bit": (PQ, 8, ""),
    "PQ with HDR10+": (PQ, 10, f"{MASTERING}:{LIGHT}:dhdr10-info=plus.json"),
    "HLG": (HLG, 10, ""),
    "PQ with primaries and matrix of BT.709": (tagged("bt709", "smpte2084", "bt709"), 10, ""),
    "PQ with no other tags": (tagged("unknown", "smpte2084", "unknown"), 10, ""),
    "Dolby Vision profile 5": (PQ, 5, ""),
    "Dolby Vision profile 8.1 (over HDR10)": (PQ, 81, ""),
    "Dolby Vision profile 8.2 (over SDR)": (SDR, 82, ""),
}
"""All kinds; Dolby Vision has its profile and compatibility id in the place of bits."""


def make_kind(folder: Path, kind: str, frames: int = 10, size: str = "96x64") -> Path:
    """A clip of a kind, in HEVC."""
    tags, bits, params = KINDS[kind]
    path = folder / "in.mp4"
    if bits not in (8, 10):
        profile, compatibility = {5: (5, 0), 81: (8, 1), 82: (8, 2)}[bits]
        return with_dolby_vision(path, profile, compatibility, vf=tags)
    (folder / "plus.json").write_text(json.dumps(_PLUS))
    options = ":".join(filter(None, ("log-level=none", params)))
    run_ffmpeg(
        *("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25,gblur=2"),
        *("-vf", f"format={'yuv420p10le' if bits == 10 else 'yuv420p'},{tags}"),
        *("-frames:v", str(frames), "-c:v", "libx265", "-preset", "ultrafast", "-crf", "12"),
        *("-x265-params", options, "-tag:v", "hvc1", file_url(path)),
        cwd=folder,
    )
    return path


def told(path: Path) -> dict[str, Any]:
    """What a file says of its first frame: bits, tags, static metadata, and whether any more."""
    with av.open(file_url(path)) as container:
        stream = container.streams.video[0]
        frame: Any = next(container.decode(stream))
        codec = stream.codec_context
        names = {data.type.name for data in frame.side_data}
        return {
            "bits": frame.format.components[0].bits,
            "tags": (
                PRIMARIES.get(int(codec.color_primaries), "none"),
                TRANSFERS.get(int(codec.color_trc), "none"),
                MATRICES.get(int(codec.colorspace), "none"),
                RANGES.get(int(codec.color_range), "none"),
            ),
            "static": static_of(frame),
            "dynamic": any(name.startswith(("DYNAMIC", "DOVI")) for name in names),
        }
