"""The GitHub Action and the GitLab component are valid, and do what they say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.media import REPOSITORY, make_clip
from vqaloop.cli.parser import make_parser

ACTION = REPOSITORY / "integrations" / "github" / "action.yml"
COMPONENT = REPOSITORY / "integrations" / "gitlab" / "regress.yml"
YAMLLINT = (
    "{extends: default, rules: {document-start: disable, line-length: {max: 120}, "
    "truthy: {check-keys: false}}}"
)
STUB = """#!/bin/sh
printf '%s\\n' "$@" > "$WORDS"
while [ "$#" -gt 0 ]; do
    case $1 in
        --json) printf '{"verdict": "regression"}' > "$2" ;;
        --markdown) printf '# worse\\n' > "$2" ;;
        --html) printf '<html>' > "$2" ;;
    esac
    shift
done
exit 1
"""


def loaded(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def script(folder: Path, program: str, **given: str) -> "subprocess.CompletedProcess[str]":
    """Run the action's script with this `vqaloop`, in `folder`."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "vqaloop").write_text(program)
    (tools / "vqaloop").chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "WORDS": str(folder / "words"),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "VQALOOP_DIRECTORY": "made",
        "VQALOOP_BASELINE": "base.json",
        "VQALOOP_CANDIDATE": "./x264",
        "VQALOOP_CODEC": "h264",
        "VQALOOP_OPTIONS": "",
        **given,
    }
    return subprocess.run(
        ["bash", str(ACTION.parent / "compare.sh")],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_action_gives_its_inputs_to_the_script_as_variables_alone() -> None:
    (action,) = loaded(ACTION)
    steps = action["runs"]["steps"]
    assert action["runs"]["using"] == "composite"
    for step in steps:
        # what is expanded inside a program could end it and begin another
        assert "${{" not in step.get("run", "")
        assert ("shell" in step) == ("run" in step)
    used = json.dumps(action["runs"]) + json.dumps(action["outputs"])
    for name in action["inputs"]:
        assert f"inputs.{name}" in used, name
    for output in action["outputs"].values():
        assert "steps.compare.outputs." in output["value"]
    text = (ACTION.parent / "compare.sh").read_text()
    for name in next(step for step in steps if step.get("id") == "compare")["env"]:
        assert name in text


def test_the_options_of_the_component_are_there() -> None:
    spec, jobs = loaded(COMPONENT)
    (job,) = jobs.values()
    inputs = spec["spec"]["inputs"]
    text = COMPONENT.read_text("utf-8").split("\n---\n")[1]
    for name in inputs:
        assert f"$[[ inputs.{name} ]]" in text, name
    options = job["variables"]["COMPARE"]
    for name, value in {"codec": "h264", "options": inputs["options"]["default"]}.items():
        options = options.replace(f"$[[ inputs.{name} ]]", value)
    parsed = make_parser().parse_args(["regress", *options.split()])
    assert (parsed.codec, parsed.frames, parsed.quiet) == ("h264", 60, True)
    assert job["artifacts"]["reports"]["junit"] == "report.xml"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("yamllint", ("-d", YAMLLINT)),
        ("check_jsonschema", ("--builtin-schema", "vendor.github-actions")),
    ],
)
def test_other_readers_take_the_files(module: str, words: tuple[str, ...]) -> None:
    pytest.importorskip(module)
    files = [str(ACTION)] + ([str(COMPONENT)] if module == "yamllint" else [])
    done = subprocess.run(
        [sys.executable, "-m", module, *words, *files], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_writes_summary_outputs_and_files(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("b.y4m", "a clip.y4m", "[x].y4m", "$(touch hacked).y4m"):
        (clips / name).write_text("")
    patterns = "clips/*clip.y4m\n\nclips/[x].y4m\nclips/$(touch hacked).y4m\n"
    done = script(
        tmp_path,
        STUB,
        VQALOOP_CLIPS=patterns,
        VQALOOP_OPTIONS='--preset medium --args "--aq-mode 1; touch hacked" \n--threshold 2',
    )
    # the artefact is kept whatever the verdict; the action's last step fails
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:3] == ["regress", "--baseline=base.json", "--candidate=./x264"]
    assert words[4:10] == [
        *("--preset", "medium", "--args", "--aq-mode 1; touch hacked", "--threshold", "2"),
    ]
    assert words[words.index("--") + 1 :] == [
        *("clips/a clip.y4m", "clips/[x].y4m", "clips/$(touch hacked).y4m"),
    ]
    assert not (tmp_path / "hacked").exists()
    outputs = dict(line.split("=", 1) for line in (tmp_path / "output").read_text().splitlines())
    assert outputs == {
        "status": "1",
        "verdict": "regression",
        "report": "made/report.md",
        "page": "made/report.html",
    }
    assert (tmp_path / "summary").read_text() == "# worse\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"VQALOOP_CLIPS": "none/*.y4m"}, "no clip is there by the name none/*.y4m"),
        ({"VQALOOP_CLIPS": "a.y4m", "VQALOOP_OPTIONS": 'it"s'}, "quotes of the options"),
    ],
)
def test_wrong_inputs_are_named(given: dict[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.y4m").write_text("")
    done = script(tmp_path, STUB, **given)
    assert done.returncode == 2 and said in done.stderr
    assert not (tmp_path / "words").exists()


def test_a_refusal_is_an_output_too(tmp_path: Path) -> None:
    (tmp_path / "a.y4m").write_text("")
    done = script(tmp_path, "#!/bin/sh\nexit 2\n", VQALOOP_CLIPS="a.y4m")
    assert done.returncode == 0
    assert (tmp_path / "output").read_text() == "status=2\nverdict=refused\n"


@pytest.mark.slow
def test_the_script_compares_real_builds(tmp_path: Path) -> None:
    x264 = shutil.which("x264")
    if not x264:
        pytest.skip("x264 is not installed")
    make_clip(tmp_path / "a.mp4", frames=10)
    program = f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m vqaloop "$@"\n'
    done = script(
        tmp_path,
        program,
        VQALOOP_BASELINE=x264,
        VQALOOP_CANDIDATE=x264,
        VQALOOP_CLIPS="a.mp4",
        VQALOOP_OPTIONS="--metric psnr --gate psnr_y --knobs 22,27,32,37",
        VQALOOP_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    assert "status=0\nverdict=no change\n" in (tmp_path / "output").read_text()
    assert "<html" in (tmp_path / "made" / "report.html").read_text()
    assert (tmp_path / "summary").read_text()
