"""What a GPU does with the students: one command, under ten minutes, on a machine with one.

    python -m bench.gpu [--small] [--out FILE.json] [--minutes M] [--data DIR]
    python -m bench.gpu --table FILE.json

In order of worth: scores on CPU and GPU agree; batches are halved on a filled card; clips/s,
TFLOP/s and the share of a measured matrix peak; uploads with and without overlap; seconds from a
bitstream to its score; what a first run may fail on, one by one; then, in the time left, training
of a larger teacher on the labelled shards in DIR. A section that fails or cannot be run is
recorded and the next goes on. The JSON is written after each; the exit status is 1 if a check
failed. --table prints the JSON as the tables of docs/scoring.md. --small is a miniature that runs
on a CPU too.

Needed are PyTorch and NumPy; to read a student, safetensors; to train, msgspec; for figures on
held-out titles, pandas and SciPy; to decode, PyAV and ffmpeg. A section that lacks a package names
it. Where nothing can be downloaded, carry what is missing: fetch the wheel for that
machine's Python (`pip download --no-deps --only-binary=:all: --python-version 3.12 msgspec`),
unpack it (`python -m zipfile -e NAME.whl carried`), and put the folder on PYTHONPATH there.
msgspec's is 0.2 MB, safetensors' 0.5, PyAV's 36. DIR travels likewise: shards of `vqaloop corpus`,
and released checkpoints (*.pt, *.pth, *.bin).
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import gpu_sections as sections
from bench import gpu_training as training
from bench.gpu_sections import Findings, Run, Untestable

SECTIONS: dict[str, Callable[[Run], Findings]] = {
    "machine": sections.machine,
    "agreement": sections.agreement,
    "memory": sections.memory,
    "throughput": sections.throughput,
    "uploads": sections.uploads,
    "decoding": sections.decoding,
    "risks": training.risks,
    "teacher": training.teacher,
}
LEAST_S = 20
"""Seconds below which no section is begun any more."""
GRACE_S = 20
"""Seconds beyond the budget after which a section that does not end is cut off."""


def write(path: Path, document: dict[str, Any]) -> None:
    """The JSON, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def run_section(name: str, run: Run) -> dict[str, Any]:
    """A section's status, seconds and figures, whatever happens in it."""
    begun = time.monotonic()
    if run.left_s < (0 if run.small else LEAST_S):
        return {"status": "skipped", "why": "no time left"}
    try:
        found = SECTIONS[name](run)
        row = {"status": "failed" if found.faults else "ok", **found.figures}
        if found.faults:
            row["why"] = "; ".join(found.faults)
    except Untestable as error:
        row = {"status": "skipped", "why": str(error)}
    except ModuleNotFoundError as error:
        row = {"status": "skipped", "why": f"the package {error.name} is missing: carry its wheel"}
    except Exception as error:
        row = {"status": "failed", "why": f"{type(error).__name__}: {str(error)[:2000]}"}
    return {**row, "seconds": round(time.monotonic() - begun, 3)}


def run_all(run: Run) -> dict[str, Any]:
    """All sections in turn, the JSON written after each."""
    document: dict[str, Any] = {"bench": "gpu", "small": run.small, "sections": {}}
    current = ["machine"]

    def cut_off() -> None:
        # a kernel or a compiler that hangs cannot be interrupted
        done = document["sections"]
        done[current[0]] = {"status": "failed", "why": "did not end in time and was cut off"}
        write(run.out, document)
        run.report(f"{current[0]}: did not end in time")
        os._exit(1)

    watch = threading.Timer(max(1.0, run.left_s) + GRACE_S, cut_off)
    watch.daemon = True
    watch.start()
    try:
        for name in SECTIONS:
            current[0] = name
            row = run_section(name, run)
            document["sections"][name] = row
            write(run.out, document)
            why = f" ({row['why']})" if "why" in row else ""
            run.report(f"{name}: {row['status']}{why}, {row.get('seconds', 0):.1f} s")
            if run.on_gpu:
                torch.cuda.empty_cache()
    finally:
        watch.cancel()
    return document


# --- the tables of the docs ----------------------------------------------------------------------


