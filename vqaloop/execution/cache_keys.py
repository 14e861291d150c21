"""Cache keys: all that decides an entry's content, with digests as names and checksums."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vqaloop.media.planes import SCALER
from vqaloop.records import Source


def encode_key(
    source: Source, rendition_options: Sequence[str], ffmpeg_sha256: str, encoder_version: str = ""
) -> dict[str, Any]:
    """What decides the bytes of an encode: the source, the full output options, the binary.

    `encoder_version` matters where the encoder is a library that the binary loads.
    """
    return {
        "kind": "encode",
        **_source_key(source),
        # the same stream wherever "0:v:0" could be encoded: entries kept under it still count
        "options": ["0:v:0" if word == "0:V:0" else word for word in rendition_options],
        "ffmpeg": ffmpeg_sha256,
        "encoder": encoder_version,
    }


@dataclass(frozen=True)
class ScoreSettings:
    """All that decides a score but the source and the encode: what `Metric.identity` gives."""

    metric: str
    """Name of the metric."""
    decoder: str
    """What reads the frames, with its version or hash."""
    encode_options: tuple[tuple[str, str], ...] = ()
    """Options before -i of a raw encode."""
    weights_sha256: str | None = None
    scaler: str = SCALER
    preprocessing: str = ""
    """Revision of all that lies between frames and metric."""
    device: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """The seed, and the number and size of clips and crops."""


def score_key(source: Source, encode_sha256: str, settings: ScoreSettings) -> dict[str, Any]:
    """What decides a score: the source, the encode's content, and the settings of the metric."""
    return {
        "kind": "score",
        **_source_key(source),
        # they decide where an excerpt is sampled, and its file may be that of one without
        **({"windows": list(source.windows)} if source.windows else {}),
        "encode": encode_sha256,
        "encode_options": [list(pair) for pair in settings.encode_options],
        "metric": settings.metric,
        "weights": settings.weights_sha256,
        "decoder": settings.decoder,
        "scaler": settings.scaler,
        "preprocessing": settings.preprocessing,
        "device": settings.device,
        "sampling": dict(settings.sampling),
    }


def _source_key(source: Source) -> dict[str, Any]:
    return {
        "source": source.sha256,
        "input_options": [list(pair) for pair in source.input_options],
        "prep": list(source.prep),
    }


def _canonical(value: object) -> bytes:
    # there and back, so that tuples and lists, and keys of any order, are the same
    plain = json.loads(json.dumps(value, allow_nan=False, default=_mapping))
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def _mapping(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} cannot be kept in the cache: JSON types only")


def digest(key: Mapping[str, Any]) -> str:
    """The name of the entry with this key."""
    return hashlib.sha256(_canonical(key)).hexdigest()


def sealed(body: dict[str, Any]) -> bytes:
    """An entry as JSON with its checksum. Raises TypeError or ValueError for what JSON lacks."""
    return _canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def unsealed(text: bytes) -> dict[str, Any]:
    """The entry of such JSON. Raises ValueError, KeyError or TypeError where it was changed."""
    body: dict[str, Any] = json.loads(text)
    if body.pop("sha256") != hashlib.sha256(_canonical(body)).hexdigest():
        raise ValueError("its checksum is wrong")
    return body
