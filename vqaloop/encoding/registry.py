"""The encoders vqaloop knows: which there are, whether they run here, and how they are called.

Each is a file in encoders/ (see encoderspec for its form). `output_options` is the whole of what
ffmpeg is told, so the same options replayed give the same file.
"""

import functools

from vqaloop.core.resources import data_folder
from vqaloop.core.suggestions import did_you_mean, plain
from vqaloop.encoding.spec import EncoderSpec, read_spec
from vqaloop.errors import InputError

_CODECS_ALSO = {
    **dict.fromkeys(("avc", "avc1", "mpeg4avc"), "h264"),
    **dict.fromkeys(("h265", "hvc1", "hev1"), "hevc"),
    **dict.fromkeys(("vp09", "vpx"), "vp9"),
    **dict.fromkeys(("av01", "aom", "svt"), "av1"),
    "avs": "avs2",
}
"""Other names of codecs, which messages understand."""


@functools.cache
def load_encoders() -> dict[str, EncoderSpec]:
    """All encoders by name, in order of name.

    Raises InputError when the folder is missing or a file in it is wrong.
    """
    folder = data_folder("encoders")
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise InputError(f"no encoder files in {folder}; reinstall vqaloop")
    return {file.stem: read_spec(file) for file in files}


def get_encoder(name: str) -> EncoderSpec:
    """The encoder of that name; raises InputError listing the known ones."""
    encoders = load_encoders()
    if name not in encoders:
        bare = {plain(known.removeprefix("lib")): known for known in encoders}
        hint = did_you_mean(name, encoders, bare)
        raise InputError(f"unknown encoder {name!r}; known are {', '.join(encoders)}{hint}")
    return encoders[name]


def default_encoder(codec: str) -> EncoderSpec:
    """The encoder that `codec` stands for; raises InputError listing the codecs."""
    for spec in load_encoders().values():
        if spec.codec == codec and spec.default:
            return spec
    raise InputError(
        f"unknown codec {codec!r}; known are {', '.join(codecs())}{codec_hint(codec)}"
    )


def codecs() -> tuple[str, ...]:
    """The codecs that have a default encoder, sorted."""
    return tuple(sorted(spec.codec for spec in load_encoders().values() if spec.default))


def codec_hint(word: str) -> str:
    """Which codec was probably meant, for the end of a message, or nothing."""
    others = dict(_CODECS_ALSO)
    for spec in load_encoders().values():
        meant = spec.codec if spec.default else f"{spec.codec} --encoder {spec.name}"
        others[plain(spec.name)] = others[plain(spec.name.removeprefix("lib"))] = meant
    return did_you_mean(word, codecs(), others, "--codec")
