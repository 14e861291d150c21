"""What messages offer in the place of an unknown word."""

import pytest

from vqaloop.cli.parser import make_parser
from vqaloop.core.suggestions import did_you_mean
from vqaloop.encoding.checks import named_encoder
from vqaloop.encoding.registry import codecs, get_encoder
from vqaloop.errors import InputError


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        *(("h265", "hevc"), ("x265", "hevc"), ("H.265", "hevc"), ("hvec", "hevc")),
        *(("x264", "h264"), ("h.264", "h264"), ("avc", "h264"), ("h246", "h264")),
        *(("svtav1", "av1"), ("SVT-AV1", "av1"), ("vp-9", "vp9"), ("xavs2", "avs2")),
        ("libaom-av1", "av1 --encoder libaom-av1"),
        ("hevc_nvenc", "hevc --encoder hevc_nvenc"),
    ],
)
def test_another_name_of_a_codec_is_refused_with_the_right_one(word: str, meant: str) -> None:
    with pytest.raises(InputError) as refused:
        named_encoder(word, None)
    assert str(refused.value).endswith(f"(did you mean --codec {meant}?)")


@pytest.mark.parametrize("word", ["vvc", "h266", "h263", "vp8", "avs3", "theora", "", "?"])
def test_another_codec_is_not_taken_for_a_slip(word: str) -> None:
    with pytest.raises(InputError) as refused:
        named_encoder(word, None)
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize(("word", "meant"), [("x264", "libx264"), ("svt-av1", "libsvtav1")])
def test_an_encoder_by_its_own_project_s_name(word: str, meant: str) -> None:
    with pytest.raises(InputError) as refused:
        get_encoder(word)
    assert str(refused.value).endswith(f"(did you mean {meant}?)")


def test_no_name_is_offered_for_a_word_of_its_own() -> None:
    assert did_you_mean("conquer", codecs()) == ""
    assert did_you_mean("lader", ["ladder", "score"]) == " (did you mean ladder?)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ladder a.mp4 --codec av1 --max-scor 80", "(did you mean --max-score?)"),
        ("ladder a.mp4 --codec av1 --rung=4", "(did you mean --rungs?)"),
        ("encode a.mp4 b.mp4 --codec av1 --taget-score 85", "(did you mean --target-score?)"),
        ("score a.mp4 --quite x", "(did you mean --quiet?)"),
        ("score a.mp4 --fast", "--fast"),
    ],
)
def test_a_mistyped_option_is_refused_with_the_right_one(words: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        make_parser().parse_args(words.split())
    command = words.split()[0]
    assert str(refused.value).endswith(f"{said}; see `vqaloop {command} --help`")
