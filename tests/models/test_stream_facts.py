"""What a bitstream says, as numbers for the heads."""

import math

import pytest

from vqaloop.models.stream_facts import BOUND, StreamFacts, stream_facts


def test_bits_a_pixel_and_scale_by_hand() -> None:
    # 100 kbit a frame of 640x360, shown at 1280x720
    found = stream_facts(100_000, (640, 360), (1280, 720))
    assert found == StreamFacts(100_000 / (640 * 360), 0.5)
    assert found.inputs() == pytest.approx(
        ((math.log2(100_000 / 230_400) + 4) / 3, math.log2(0.5) / 2, 1.0)
    )
    assert StreamFacts(1 / 16, 1.0).inputs() == (0.0, 0.0, 1.0)
    # stored on its side
    assert stream_facts(100_000, (360, 640), (1280, 720)) == found


@pytest.mark.parametrize(
    "facts",
    [
        StreamFacts(),
        StreamFacts(0.1),
        StreamFacts(scale=0.5),
        stream_facts(0, (640, 360), (640, 360)),
        stream_facts(1000, (0, 0), (640, 360)),
        stream_facts(1000, (640, 360), (0, 0)),
        StreamFacts(math.nan, 1.0),
    ],
)
def test_what_is_not_known_is_zeros(facts: StreamFacts) -> None:
    assert facts.inputs() == (0.0, 0.0, 0.0)


def test_inputs_are_bounded() -> None:
    assert StreamFacts(1e30, 1e9).inputs() == (BOUND, BOUND, 1.0)
    assert StreamFacts(1e-30, 1e-9).inputs() == (-BOUND, -BOUND, 1.0)
