"""Coverage-guided fuzzing of the readers of untrusted files.

    python -m bench.fuzz TARGET|all --seconds S --corpus DIR --seed N

Targets are those of bench/readers.py. Atheris (libFuzzer for Python; `pip install atheris`)
mutates inputs that reach new code; where a format is known, half of the mutations keep it
(bench/mutate.py). Each target runs in a process of its own whose address space may grow by
MEMORY_BYTES, and each execution may take LIMIT_S of CPU time. The expected result is a value or a
VqaloopError; anything else is a finding: the first input of each kind is kept in DIR/findings.
Exit status 1 if there are any.

DIR holds the inputs that reached new code, by target, and is the corpus of the next run.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from vqaloop.errors import VqaloopError

MEMORY_BYTES = 512 << 20
"""Address space that a reader may take beyond that of the interpreter and the imports."""
LIMIT_S = 1.0
"""CPU seconds of one execution."""
STUCK_S = 60
"""Wall seconds after which an execution that Python cannot interrupt is ended."""
INSTRUMENTED = ["vqaloop", "tomllib", "json", "csv"]
OWN_NAMES = (f"{os.sep}vqaloop{os.sep}", f"{os.sep}bench{os.sep}")


class Hang(BaseException):
    """An execution exceeded its time limit."""


def kind_of(error: BaseException) -> str:
    """Identity of a finding: the exception and the last of our frames in its traceback."""
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if frame.name != "_hang"] or list(stack)
    ours = [frame for frame in frames if any(name in frame.filename for name in OWN_NAMES)]
    frame = (ours or frames)[-1]
    # a hang or a full memory may show anywhere in a loop
    place = frame.name if isinstance(error, Hang | MemoryError) else f"{frame.name}:{frame.lineno}"
    return f"{type(error).__name__} in {Path(frame.filename).stem}.{place}"


class Session:
    """One target in this process, until its time is up."""

    def __init__(self, name: str, corpus: Path, seconds: float, folder: Path) -> None:
        from bench.readers import TARGETS

        self.name, self.target, self.folder = name, TARGETS[name], folder
        self.findings = corpus / "findings"
        self.stats_path = folder / "stats.json"
        self.seconds = seconds
        self.count, self.slowest_s, self.refused = 0, 0.0, 0
        self.found: dict[str, str] = {}
        signal.signal(signal.SIGPROF, self._hang)
        seeds = self.target.seeds(folder)
        place = corpus / name
        place.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            (place / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}").write_bytes(seed)
            # imports what the reader imports late
            self.run(seed)
        self.idle_bytes = _address_space()
        self.rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (self.idle_bytes + MEMORY_BYTES, hard))
        self.until = time.monotonic() + seconds

    def _hang(self, number: int, frame: FrameType | None) -> None:
        raise Hang

    def run(self, data: bytes) -> None:
        """One execution; ends the process when the time is up."""
        started = time.process_time()
        error: BaseException | None = None
        try:
            signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
            try:
                self.target.read(data, self.folder)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except VqaloopError:
            self.refused += 1
        except BaseException as caught:
            error = caught
        self.count += 1
        self.slowest_s = max(self.slowest_s, time.process_time() - started)
        if error is not None:
            self._keep(error, data)
        if self.count % 256 == 0 or error is not None:
            self.tell()
        if hasattr(self, "until") and time.monotonic() > self.until:
            self.tell()
            os._exit(0)

    def _keep(self, error: BaseException, data: bytes) -> None:
        kind = kind_of(error)
        if kind not in self.found:
            self.found[kind] = str(error)[:200]
            self.findings.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(kind.encode()).hexdigest()[:12]
            (self.findings / f"{self.name}-{digest}.bin").write_bytes(data)
            (self.findings / f"{self.name}-{digest}.txt").write_text(
                kind + "\n" + "".join(traceback.format_exception(error)[-12:]),
                encoding="utf-8",
                errors="backslashreplace",
            )

    def tell(self) -> None:
        """Write the figures so far for the process that started this one."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        document = {
            "executions": self.count,
            "refused": self.refused,
            "slowest_s": self.slowest_s,
            "grown_bytes": max(0, peak - getattr(self, "rss_bytes", peak)),
            "found": self.found,
        }
        part = self.stats_path.with_suffix(".part")
        part.write_text(json.dumps(document))
        part.replace(self.stats_path)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def fuzz_here(name: str, corpus: Path, seconds: float, seed: int, folder: Path) -> None:
    """Fuzz one target in this process; does not return."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        session = Session(name, corpus, seconds, folder)
    from bench.mutate import change

    target = session.target

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        made = change(data, target.form, most, seed) if target.form and seed % 2 else None
        return bytes(atheris.Mutate(data, most)) if made is None else made

    argv = [sys.argv[0], str(corpus / name), f"-seed={seed}", f"-max_len={target.longest}"]
    argv += [f"-artifact_prefix={corpus / 'findings' / name}-", f"-timeout={STUCK_S}"]
    # the address space has its limit, and what is left at the end is no leak of ours
    argv += ["-rss_limit_mb=0", "-detect_leaks=0", "-print_final_stats=0", "-verbosity=0"]
    if target.form:
        atheris.Setup(argv, session.run, custom_mutator=mutate)
    else:
        atheris.Setup(argv, session.run)
    atheris.Fuzz()


def fuzz(name: str, corpus: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Fuzz one target in processes of its own, a new one where one dies; its figures."""
    total: dict[str, Any] = {"executions": 0, "refused": 0, "slowest_s": 0.0, "grown_bytes": 0}
    found: dict[str, str] = {}
    ends = time.monotonic() + seconds
    (corpus / "findings").mkdir(parents=True, exist_ok=True)
    shared = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=shared if shared.is_dir() else None)
    try:
        while (left := ends - time.monotonic()) > 1:
            argv = [sys.executable, "-m", "bench.fuzz", name, "--seconds", f"{left:g}"]
            argv += ["--corpus", str(corpus), "--seed", str(seed), "--child", folder]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True)
            stats = Path(folder) / "stats.json"
            if stats.exists():
                told = json.loads(stats.read_text())
                stats.unlink()
                found |= told["found"]
                for key in total:
                    join = max if key in ("slowest_s", "grown_bytes") else sum
                    total[key] = join((total[key], told[key]))
            if done.returncode:
                words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-15:]
                found[f"the process ended with {done.returncode}"] = "\n".join(words)
                if not stats.exists() and not total["executions"]:
                    break
            seed += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"target": name, **total, "found": found}


