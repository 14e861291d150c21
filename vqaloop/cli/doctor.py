"""`vqaloop doctor`: what is installed, and what is wrong with it, on a page for a bug report."""

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vqaloop.cli.arguments import Command
from vqaloop.cli.output import emit, say
from vqaloop.core.text import counted, printable
from vqaloop.core.version import __version__
from vqaloop.errors import EncoderMissing, InputError, ToolError

SCHEMA = "vqaloop.doctor/1"
LEAST_FREE_GB = 2.0
"""Disk space below which a ladder of a long title is likely to fail."""
_VARIABLES = ("VQALOOP_FFMPEG", "VQALOOP_CACHE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def run_doctor(options: argparse.Namespace) -> int:
    """Exit status 1 where something keeps vqaloop from working as installed."""
    problems: list[str] = []
    document = {
        "schema": SCHEMA,
        "vqaloop": {"version": __version__, "place": _short(Path(__file__).parents[1])},
        "machine": _machine(),
        "packages": _packages(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "ffmpeg": _ffmpeg(options.ffmpeg, problems),
        "gpu": _gpu(),
        "weights": _weights(problems),
        "disk": _disk(problems),
        "problems": problems,
    }
    for line in report_lines(document):
        say(options, line)
    emit(options, document)
    return 1 if problems else 0


def add_doctor(command: Command) -> None:
    """The command."""
    command("doctor", run_doctor, "say what is installed and what is wrong, for a bug report")


def report_lines(document: dict[str, Any]) -> list[str]:
    """The page, a topic a line, within what a bug report needs."""
    machine, ffmpeg, disk = document["machine"], document["ffmpeg"], document["disk"]
    rows = [
        ("vqaloop", f"{document['vqaloop']['version']} in {document['vqaloop']['place']}"),
        ("python", f"{machine['python']} on {machine['system']}, {machine['kernel']}"),
        (
            "machine",
            f"{counted(machine['cpus'], 'CPU')} of {machine['cpus_total']}, "
            f"{machine['memory_gb']:g} GB memory, {machine['architecture']}",
        ),
        ("packages", ", ".join(f"{name} {v}" for name, v in document["packages"].items())),
        *((f"${name}", value) for name, value in document["environment"].items()),
        ("gpu", document["gpu"]["summary"]),
        ("weights", ", ".join(document["weights"])),
    ]
    for name, place in disk.items():
        text = f"{place['path']}: {place['free_gb']:g} GB free"
        if "used_gb" in place:
            text += f", {place['used_gb']:g} of {place['limit_gb']:g} GB used"
        rows.append((name, text))
    if ffmpeg:
        rows.append(
            ("ffmpeg", f"{ffmpeg['version']} in {ffmpeg['path']}, {ffmpeg['sha256'][:12]}")
        )
        for name, version in ffmpeg["encoders"].items():
            rows.append(("", f"{name:14}{version or 'not here'}"))
    wide = max(len(label) for label, _ in rows)
    lines = [printable(f"{label:{wide}}  {text}") for label, text in rows]
    if not document["problems"]:
        return [*lines, "", "No problem found."]
    return [*lines, "", *(printable(f"problem: {text}") for text in document["problems"])]


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        system = platform.system()
    return {
        "python": platform.python_version(),
        "system": system,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        # those that this process may use, which a container or taskset bounds
        "cpus": len(os.sched_getaffinity(0)),
        "cpus_total": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
    }


def _packages() -> dict[str, str]:
    """What vqaloop requires and what of its extras is here, with versions."""
    try:
        lines = importlib.metadata.requires("vqaloop") or []
    except importlib.metadata.PackageNotFoundError:
        # a tree that nobody installed
        lines = []
    # what tests and pages are made with says nothing of a run
    used = [line for line in lines if not re.search(r"extra == .(test|docs)", line)]
    names = dict.fromkeys(re.split(r"[^\w.-]", line)[0] for line in used)
    found = {}
    for name in sorted(names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _ffmpeg(asked: str | None, problems: list[str]) -> dict[str, Any]:
    """The program with its encoders; empty where there is none."""
    from vqaloop.core import ffmpeg as ffmpeg_graph
    from vqaloop.core.ffmpeg import ffmpeg_path
    from vqaloop.core.files import file_sha256
    from vqaloop.encoding.registry import load_encoders
    from vqaloop.encoding.survey import encoder_version, ffmpeg_version

    try:
        path = ffmpeg_path(asked)
        version = ffmpeg_version(path)
        # refused where another package has overwritten the module
        ffmpeg_graph.input("INPUT")
    except (InputError, ToolError) as error:
        problems.append(str(error))
        return {}
    encoders: dict[str, str | None] = {}
    for spec in load_encoders().values():
        try:
            encoders[spec.name] = encoder_version(spec, path)
        except EncoderMissing as error:
            encoders[spec.name] = None
            if spec.default:
                problems.append(str(error))
    filters = _filters(path)
    problems += [
        f"{path} was built without {name}, which {need}; name another with --ffmpeg"
        for name, need in (("libvmaf", "measures VMAF"), ("xpsnr", "measures XPSNR"))
        if name not in filters
    ]
    return {
        "path": _short(path),
        "version": version,
        "sha256": file_sha256(path),
        "encoders": encoders,
    }


def _filters(path: str) -> set[str]:
    from vqaloop.core import process

    done = process.run([path, "-hide_banner", "-filters"], timeout_s=60)
    words = (line.split() for line in done.stdout.decode("utf-8", "replace").splitlines())
    return {word[1] for word in words if len(word) > 2}


def _gpu() -> dict[str, Any]:
    import torch

    names = (
        [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    build = f"PyTorch with CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch for CPUs"
    return {
        "devices": names,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "summary": f"{', '.join(names) or 'none that PyTorch can use'} ({build})",
    }


def _weights(problems: list[str]) -> list[str]:
    """Names of the students that came with the package; damaged ones are problems."""
    from vqaloop.core.files import file_sha256
    from vqaloop.core.resources import WEIGHTS

    try:
        sums = (WEIGHTS / "SHA256SUMS").read_text("utf-8").split()
    except OSError as error:
        problems.append(f"the weights cannot be read ({error.strerror}); reinstall vqaloop")
        return []
    names = []
    for wanted, name in zip(sums[::2], sums[1::2], strict=False):
        path = WEIGHTS / name
        if not path.is_file() or file_sha256(path) != wanted:
            problems.append(f"{_short(path)} is not what was shipped; reinstall vqaloop")
        names.append(path.stem)
    return names


def _disk(problems: list[str]) -> dict[str, dict[str, Any]]:
    """Places that are written to: the cache, temporary files, the current folder."""
    from vqaloop.core.folders import cache_folder, check_writable
    from vqaloop.execution.cache import Cache

    with Cache() as cache:
        used = {"used_gb": _gb(cache.used_bytes()), "limit_gb": _gb(cache.max_bytes)}
    places = {
        "cache": (cache_folder(), "name another with VQALOOP_CACHE", used),
        "temporary": (Path(tempfile.gettempdir()), "name another with TMPDIR", {}),
        "here": (Path.cwd(), "go elsewhere, or name an output folder with -o", {}),
    }
    found = {}
    for name, (path, remedy, more) in places.items():
        there = next(
            place for place in (path.absolute(), *path.absolute().parents) if place.exists()
        )
        free = _gb(shutil.disk_usage(there).free)
        if free < LEAST_FREE_GB:
            problems.append(f"{_short(path)} has {free:g} GB of disk space left; {remedy}")
        try:
            check_writable(there, remedy)
        except InputError as error:
            problems.append(str(error))
        found[name] = {"path": _short(path), "free_gb": free, **more}
    return found


def _gb(size: int) -> float:
    return round(size / 1e9, 1)


def _short(path: str | Path) -> str:
    """A path without the name of whoever's home it lies in."""
    text, home = str(path), str(Path.home())
    return f"~{text[len(home) :]}" if home != "/" and text.startswith(f"{home}/") else text
