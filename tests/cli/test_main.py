"""The commands: what goes to stdout and to stderr, exit statuses, signals, pipes that close."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.commandline import SMALL, Room, children, fake_ffmpeg, running, slow_but
from tests.support.media import REPOSITORY, make_clip
from vqaloop.cli.main import main
from vqaloop.cli.parser import make_parser
from vqaloop.core.folders import is_study_file

SIZES = ("--resolutions", "160x96,112x64")
UNGUARDED = (*SMALL, *SIZES, "--guard", "off")
COMMANDS = (
    *("sample", "ladder", "score", "tune", "encode", "deliver", "regress", "report"),
    *("corpus", "distill", "evaluate", "encoders", "doctor", "completion", "man"),
)
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and in what nohup starts
from vqaloop.cli.main import main
sys.exit(main())
"""


def command(room: Room, *argv: str, **more: str) -> tuple[list[str], dict[str, str]]:
    """A program of its own that runs vqaloop in the room, and its environment."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TMPDIR": str(room.temp),
        "VQALOOP_CACHE": str(room.cache),
        **more,
    }
    return [sys.executable, "-c", SCRIPT, *argv], environment


@pytest.fixture
def clip(room: Room) -> str:
    make_clip(room.folder / "a.y4m", size="160x96")
    return "a.y4m"


def test_json_to_stdout_is_alone_there(room: Room, clip: str) -> None:
    said = room.run("ladder", clip, *SMALL, *SIZES, "--json", "-")
    assert said.status == 0, said.err
    assert json.loads(said.out) == room.document("a.h264.ladder")
    for line in said.err.splitlines():
        left = r"(, (at most )?\d+:\d\d left)?"
        stage = rf"(start|probe|(search|verify|guard|write)( \d+/\d+( at most)?)?{left}): "
        assert re.match(stage, line)


def test_json_to_a_file_beside_the_table(room: Room, clip: str) -> None:
    said = room.run("ladder", clip, *SMALL, *SIZES, "--json", "found.json", "-o", "new/folder")
    assert said.status == 0, said.err
    document = json.loads((room.folder / "found.json").read_text())
    assert document == room.document("new/folder")
    assert "worst s" in said.out and "in new/folder" in said.out
    assert {path.name for path in room.folder.iterdir()} == {"a.y4m", "found.json", "new"}


def test_quiet_says_nothing_on_stderr(room: Room, clip: str) -> None:
    said = room.run("ladder", clip, *SMALL, *SIZES, "--quiet")
    assert (said.status, said.err) == (0, "")
    assert room.run("ladder", clip, *SMALL, *SIZES, "--quiet", "--json", "-").err == ""


def test_a_second_ladder_in_the_same_folder_replaces_the_first(room: Room, clip: str) -> None:
    first = room.ladder(clip, *UNGUARDED)
    second = room.ladder(clip, *SMALL, "--resolutions", "144x88,112x64")
    files = {path.name for path in (room.folder / "out").iterdir()}
    assert {rung["file"] for rung in second["rungs"]} <= files
    old = {rung["file"] for rung in first["rungs"]} - {rung["file"] for rung in second["rungs"]}
    assert old and not old & files


@pytest.mark.parametrize(
    "name", ["-rf", "a b.y4m", "a%03d.y4m", "concat:a.y4m", "ü'\"$(x).y4m", "a\nb\x1b[31m.y4m"]
)
def test_names_are_data(room: Room, clip: str, name: str) -> None:
    (room.folder / clip).rename(room.folder / name)
    said = room.run("ladder", *UNGUARDED, "--", name)
    assert said.status == 0, said.err
    assert "\x1b" not in said.out + said.err
    (out,) = (path for path in room.folder.iterdir() if path.is_dir())
    assert out.name == f"{Path(name).stem}.h264.ladder"


def test_a_name_that_is_no_utf8(room: Room, clip: str) -> None:
    name = os.fsdecode(b"a\xff.y4m")
    (room.folder / clip).rename(room.folder / name)
    said = room.run("ladder", name, *UNGUARDED, "--json", "-")
    assert said.status == 0, said.err
    assert json.loads(said.out)["source"]["path"] == "a\ufffd.y4m"
    missing = room.run("ladder", os.fsdecode(b"b\xff.y4m"), *SMALL)
    assert (missing.status, missing.err.count("\n")) == (2, 1)


def test_every_command_has_help_and_refuses_with_one_message(room: Room) -> None:
    for name in COMMANDS:
        assert room.run(name, "--help").status == 0
        said = room.run(name, "--nonsense")
        assert (said.status, said.out, said.err.count("\n")) == (2, "", 1), said.err
        assert said.err.startswith("vqaloop: ")
    assert room.run("--version").out.startswith("vqaloop ")
    listed = make_parser().format_help()
    assert all(f"    {name} " in listed for name in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--quiet"], "COMMAND"),
        (["conquer"], "invalid choice: 'conquer'"),
        (["laddder", "a.y4m"], "(did you mean ladder?)"),
        (["regress", "--candidate-args", "-x"], "given as --candidate-args='-...'"),
        (["tune", "a.y4m", "--codec", "h246"], "(did you mean --codec h264?)"),
        (["tune", "a.y4m", "--bitrate", "5MB/s"], "write 5 Mb/s as 5000 or 5M"),
        (["ladder", "a.y4m", "--codek", "h264"], "--codek is unknown (did you mean --codec?)"),
        (["ladder", "https://a.b/c.mp4", "--codec", "h264"], "'https://a.b/c.mp4' is a URL"),
        (["score", "rtmp://a.b/c"], "'rtmp://a.b/c' is a URL"),
        (["ladder", "-", "--codec", "h264"], "'-' would be standard input"),
        (["completion", "tcsh"], "invalid choice: 'tcsh'"),
        (["man", "-o", "none/vqaloop.1"], "no such folder"),
        (["score", "a.y4m", "--metric", "psnr"], "psnr needs the original: give it with"),
        (["score", "none.mp4", "--reference", "a.y4m", "--metric", "psnr"], "does not exist"),
        (["score", "a.y4m", "--reference", "b.y4m", "--metric", "psnr"], "12 frames and its"),
        (["score", "a.y4m", "--weights", "none"], "'none' cannot be read"),
        (["score", "a.y4m", "--metric", "mos"], "unknown metric 'mos'"),
        (["report", "."], "ladder.json"),
        (["report", "none"], "ladder.json"),
        (["report", "a.y4m"], "ladder.json"),
        (["sample", "a.avi"], "the suffix must be one of"),
        (["sample", "a.y4m"], "already exists; choose another name, or give --overwrite"),
        (["sample", "none/c.y4m"], "no such folder"),
        (["sample", "c.y4m", "--size", "63x64"], "even numbers"),
        (["sample", "c.y4m", "--size", "64x64,64x64"], "is not a resolution"),
        (["sample", "c.y4m", "--seconds", "nan"], "seconds = nan"),
        (["corpus", "none", "out"], "none"),
        (["corpus", "a.y4m", "out", "--workers", "0"], "at least one worker"),
        (["distill", "none.toml"], "none.toml"),
        (["evaluate", "none.safetensors", "."], "no weights"),
        (["evaluate", "internvqa-mini", "none"], "none"),
        (["encoders", "--ffmpeg", "a.y4m"], "not an executable ffmpeg"),
        (["encoders", "--seed", "-1"], "must not be negative"),
    ],
)
def test_refusals_of_the_other_commands(room: Room, clip: str, argv: list[str], says: str) -> None:
    make_clip(room.folder / "b.y4m", size="160x96", frames=10)
    before = room.tree()
    said = room.run(*argv)
    assert said.status == 2, said
    assert (said.out, said.err.count("\n")) == ("", 1), said.err
    assert said.err.startswith("vqaloop: ") and says in said.err
    assert room.tree() == before


def test_score_and_report(room: Room, clip: str) -> None:
    document = room.ladder(clip, *SMALL, *SIZES)
    rung = document["rungs"][-1]
    video = f"out/{rung['file']}"
    said = room.run("score", video, "--reference", clip, "--metric", "psnr", "--json", "-")
    found = json.loads(said.out)
    assert found["value"] == pytest.approx(rung["score"], abs=1e-3)
    assert (found["metric"], found["mode"], found["interval"]) == ("psnr", "full-reference", None)
    assert len(found["clips"]) == 12 and found["lowest"] == min(found["clips"])
    assert found["schema"] == "vqaloop.score/1"
    human = room.run("score", video, "--reference", clip, "--metric", "psnr")
    assert human.out == f"{found['value']:.2f}  psnr, full-reference\n"
    (room.folder / "out" / "report.html").unlink()
    again = room.run("report", "out", "--json", "-")
    assert again.status == 0 and json.loads(again.out) == document
    assert (room.folder / "out" / "report.html").is_file()


def test_sample_and_encoders(room: Room) -> None:
    said = room.run("sample", "s.y4m", "--seconds", "0.4", "--size", "64x64", "--json", "-")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert found["bytes"] == (room.folder / "s.y4m").stat().st_size
    assert room.run("sample", "s.y4m", "--seconds", "0.4", "--size", "64x64").status == 2
    listed = json.loads(room.run("encoders", "--json", "-").out)
    assert {item["codec"] for item in listed} >= {"h264", "hevc", "vp9", "av1", "avs2"}


@pytest.mark.parametrize(("argv", "same"), [([], ["--help"]), (["help", "man"], ["man", "-h"])])
def test_help_is_had_without_a_dash(room: Room, argv: list[str], same: list[str]) -> None:
    said = room.run(*argv)
    assert said == room.run(*same) and said.status == 0 and said.out.startswith("usage: ")


def test_doctor_names_what_is_here_and_what_is_wrong(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = room.run("doctor", "--json", "doctor.json")
    document = json.loads((room.folder / "doctor.json").read_text())
    assert (said.status, document["problems"]) == (0, []), said.out
    assert document["packages"]["torch"] and document["packages"]["msgspec"]
    assert not {"pytest", "mypy", "mkdocs-material"} & document["packages"].keys()
    assert document["ffmpeg"]["encoders"]["libx264"].startswith("libx264 ")
    assert document["disk"]["cache"]["path"] == str(room.cache)
    for text in ("libsvtav1", str(room.cache), "PyTorch", "internvqa-mini", "No problem found"):
        assert text in said.out
    broken = fake_ffmpeg(room.folder / "ffmpeg", {"*libx264*": "exit 1"})
    said = room.run("doctor", "--ffmpeg", broken)
    assert said.status == 1 and "problem: libx264 of" in said.out
    monkeypatch.setenv("VQALOOP_FFMPEG", "none")
    said = room.run("doctor")
    assert said.status == 1 and "problem: none is not an executable ffmpeg" in said.out


def test_the_manual_page_has_every_option(room: Room) -> None:
    page = room.run("man").out
    assert page.startswith(".TH VQALOOP")
    for line in page.splitlines():
        # what begins with a dot and is no request would not be shown
        assert not line.startswith(".") or re.match(
            r"\.(TH|SH|SS|TP|PP|RS|RE|B|I|br|nf|fi)\b", line
        )
    for text in ("vqaloop ladder", r"\-\-max\-bitrate", r"\-\-target\-score", r"\.y4m"):
        assert text in page or text.replace("\\", "") in page


def test_a_shell_completes(room: Room) -> None:
    for shell, sign in (("zsh", "#compdef vqaloop"), ("fish", "complete -c vqaloop")):
        assert sign in room.run("completion", shell).out
    room.run("completion", "bash", "-o", "vqaloop.bash")
    script = (
        "source vqaloop.bash; complete -p vqaloop; "
        'COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _shtab_vqaloop "" "${@: -1}"; '
        'echo "${COMPREPLY[*]}"'
    )
    for words, found in {
        "vqaloop lad": "ladder",
        "vqaloop ladder --max-bi": "--max-bitrate",
        "vqaloop tune --codec h": "h264 hevc",
        "vqaloop encode --metric vmaf-s": "vmaf-sampled",
    }.items():
        argv = ["bash", "-c", script, "bash", words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
        assert done.stdout.splitlines()[-1] == found, (words, done)


def test_an_ffmpeg_is_chosen_for_one_command_only(
    room: Room, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_ffmpeg(room.folder / "ffmpeg", {"*libx264*": "exit 1"})
    monkeypatch.delenv("VQALOOP_FFMPEG", raising=False)
    refused = room.run("ladder", clip, *SMALL, *SIZES, "--ffmpeg", fake)
    assert refused.status == 2 and "libx264 of" in refused.err
    assert "VQALOOP_FFMPEG" not in os.environ
    monkeypatch.setenv("VQALOOP_FFMPEG", str(fake))
    assert room.run("ladder", clip, *SMALL, *SIZES).status == 2


@pytest.mark.parametrize(
    "number",
    slow_but([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], signal.SIGINT, signal.SIGTERM),
)
def test_interrupted_by_a_signal(room: Room, clip: str, number: signal.Signals) -> None:
    """While one of two encodes hangs; then the same command goes on with what is there."""
    pids = room.folder / "pids"
    (room.folder / "now").touch()
    hangs = f"if [ -e now ]; then echo $$ >> '{pids}'; exec sleep 600; fi"
    fake = fake_ffmpeg(room.folder / "ffmpeg", {"*libx264*scale=112:64:*": hangs})
    words = ("ladder", clip, *UNGUARDED, "-o", "out", "--workers", "2", "--ffmpeg", str(fake))
    argv, environment = command(room, *words)
    running_one = subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60

    def made() -> list[Path]:
        """Encodes that are in the cache as a whole."""
        data = room.cache.glob("v1/**/*.mp4")
        return [path for path in data if path.with_name(f"{path.stem[:64]}.json").exists()]

    while not (pids.exists() and pids.read_text().split() and made()):
        assert running_one.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    running_one.send_signal(number)
    out, err = running_one.communicate(timeout=20)
    assert (running_one.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("vqaloop: interrupted; what was finished is kept")
    assert "Traceback" not in err and "failed" not in err
    assert not any(running(int(pid)) for pid in pids.read_text().split())
    assert not list(room.temp.iterdir())
    assert all(is_study_file(path) for path in (room.folder / "out").iterdir())
    done = len(made())
    (room.folder / "now").unlink()
    assert room.run(*words).status == 0
    document = room.document()
    assert done >= 1 and document["cost"]["encodes"] == len(document["trials"]) - done


HOOKED = """
import os, signal, sys, weakref
signal.signal(signal.SIGINT, signal.default_int_handler)
number = int(os.environ["NUMBER"])