def table(document: dict[str, Any]) -> str:
    """The figures as Markdown."""
    done = document["sections"]
    lines = []
    machine = done.get("machine", {})
    if "bf16_peak_tflops" in machine:
        lines = [
            f"{machine['device']}, PyTorch {machine['torch']}, CUDA {machine['cuda'] or 'none'}; "
            "matrix peaks measured, TFLOP/s: "
            f"{sections.tflops(machine['bf16_peak_tflops'])} in bf16, "
            f"{sections.tflops(machine['fp32_peak_tflops'])} in fp32.",
            "",
        ]
    lines += ["| check | outcome | s |", "| --- | --- | ---: |"]
    single = {name: row for name, row in done.get("risks", {}).items() if isinstance(row, dict)}
    for name, row in {**done, **single}.items():
        outcome = row["status"] + (f": {row['why']}" if "why" in row else "")
        lines.append(f"| {name} | {_cell(outcome)} | {row.get('seconds', 0):.0f} |")
    lines += ["", *_agreement_lines(done.get("agreement", {}))]
    lines += _throughput_lines(done.get("throughput", {}))
    uploads, decoding = done.get("uploads", {}), done.get("decoding", {})
    if "plain_clips_per_s" in uploads:
        lines += [
            "",
            f"Scores by {uploads['threads']} threads, clips uploaded each time: "
            f"{uploads['overlapped_clips_per_s']:.0f} clips/s, "
            f"{uploads['plain_clips_per_s']:.0f} without pinned memory and overlap.",
        ]
    if "score" in decoding:
        size = "x".join(map(str, decoding["size"]))
        lines += [
            "",
            f"From bitstream to score, {decoding['frames']} frames of {size}: "
            f"{decoding['s']:.2f} s.",
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _agreement_lines(row: dict[str, Any]) -> list[str]:
    lines = [
        "| student | encodes | anchored differs by, at most | alone |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in sections.SHIPPED:
        if name in row:
            part = row[name]
            gaps = part["anchored_largest"], part["alone_largest"]
            lines.append(f"| {name} | {part['encodes']} | {gaps[0]:.5f} | {gaps[1]:.5f} |")
    return [*lines, ""]


def _throughput_lines(row: dict[str, Any]) -> list[str]:
    lines = [
        "| student | way | batch | clips/s | TFLOP/s | share of the peak | error |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in row.items():
        for each in rows if isinstance(rows, list) else ():
            figures = "- | - | - | -"
            if "clips_per_s" in each:
                rate, speed = each["clips_per_s"], each["tflops"]
                figures = f"{rate:.0f} | {sections.tflops(speed)} | {each['share_of_peak']:.0%} | "
                figures += f"{each['error']:.1e}"
            why = f" ({_cell(each['why'])})" if "why" in each else ""
            lines.append(f"| {name} | {each['way']}{why} | {each.get('batch', '-')} | {figures} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="a miniature, also on a CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE.json")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="M")
    parser.add_argument("--data", type=Path, metavar="DIR", help="labelled shards, checkpoints")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print its tables")
    options = parser.parse_args(arguments)
    if options.table:
        try:
            document = json.loads(options.table.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            print(f"--table {options.table} is not what --out wrote: {error}", file=sys.stderr)
            return 2
        print(table(document))
        return 0
    if not options.minutes * 60 > LEAST_S:
        print(
            f"--minutes {options.minutes:g}: no check begins in the last {LEAST_S} s; give more",
            file=sys.stderr,
        )
        return 2
    if not options.small and not torch.cuda.is_available():
        print("this PyTorch sees no CUDA device; --small runs on a CPU", file=sys.stderr)
        return 2
    if not options.out.absolute().parent.is_dir():
        print(f"--out {options.out}: there is no such folder; make it first", file=sys.stderr)
        return 2
    if options.data is not None and not options.data.is_dir():
        print(f"--data {options.data} is no folder; give that of the shards", file=sys.stderr)
        return 2
    run = Run(
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        small=options.small,
        deadline=time.monotonic() + 60 * options.minutes,
        report=lambda line: print(line, flush=True),
        data=options.data,
        out=options.out,
    )
    statuses = [row["status"] for row in run_all(run)["sections"].values()]
    return int("failed" in statuses)


if __name__ == "__main__":
    sys.exit(main())
