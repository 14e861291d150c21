"""Keys of the cache: all that decides an entry's content, and the names and seals made of it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vqaloop.media.frames import SCALER
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


def score_key(
    source: Source,
    encode_sha256: str,
    metric: str,
    *,
    decoder: str,
    encode_options: Sequence[tuple[str, str]] = (),
    weights_sha256: str | None = None,
    scaler: str = SCALER,
    preprocessing: str = "",
    device: str = "",
    sampling: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What decides a score.

    `decoder` is what read the frames, with its version or hash; `encode_options` are those
    before -i of a raw encode; `preprocessing` names the revision of all between frames and
    metric; `sampling` has the seed and the number and size of clips and crops.
    """
    return {
        "kind": "score",
        **_source_key(source),
        "encode": encode_sha256,
        "encode_options": [list(pair) for pair in encode_options],
        "metric": metric,
        "weights": weights_sha256,
        "decoder": decoder,
        "scaler": scaler,
        "preprocessing": preprocessing,
        "device": device,
        "sampling": dict(sampling or {}),
    }


def _source_key(source: Source) -> dict[str, Any]:
    return {
        "source": source.sha256,
        "input_options": [list(pair) for pair in source.input_options],
        "prep": list(source.prep),
    }


def _canonical(value: object) -> bytes:
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
    """An entry as JSON with its checksum; raises TypeError or ValueError for what JSON lacks."""
    return _canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def unsealed(text: bytes) -> dict[str, Any]:
    """The entry again; raises ValueError, KeyError or TypeError where it was changed."""
    body: dict[str, Any] = json.loads(text)
    if body.pop("sha256") != hashlib.sha256(_canonical(body)).hexdigest():
        raise ValueError("its checksum is wrong")
    return body