def main() -> int:
    """Fuzz the targets named and print a row of each."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", help="one of bench/readers.py, or all")
    parser.add_argument("--seconds", type=float, default=60, help="wall time of each target")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1, help="at least 1")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed; `pip install atheris`")
    if options.child:
        # before the readers are imported, which are to be instrumented
        fuzz_here(options.target, options.corpus, options.seconds, options.seed, options.child)
    from bench.readers import TARGETS

    if options.target not in (*TARGETS, "all"):
        parser.error(f"{options.target!r} is none of {', '.join(TARGETS)}, all")
    print("| target | executions | refused | slowest s | grown MiB | findings |")
    print("| --- | --- | --- | --- | --- | --- |")
    any_found, executions = False, 0
    for name in TARGETS if options.target == "all" else [options.target]:
        told = fuzz(name, options.corpus, options.seconds, options.seed)
        executions += told["executions"]
        any_found = any_found or bool(told["found"])
        print(
            f"| {name} | {told['executions']} | {told['refused']} | {told['slowest_s']:.3f} | "
            f"{told['grown_bytes'] / 2**20:.0f} | {len(told['found'])} |",
            flush=True,
        )
        for kind, message in told["found"].items():
            print(f"  {kind}: {message}", file=sys.stderr, flush=True)
    print(f"\n{executions} executions")
    return int(any_found)


if __name__ == "__main__":
    raise SystemExit(main())