class Finder:
    def find_spec(self, name, *_):
        if name == os.environ.get("AT_IMPORT"):
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Finder())
from vqaloop.cli.main import main
if "AT_IMPORT" not in os.environ:
    from vqaloop.report.progress import Progress
    show = Progress.__call__

    def hooked(self, event):
        thing = set()
        kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
        del thing
        show(self, event)

    Progress.__call__ = hooked
sys.exit(main())
"""
"""A signal comes while a module is imported; else in the callback of a weak reference, where
Python ignores what is raised."""


@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGINT, "vqaloop.cli.parser"),
        (signal.SIGINT, "vqaloop.ladder.build"),
        (signal.SIGINT, None),
        (signal.SIGTERM, None),
    ],
)
def test_no_moment_swallows_a_signal(
    room: Room, clip: str, number: signal.Signals, module: str | None
) -> None:
    more = {"NUMBER": str(int(number)), **({"AT_IMPORT": module} if module else {})}
    argv, environment = command(room, "ladder", clip, *SMALL, *SIZES, "-o", "out", **more)
    argv[2] = HOOKED
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert done.stderr.splitlines()[-1].startswith("vqaloop: interrupted; what was finished is")
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert not (room.folder / "out" / "ladder.json").exists() and not list(room.temp.iterdir())


@pytest.mark.parametrize("seed", slow_but(range(12), 0, 1))
def test_a_signal_at_any_moment_ends_it(room: Room, clip: str, seed: int) -> None:
    """Sent once, or again and again: with 130, without a traceback, and nothing left."""
    chance, often = random.Random(seed), seed % 2
    fake = fake_ffmpeg(room.folder / "ffmpeg", {"*libx264*": "sleep 0.4"})
    words = ("ladder", clip, *SMALL, *SIZES, "-o", "out", "--ffmpeg", str(fake))
    argv, environment = command(room, *words)
    one = subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # the first words come once all is imported
    assert one.stderr is not None and one.stderr.read(1)
    time.sleep(chance.uniform(0, 1.5))
    number, sent = chance.choice([signal.SIGINT, signal.SIGTERM]), time.monotonic()
    one.send_signal(number)
    while often and one.poll() is None and time.monotonic() < sent + 20:
        time.sleep(chance.uniform(0, 0.4))
        one.send_signal(number)
    out, err = one.communicate(timeout=20)
    assert (one.returncode, out) == (130, ""), err
    assert "Traceback" not in err and "ignored" not in err and "closed file" not in err
    # what is stopped at once leaves the rest to its guardian
    while list(room.temp.iterdir()) and time.monotonic() < sent + 20:
        time.sleep(0.05)
    assert not list(room.temp.iterdir())


def test_the_library_takes_no_signals(room: Room, clip: str) -> None:
    script = (
        "import os, signal, vqaloop\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def told(event):\n"
        "    if event.stage == 'search': os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        f"    vqaloop.build_ladder({clip!r}, codec='h264', metric='psnr', preset='ultrafast',\n"
        "        rungs=2, resolutions=[(160, 96), (112, 64)], progress=told)\n"
        "except KeyboardInterrupt:\n"
        "    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "    print('interrupted')\n"
    )
    _, environment = command(room)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "interrupted\n", done.stderr
    assert not list(room.temp.iterdir())


def run_with(
    room: Room, stdout: int, *argv: str, more: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    words, environment = command(room, *argv, **(more or {}))
    return subprocess.run(
        words, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60
    )


def test_a_reader_that_leaves_is_no_error(room: Room) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_with(room, writer, "encoders", "--verbose")
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_stdout_is_one(room: Room) -> None:
    with open("/dev/full", "wb") as full:
        done = run_with(room, full.fileno(), "encoders")
    assert (done.returncode, done.stderr) == (2, "vqaloop: No space left on device\n")


def test_a_closed_stdout_is_none(room: Room, clip: str) -> None:
    words, environment = command(room, "ladder", clip, *UNGUARDED, "--json", "-", "-o", "out")
    shell = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *words]
    done = subprocess.run(shell, env=environment, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(room.document()["rungs"]) == 2


def test_a_terminal_of_few_letters(room: Room, clip: str) -> None:
    (room.folder / clip).rename(room.folder / "ä.y4m")
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = run_with(room, subprocess.PIPE, "ladder", "ä.y4m", *UNGUARDED, more=plain)
    assert done.returncode == 0, done.stderr
    assert "in \\xe4.h264.ladder" in done.stdout


def test_main_may_be_called_from_a_thread(room: Room) -> None:
    import threading

    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(main(["encoders"])))
    thread.start()
    thread.join(timeout=60)
    assert seen == [0] and not children()
