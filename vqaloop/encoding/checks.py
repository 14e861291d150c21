"""Checks of the requested encoder, preset, bit depth and sizes, before any work starts."""

from collections.abc import Sequence
from pathlib import Path

from vqaloop.bitstream.colour_tags import HDR_DEPTH, video_range_of
from vqaloop.bitstream.hdr_metadata import alike, in_words, read_hdr
from vqaloop.core.text import quoted
from vqaloop.encoding.registry import codec_hint, codecs, default_encoder, get_encoder
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.encoding.survey import encoder_version
from vqaloop.errors import InputError
from vqaloop.records import Source

FRACTIONS = (1, 2 / 3, 1 / 2, 1 / 3, 1 / 4, 1 / 6)
"""Default sizes, as parts of the source's: 1080p gives 1080, 720, 540, 360, 270 and 180 lines."""
LEAST_SIDE = 140
"""Pixels of the shorter side, below which sizes are used only where there would not be two."""


def named_encoder(codec: str, encoder: str | None) -> EncoderSpec:
    """The requested encoder or the codec's default, whether it runs here or not.

    Args:
        codec: Such as "h264".
        encoder: ffmpeg's name of an encoder of it, None for the default.

    Returns:
        The encoder.

    Raises:
        InputError: Codec or encoder are unknown, or do not go together.
    """
    if codec not in codecs():
        raise InputError(
            f"unknown codec {codec!r}; choose one of {', '.join(codecs())}{codec_hint(codec)}"
        )
    spec = get_encoder(encoder) if encoder else default_encoder(codec)
    if spec.codec != codec:
        raise InputError(f"{spec.name} makes {spec.codec}, not {codec}; leave out one of the two")
    return spec


def choose_encoder(codec: str, encoder: str | None, ffmpeg: str) -> EncoderSpec:
    """`named_encoder`, if this ffmpeg runs it.

    Args:
        codec: Such as "h264".
        encoder: ffmpeg's name of an encoder of it, None for the default.
        ffmpeg: The ffmpeg program.

    Returns:
        The encoder.

    Raises:
        InputError: Codec or encoder are unknown, or do not go together.
        EncoderMissing: It does not run here.
    """
    spec = named_encoder(codec, encoder)
    encoder_version(spec, ffmpeg)  # raises EncoderMissing, saying why
    return spec


def choose_sizes(
    source: Source, spec: EncoderSpec, asked: Sequence[tuple[int, int]] | None = None
) -> tuple[tuple[int, int], ...]:
    """Sizes of renditions: the requested ones, or parts of the source's canvas.

    Args:
        source: The title.
        spec: The encoder.
        asked: Requested widths and heights, None for the default parts.

    Returns:
        Width and height of each, largest first.

    Raises:
        InputError: A size is larger than the source (rungs are never upscaled), odd, or outside
            the encoder's limits.
    """
    width, height = source.canvas
    least, most = spec.min_size, spec.max_size

    def fits(size: tuple[int, int]) -> bool:
        return least[0] <= size[0] <= most[0] and least[1] <= size[1] <= most[1]

    if asked:
        for w, h in asked:
            if w > width or h > height:
                raise InputError(
                    f"resolution {w}x{h} is larger than the source ({width}x{height}); "
                    "rungs are never upscaled"
                )
            if w % 2 or h % 2 or not fits((w, h)):
                raise InputError(
                    f"{spec.name} cannot make {w}x{h}: sizes are even, from "
                    f"{least[0]}x{least[1]} to {most[0]}x{most[1]}"
                )
        return tuple(sorted(set(asked), key=lambda s: -s[0] * s[1]))
    sizes = [(round(width * f / 2) * 2, round(height * f / 2) * 2) for f in FRACTIONS]
    good = [size for size in sizes if fits(size)]
    tall = [size for size in good if min(size) >= LEAST_SIDE]
    chosen = tall if len(tall) >= 2 else good[:3]
    if not chosen:
        raise InputError(
            f"{source.path.name!r} is {width}x{height} and {spec.name} takes "
            f"{least[0]}x{least[1]} to {most[0]}x{most[1]}; choose another encoder"
        )
    return tuple(chosen)


def checked_preset(spec: EncoderSpec, preset: str | None) -> str:
    """The requested preset or the encoder's default; InputError for one that it lacks."""
    if preset is None:
        return spec.default_preset
    if preset not in spec.presets:
        raise InputError(
            f"{spec.name} has no preset {preset!r}; from slow to fast: {', '.join(spec.presets)}"
        )
    return preset


def check_film_grain(spec: EncoderSpec, asked: str | int) -> None:
    """Raises InputError for a strength that an encoder does not take."""
    if isinstance(asked, str):
        return
    if spec.film_grain.cannot:
        raise InputError(
            f"{spec.name} makes no film-grain table: {spec.film_grain.cannot}; choose libsvtav1 "
            "or libaom-av1 (--codec av1), or leave out --film-grain"
        )
    if why := spec.film_grain.refusal(str(asked)):
        raise InputError(f"--film-grain {asked} {why}, for {spec.name}; or off")


def checked_depth(source: Source, spec: EncoderSpec, asked: int | None) -> int:
    """The requested bit depth or the source's, of HDR at least 10; InputError for one that the
    encoder lacks, and for HDR with fewer."""
    depth = source.bit_depth if asked is None else asked
    if source.hdr:
        depth = max(depth, HDR_DEPTH) if asked is None else depth
        _check_hdr(source, spec, depth)
    check_depth(spec, depth)
    return depth


def _check_hdr(source: Source, spec: EncoderSpec, depth: int) -> None:
    """Raises InputError where an encoder cannot make HDR, or would with too few bits a sample."""
    name = quoted(source.path)
    if spec.hdr.cannot:
        raise InputError(
            f"{name} is HDR and {spec.name} cannot make that: {spec.hdr.cannot}; choose an "
            "encoder of 10 bit, such as libx265, libsvtav1 or libvpx-vp9, or --tonemap"
        )
    if depth < HDR_DEPTH:
        raise InputError(
            f"{name} is HDR, which takes {HDR_DEPTH} bits a sample: with {depth} its gradients "
            "show as bands; leave out --bit-depth, or give --tonemap for SDR"
        )


def hdr_warnings(source: Source, spec: EncoderSpec, files: Sequence[Path]) -> list[str]:
    """What files of an HDR source have lost of its range and metadata.

    Args:
        source: The title.
        spec: The encoder that made the files.
        files: The files.

    Returns:
        Sentences for people; none of an SDR source.

    Raises:
        DecodeFailed: A file does not decode.
    """
    if not source.hdr:
        return []
    found = []
    if source.static_hdr and spec.hdr.metadata == "container":
        found.append(
            f"{spec.name}: mastering display and light levels are in the container alone; they "
            "are lost where the stream is taken out of it"
        )
    wanted = video_range_of(source.colour)
    for path in files:
        made, static = read_hdr(path)
        if made != wanted:
            found.append(f"{path.name} is tagged {made}, where its source is {wanted}")
        if not alike(static, source.static_hdr):
            found.append(
                f"{path.name} has {in_words(static)}, where its source has "
                f"{in_words(source.static_hdr)}: this ffmpeg does not carry them; name another"
            )
    return found


def check_depth(spec: EncoderSpec, depth: int) -> None:
    """Raises InputError for bits a sample that the encoder does not take."""
    if depth not in spec.bit_depths:
        takes = " and ".join(map(str, spec.bit_depths))
        raise InputError(
            f"{spec.name} encodes {takes} bit and this would be {depth} bit; "
            f"choose another encoder, or --bit-depth {max(spec.bit_depths)}"
        )
