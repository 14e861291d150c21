"""Readers of coded video, each as a function of bytes, with seed inputs for fuzzing."""

from pathlib import Path

from vqaloop.bitstream import codec_strings, coded_frames, mp4_boxes
from vqaloop.bitstream.coded_frames import coded_parts, is_cut_mp4
from vqaloop.bitstream.nal import without_sei
from vqaloop.bitstream.random_access import is_random_access
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url


def _written(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _small_files(folder: Path) -> dict[str, bytes]:
    """A tiny file of each codec, and the beginning of a fragmented MP4."""
    made = {}
    fragmented = ("-movflags", "+frag_keyframe+empty_moov+default_base_moof")
    for name, options in {
        "h264.mp4": ("-c:v", "libx264"),
        "hevc.mp4": ("-c:v", "libx265", "-x265-params", "log-level=none", "-tag:v", "hvc1"),
        "vp9.mp4": ("-c:v", "libvpx-vp9"),
        "av1.mp4": ("-c:v", "libsvtav1", "-preset", "12"),
        "av1.ivf": ("-c:v", "libsvtav1", "-preset", "12"),
        "h264.h264": ("-c:v", "libx264"),
    }.items():
        for kind, more in (("", ()), ("fragments-", fragmented)):
            if kind and not name.endswith(".mp4"):
                continue
            path = folder / f"{kind}{name}"
            argv = [ffmpeg_path(), "-nostdin", "-v", "error", "-y", "-f", "lavfi"]
            argv += ["-i", "testsrc2=s=64x64:r=25", "-frames:v", "2", "-pix_fmt", "yuv420p"]
            argv += [*options, *more, file_url(path)]
            process.run(argv, timeout_s=60)
            if path.is_file():
                made[path.name] = path.read_bytes()
    return made


def read_boxes(data: bytes, folder: Path) -> object:
    del folder
    starts = mp4_boxes.fragment_starts(data)
    entry = mp4_boxes.read_video_entry(data)
    return starts, codec_strings.codec_string(entry), codec_strings.video_range(entry)


def boxes_seeds(folder: Path) -> list[bytes]:
    return [data for name, data in _small_files(folder).items() if "fragments" in name]


_CODECS = ("h264", "hevc", "vp9", "av1")


def read_packets(data: bytes, folder: Path) -> object:
    """A byte for the codec, one for the 16 bytes of its configuration, that, then a packet."""
    del folder
    if len(data) < 2:
        return None
    codec, length = _CODECS[data[0] % 4], 16 * data[1]
    config, packet = data[2 : 2 + length], data[2 + length :]
    parts = sum(map(len, coded_parts(codec, config, packet)))
    sets = without_sei(config) if codec == "hevc" else b""
    return is_random_access(codec, config, packet), parts, sets


def packets_seeds(folder: Path) -> list[bytes]:
    import av

    seeds = []
    for name, data in _small_files(folder).items():
        if "fragments" in name or not name.endswith(".mp4"):
            continue
        path = _written(data, folder, name)
        with av.open(file_url(path)) as container:
            stream = container.streams.video[0]
            config = bytes(stream.codec_context.extradata or b"")
            packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        config += bytes(-len(config) % 16)
        head = bytes((_CODECS.index(name.split(".")[0]), len(config) // 16))
        seeds += [head + config + packet[:1024] for packet in packets]
    return seeds


_SPECS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1"}


def read_bitstream(data: bytes, folder: Path) -> object:
    """One byte for the codec that is expected, then the file."""
    codec = _CODECS[data[0] % 4] if data else "h264"
    path = _written(data[1:], folder, "a.mp4")
    cut = is_cut_mp4(path)
    return cut, coded_frames.read_bitstream(path, codec)


def bitstream_seeds(folder: Path) -> list[bytes]:
    return [
        bytes([_CODECS.index(name.split(".")[0])]) + data
        for name, data in _small_files(folder).items()
        if "fragments" not in name
    ]
