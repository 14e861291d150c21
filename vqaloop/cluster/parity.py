"""Parity checks: a node must have the driver's versions and ffmpeg, or its results would differ.

Made on the node before any work; a node that differs is refused by name, with the remedy.
"""

import hashlib
import json
from dataclasses import dataclass

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.core.version import __version__
from vqaloop.encoding.options import output_options
from vqaloop.encoding.registry import get_encoder
from vqaloop.encoding.survey import encoder_version
from vqaloop.errors import EncoderMissing, InputError, ToolError
from vqaloop.records import Rendition, Source


@dataclass(frozen=True)
class Tools:
    """What a node must have for its results to be those of any other."""

    ffmpeg: str
    """Path of the driver's."""
    sha256: str
    """Of its content."""
    version: str = __version__


@dataclass(frozen=True)
class Terms:
    """Encoder version and options that an encode must be made with, besides ffmpeg's own file."""

    version: str
    """Of the encoder, which may be a library of its own."""
    options: str
    """SHA-256 of ffmpeg's output options."""

    @classmethod
    def of(cls, source: Source, rendition: Rendition, ffmpeg: str) -> "Terms":
        """Those of this machine. Raises InputError for what it cannot make."""
        spec = get_encoder(rendition.encoder)
        options = json.dumps(output_options(spec, rendition, source)).encode()
        return cls(encoder_version(spec, ffmpeg), hashlib.sha256(options).hexdigest())


def check_version(tools: Tools, node: str) -> None:
    """Raises ToolError for a node that has another vqaloop."""
    if tools.version != __version__:
        raise ToolError(
            f"node {node} has vqaloop {__version__} and this is {tools.version}; "
            f"install the same there: pip install vqaloop=={tools.version}"
        )


def same_ffmpeg(tools: Tools, node: str) -> str:
    """An ffmpeg of this node that is the driver's, byte for byte. Raises ToolError."""
    try:
        if file_sha256(tools.ffmpeg) == tools.sha256:
            return tools.ffmpeg
    except OSError:
        pass  # it lies elsewhere on this node
    own = ffmpeg_path()
    if file_sha256(own) != tools.sha256:
        raise ToolError(
            f"node {node} has another ffmpeg ({own}) than this machine ({tools.ffmpeg}), and its "
            "encodes would not be the same; copy yours there and name it in VQALOOP_FFMPEG before "
            "`ray start`, or install the same imageio-ffmpeg on both"
        )
    return own


def check_terms(
    terms: Terms, source: Source, rendition: Rendition, ffmpeg: str, node: str
) -> None:
    """Raises ToolError where this node's encoder is another, or is called in another way."""
    remedy = "install the same there"
    try:
        own = Terms.of(source, rendition, ffmpeg)
    except EncoderMissing:
        raise
    except InputError as error:
        # the driver's own files allow it, or it would not have been ordered
        raise ToolError(
            f"node {node} has other files under encoders/ than this machine ({error}), "
            f"and its encodes would not be the same; {remedy}"
        ) from error
    if own.version != terms.version:
        raise ToolError(
            f"node {node} has {own.version} and this machine {terms.version}, and its "
            f"encodes would not be the same; {remedy}: the library that ffmpeg loads, or an "
            "ffmpeg that contains it"
        )
    if own.options != terms.options:
        raise ToolError(
            f"node {node} calls {rendition.encoder} with other options than this machine, "
            f"and its encodes would not be the same; {remedy}: the files under encoders/"
        )
