"""Settings of a project: files, profiles, what counts, and what is refused."""

import json
from typing import Any

import pytest

import vqaloop
from tests.support.commandline import Room
from tests.support.media import make_clip
from vqaloop.cli.parser import parse_words
from vqaloop.errors import InputError
from vqaloop.ladder.options import LadderOptions
from vqaloop.ladder.profiles import SHIPPED, read_settings

PROJECT = """
profile = "web"

[defaults]
codec = "hevc"
workers = 2
no-cache = true

[ladder]
rungs = 4
max-bitrate = "4M"
prior = "none"

[profiles.web]
rungs = 3
resolutions = ["720p", "640x360"]
peak-ratio = 1.5
target-score = 85
"""


@pytest.fixture
def project(room: Room) -> Room:
    (room.folder / "vqaloop.toml").write_text(PROJECT)
    return room


def found(*words: str) -> dict[str, Any]:
    return {name: value for name, value in vars(parse_words(words)).items() if value is not None}


def test_a_profile_goes_before_a_command_s_table_and_the_words_before_both(project: Room) -> None:
    options = found("ladder", "a.y4m")
    assert (options["codec"], options["workers"], options["cache"]) == ("hevc", 2, False)
    assert (options["rungs"], options["max_bitrate"], options["peak_ratio"]) == (3, 4000.0, 1.5)
    assert options["resolutions"] == [(0, 720), (640, 360)] and options["prior"] == "none"
    words = ("--codec=av1", "--rungs", "5", "--no-prior", "--no-cap", "--max-bitrate=1M")
    options = found("ladder", "a.y4m", *words)
    assert (options["codec"], options["rungs"], options["max_bitrate"]) == ("av1", 5, 1000.0)
    assert options["no_cap"] and "peak_ratio" not in options
    assert found("ladder", "a.y4m", "--profile", "mobile")["max_bitrate"] == 3000.0
    # what another command has is let be there, and what goes with a target gives way to another
    assert found("encode", "a.y4m", "b.mp4")["target_score"] == 85
    assert "target_score" not in found("encode", "a.y4m", "b.mp4", "--bitrate", "1M")


def test_what_counts_is_shown_with_its_origin(project: Room) -> None:
    said = project.run("ladder", "--show-config", "--rungs", "6", "--json", "config.json")
    assert said.status == 0, said.err
    assert "max-bitrate = 4M  ('vqaloop.toml', [ladder])" in said.out
    assert "resolutions = 720p,640x360  ('vqaloop.toml', [profiles.web])" in said.out
    assert "rungs = 6  (the command line)" in said.out and "prior = none" in said.out
    document = json.loads((project.folder / "config.json").read_text())
    assert document["options"]["codec"]["value"] == "hevc"
    assert set(document["options"]) == {
        *("codec", "workers", "no-cache", "rungs", "max-bitrate", "prior", "resolutions"),
        "peak-ratio",
    }
    (project.folder / "vqaloop.toml").unlink()
    assert "All other options" in project.run("ladder", "--show-config").out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[lader]\nrungs = 3",
            "'lader' is neither profile, defaults, profiles nor a command (",
        ),
        ("[ladder]\nrung = 3", "[ladder]: no command has an option 'rung' (did you mean rungs?)"),
        ("[ladder]\nrungs = 'many'", "[ladder] rungs: --rungs 'many' is neither a number nor"),
        ("[ladder]\nmax-bitrate = '5MB'", "[ladder] max-bitrate: '5MB' is not a number of kb/s"),
        ("[ladder]\nprior = 'mine'", "[ladder] prior: 'mine' is none of shipped, own, none"),
        ("[ladder]\nno-cap = 3", "[ladder] no-cap is a switch; it is true or false, not '3'"),
        ("[ladder]\nrungs = true", "[ladder] rungs takes a value; it is true"),
        ("[ladder]\nrungs = {a = 1}", "[ladder] rungs: an option is a text, a number, a list"),
        ("[defaults]\nprofile = 'tv'", "no command has an option 'profile'"),
        ("ladder = 3", "[ladder] is a table of options"),
        ("profile = 3", "profile is the name of one; it is 3"),
        ("profile = 'tvv'", "there is no profile 'tvv' (did you mean tv?)"),
        ("[ladder", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_its_place(room: Room, text: str, says: str) -> None:
    (room.folder / "a.toml").write_text(text)
    with pytest.raises(InputError) as refused:
        parse_words(["ladder", "a.y4m", "--codec", "h264", "--preset-file", "a.toml"])
    assert says in str(refused.value)


def test_a_file_that_is_not_there_is_refused(room: Room) -> None:
    said = room.run("ladder", "a.y4m", "--codec", "h264", "--preset-file", "none.toml")
    assert (said.status, said.err.count("\n")) == (2, 1) and "'none.toml' cannot be" in said.err


@pytest.mark.parametrize("profile", read_settings(SHIPPED).profiles)
def test_profiles_that_come_along_are_options_of_a_ladder(profile: str) -> None:
    options = LadderOptions(codec="h264", **vqaloop.read_profile(profile))
    assert options.within((640, 360)).asked()
    parse_words(["ladder", "a.y4m", "--codec", "h264", "--profile", profile])
    parse_words(["encode", "a.y4m", "b.mp4", "--codec", "h264", "--profile", profile])


def test_a_profile_plans_a_ladder_of_a_small_source(room: Room) -> None:
    """Sizes larger than the source are left out."""
    make_clip(room.folder / "a.y4m", size="320x180", frames=12)
    options = vqaloop.read_profile("mobile")
    plan = vqaloop.plan_ladder("a.y4m", codec="h264", metric="psnr", **options)
    assert plan.sizes == ((320, 180),)
    (room.folder / "own.toml").write_text("[profiles.tiny]\nresolutions = '180p,90p'\n")
    options = vqaloop.read_profile("tiny", "own.toml")
    plan = vqaloop.plan_ladder("a.y4m", codec="h264", metric="psnr", **options)
    assert plan.sizes == ((320, 180), (160, 90))
