"""The configuration of a student's heads, as the header of its weights records it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated

from msgspec import Meta

from vqaloop.core.documents import as_type, json_value
from vqaloop.core.text import quoted
from vqaloop.errors import InputError

HEADER_KEY = "heads"
"""Key in the header of weights; weights without it have the heads of `HeadConfig()`."""
OUTPUTS = ("vmaf", "adm2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3", "motion2")
"""Outputs of the first generation of heads: the score / 100, and the elementary features of VMAF
as auxiliary targets of training."""
DISTANCES = (1, 5)
"""Frames between the two of a clip, alternating by place, where a student takes two distances: of
neighbours, and far enough apart to see changes that take their time."""

_Name = Annotated[str, Meta(pattern=r"\A[\w.+-]{1,40}\Z")]


@dataclass(frozen=True)
class HeadConfig:
    """What a student's heads take in, pool and answer; by default as the first generation does."""

    outputs: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=32)] = OUTPUTS
    """Names of the answers: the score, through a sigmoid to 0..1, then the auxiliary ones."""
    change: bool = False
    """Whether the anchored head compares changes over time: it takes the energies of the
    rendition's change and of its difference to the source's change."""
    worst: Annotated[int, Meta(ge=0, le=64)] = 0
    """Additional statistics pooled by a generalised mean, which the largest values dominate."""
    canvas: bool = False
    """Whether the heads take the height of the canvas that clips are cut from."""
    bits: bool = False
    """Whether the head without reference takes what the bitstream says (`StreamFacts`)."""
    two_distances: bool = False
    """Whether the frames of a clip are DISTANCES apart, alternating by place, rather than 1."""
    time_power: Annotated[float, Meta(ge=1, le=16)] = 1.0
    """Exponent of the power mean over time of what scores lack to 100; 1: the mean."""

    @property
    def distances(self) -> tuple[int, ...]:
        """Frames between the two of a clip, alternating by place."""
        return DISTANCES if self.two_distances else DISTANCES[:1]

    def header(self) -> dict[str, str]:
        """Its part of the metadata of weights: none for the first generation."""
        return {} if self == HeadConfig() else {HEADER_KEY: json.dumps(asdict(self))}

    @classmethod
    def from_header(cls, about: Mapping[str, str], name: str) -> "HeadConfig":
        """The configuration in the metadata of weights.

        Args:
            about: The metadata; without HEADER_KEY the heads are of the first generation.
            name: What holds the header, for errors.

        Raises:
            InputError: It is none, or has a field that this version does not know.
        """
        text = about.get(HEADER_KEY)
        if text is None:
            return cls()
        remedy = "train the weights again, or take a version of vqaloop that knows them"
        document = json_value(text, f"the heads of {name} are no JSON", remedy)
        found = as_type(document, cls, f"the heads of {name}", remedy)
        # a field left out of account would be another score
        unknown = sorted(document.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise InputError(
                f"the heads of {name} have a field {quoted(unknown[0])}, which this version does "
                f"not know; {remedy}"
            )
        if len(set(found.outputs)) < len(found.outputs):
            raise InputError(f"the heads of {name} name an output twice; {remedy}")
        return found
