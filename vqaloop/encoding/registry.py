"""The registry of encoders: one file each in encoders/, whose form is that of `encoding.spec`."""

import functools

from vqaloop.core.resources import data_folder
from vqaloop.core.suggestions import did_you_mean, plain
from vqaloop.encoding.spec import EncoderSpec, read_spec
from vqaloop.errors import InputError

_SYNONYMS = {
    **dict.fromkeys(("avc", "avc1", "mpeg4avc"), "h264"),
    **dict.fromkeys(("h265", "hvc1", "hev1", "mpeghhevc"), "hevc"),
    **dict.fromkeys(("vp09", "vpx"), "vp9"),
    **dict.fromkeys(("av01", "svt"), "av1"),
}
"""Other names of codecs, without signs."""
_CODECS_ALSO = {**_SYNONYMS, "aom": "av1", "avs": "avs2"}
"""The same and names that may mean something else, for hints in messages."""


@functools.cache
def load_encoders() -> dict[str, EncoderSpec]:
    """Read all encoders.

    Returns:
        The encoders by name, in order of name.

    Raises:
        InputError: The folder is missing, or a file in it is wrong.
    """
    folder = data_folder("encoders")
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise InputError(f"no encoder files in {folder}; reinstall vqaloop")
    return {file.stem: read_spec(file) for file in files}


def get_encoder(name: str) -> EncoderSpec:
    """The encoder of a name.

    Args:
        name: As ffmpeg names it, such as "libx264".

    Returns:
        The encoder.

    Raises:
        InputError: There is none; the message lists all.
    """
    encoders = load_encoders()
    if name not in encoders:
        bare = {plain(known.removeprefix("lib")): known for known in encoders}
        hint = did_you_mean(name, encoders, bare)
        raise InputError(f"unknown encoder {name!r}; known are {', '.join(encoders)}{hint}")
    return encoders[name]


def default_encoder(codec: str) -> EncoderSpec:
    """The default encoder of a codec.

    Args:
        codec: Such as "h264".

    Returns:
        The encoder.

    Raises:
        InputError: There is none; the message lists all codecs.
    """
    for spec in load_encoders().values():
        if spec.codec == codec and spec.default:
            return spec
    raise InputError(
        f"unknown codec {codec!r}; known are {', '.join(codecs())}{codec_hint(codec)}"
    )


def codecs() -> tuple[str, ...]:
    """The codecs that have a default encoder, sorted."""
    return tuple(sorted(spec.codec for spec in load_encoders().values() if spec.default))


def codec_names(text: str) -> str:
    """Codecs with commas between by their names here: "H.265,AV1" as "hevc,av1".

    Also names of standards, of stored formats and of default encoders; what is none is left.
    """
    known = {plain(name): name for name in codecs()} | _SYNONYMS
    for spec in load_encoders().values():
        if spec.default:
            known[plain(spec.name)] = known[plain(spec.name.removeprefix("lib"))] = spec.codec
    words = [word.strip() for word in text.split(",")]
    return ",".join(known.get(plain(word), word) for word in words)


def codec_hint(word: str) -> str:
    """The codec that was probably meant, for the end of a message, or nothing."""
    others = dict(_CODECS_ALSO)
    for spec in load_encoders().values():
        meant = spec.codec if spec.default else f"{spec.codec} --encoder {spec.name}"
        others[plain(spec.name)] = others[plain(spec.name.removeprefix("lib"))] = meant
    return did_you_mean(word, codecs(), others, "--codec")
