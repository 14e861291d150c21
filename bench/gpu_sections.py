"""Sections of `bench.gpu` that look at scores: agreement, memory, throughput, uploads, decoding.

Every section takes a `Run` and returns figures for the JSON, with what failed in them. Nothing but
PyTorch and NumPy is imported before a section needs it.
"""

import importlib.util
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from vqaloop.models.student import Student
    from vqaloop.quality.inference import Network

Frames = npt.NDArray[np.uint8]

TOLERANCE = 0.01
"""Points by which a score on the GPU may differ from that on the CPU."""
GOAL = 0.40
"""Share of the bf16 matrix peak that Small is to reach."""
SHIPPED = ("internvqa-mini", "internvqa-tiny")
CANVAS_HEIGHT = 1080
"""Of all clips, for heads that take it."""


class Untestable(Exception):
    """Why a section, or a check in it, cannot be run here."""


@dataclass(frozen=True)
class Run:
    """What all sections work with."""

    device: torch.device
    small: bool
    """Sizes at which a CPU is done in seconds."""
    deadline: float
    """Of `time.monotonic`."""
    report: Callable[[str], None]
    data: Path | None = None
    """Folder of labelled shards, and of released checkpoints."""
    out: Path = Path("gpu.json")

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()


@dataclass
class Findings:
    """Figures of a section, and what is wrong with them."""

    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def expect(self, is_right: bool, otherwise: str) -> None:
        if not is_right:
            self.faults.append(otherwise)


# --- material ------------------------------------------------------------------------------------


def scene(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Frames:
    """(T, H·3/2, W) frames of a camera over dead leaves."""
    from vqaloop.training.synthetic_motion import dead_leaves, picture_in_motion

    return picture_in_motion(dead_leaves(rng, size), frames, rng)


def damaged(frames: Frames, kind: str, amount: float, rng: np.random.Generator) -> Frames:
    """(T, rows, W) frames with blur, blocking, noise or coarse levels, as codecs leave them."""
    x = torch.from_numpy(frames).float()[:, None]
    if kind == "blur":
        reach = int(amount)
        padded = torch.nn.functional.pad(x, (reach,) * 4, "replicate")
        x = torch.nn.functional.avg_pool2d(padded, 2 * reach + 1, 1)
    elif kind == "blocking":
        side = int(amount)
        tall, wide = (length // side * side for length in x.shape[2:])
        part = torch.nn.functional.avg_pool2d(x[..., :tall, :wide], side)
        x[..., :tall, :wide] = part.repeat_interleave(side, 2).repeat_interleave(side, 3)
    elif kind == "noise":
        x = x + torch.from_numpy(rng.normal(0, amount, x.shape)).float()
    else:
        x = (x / amount).round() * amount
    return x[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()


DAMAGES = (
    *(("blur", 1), ("blur", 3), ("blocking", 4)),
    *(("blocking", 8), ("noise", 6), ("levels", 16)),
)


def crops_of(
    frames: Frames, count: int, rng: np.random.Generator
) -> tuple[slice, npt.NDArray[Any]]:
    """Two successive frames, and the corners (top, left) of crops, both even."""
    from vqaloop.media.planes import CLIP_FRAMES, CLIP_SIZE

    first = int(rng.integers(len(frames) - CLIP_FRAMES + 1))
    room = frames.shape[1] * 2 // 3 - CLIP_SIZE, frames.shape[2] - CLIP_SIZE
    corners = rng.integers(0, [side // 2 + 1 for side in room], (count, 2)) * 2
    return slice(first, first + CLIP_FRAMES), corners


def clips_of(frames: Frames, when: slice, corners: npt.NDArray[Any]) -> Frames:
    """(B, 2, 168, 112) crops."""
    from vqaloop.media.planes import CLIP_SIZE, cut

    part = frames[when]
    return np.stack([cut(part, int(t), int(x), CLIP_SIZE, CLIP_SIZE) for t, x in corners])


def titles(run: Run, seed: int = 0) -> Iterator[tuple[Frames, dict[str, Frames]]]:
    """Crops of synthetic scenes, and of encodes of each."""
    rng = np.random.default_rng(seed)
    for _ in range(1 if run.small else 4):
        frames = scene(rng, 4, (300, 260) if run.small else (900, 675))
        when, corners = crops_of(frames, 4 if run.small else 24, rng)
        encodes = {
            f"{kind} {amount}": clips_of(damaged(frames, kind, amount, rng), when, corners)
            for kind, amount in (DAMAGES[::3] if run.small else DAMAGES)
        }
        yield clips_of(frames, when, corners), encodes


def network(name: str, device: torch.device) -> "Network":
    """The shipped student of that name, loaded anew."""
    from vqaloop.core.resources import WEIGHTS
    from vqaloop.quality.inference import Network

    return Network(WEIGHTS / f"{name}.safetensors", device)


def scores(of: "Network", reference: Frames, encode: Frames) -> dict[str, float]:
    """Scores of an encode's crops taken together, as of a title: anchored, and alone."""
    from vqaloop.models.stream_facts import StreamFacts
    from vqaloop.quality.pooling import pool

    seen = {
        "anchored": of.compare(encode, of.anchor(reference, CANVAS_HEIGHT)),
        "alone": of.alone(encode, CANVAS_HEIGHT),
    }
    with of.exclusive() as student:
        answers = {
            "anchored": partial(student.anchored_answers, canvas_height=CANVAS_HEIGHT),
            "alone": partial(
                student.alone_answers,
                canvas_height=CANVAS_HEIGHT,
                stream=StreamFacts().inputs(),
            ),
        }
        return {
            head: pool(answers[head], pair, [len(encode)], 0).value for head, pair in seen.items()
        }


# --- sections ------------------------------------------------------------------------------------


def machine(run: Run) -> Findings:
    """What this is, and its matrix peaks."""
    from vqaloop.models.device import exact

    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if run.on_gpu else platform.processor() or "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }
    if run.on_gpu:
        free, total = torch.cuda.mem_get_info()
        figures |= {
            "memory_gb": total / 1e9,
            "free_gb": free / 1e9,
            "capability": list(torch.cuda.get_device_capability()),
        }
    size = 256 if run.small else 8192
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=run.device, dtype=dtype) for _ in range(2))
        with exact():
            figures[f"{name}_peak_tflops"] = 2 * size**3 / seconds(lambda: a @ b, run) / 1e12  # noqa: B023
    return Findings(figures)


def agreement(run: Run) -> Findings:
    """Scores on the CPU and on this device, with the shipped students."""
    found = Findings({"tolerance": TOLERANCE})
    for name in SHIPPED:
        here, there = (network(name, torch.device(d)) for d in ("cpu", run.device))
        gaps: dict[str, list[float]] = {"anchored": [], "alone": []}
        values: list[float] = []
        for reference, encodes in titles(run):
            for encode in encodes.values():
                one, other = scores(here, reference, encode), scores(there, reference, encode)
                values.append(one["anchored"])
                for head, gap in gaps.items():
                    gap.append(abs(one[head] - other[head]))
        figures = {f"{head}_largest": max(gap) for head, gap in gaps.items()}
        span = min(values), max(values)
        found.figures[name] = {**figures, "encodes": len(values), "range": list(span)}
        # equal answers to everything would agree too
        found.expect(span[1] - span[0] > 1, f"{name}: all encodes score {values[0]:.2f}")
        for head, gap in gaps.items():
            found.expect(
                max(gap) <= TOLERANCE, f"{name} {head}: scores differ by {max(gap):.4f} points"
            )
    return found


@contextmanager
def filled(leave: int) -> Iterator[None]:
    """The card with all but `leave` bytes of its free memory taken."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    filling: list[Tensor] = []
    size = free - leave
    while not filling:
        try:
            filling.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size -= 8 << 20  # what the driver rounds up
            if size < free // 2:
                raise
    try:
        yield
    finally:
        filling.clear()
        torch.cuda.empty_cache()


def memory(run: Run) -> Findings:
    """Halving of batches on a filled card, and the message of a card without any room."""
    from vqaloop.errors import ToolError
    from vqaloop.quality.inference import BATCH

    if not run.on_gpu:
        raise Untestable("there is no card to fill; the tests raise the error in its place")
    count = BATCH["cuda"]
    rng = np.random.default_rng(0)
    frames = scene(rng, 2, (900, 675))
    when, corners = crops_of(frames, count, rng)
    reference, encode = clips_of(frames, when, corners), clips_of(frames // 2 + 60, when, corners)
    whole = network(SHIPPED[0], run.device)
    anchor = whole.anchor(reference, CANVAS_HEIGHT)
    whole.compare(encode, anchor)  # handles and workspaces of libraries
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    expected = whole.compare(encode, anchor)
    need = torch.cuda.max_memory_allocated() - before
    found = Findings({"clips": count, "batch_mb": need / 1e6})
    free, _ = torch.cuda.mem_get_info()
    with filled(need // 4 + (32 << 20)):
        halved = whole.compare(encode, anchor)
        found.figures["halved_to"] = whole.batch_size
    found.expect(whole.batch_size < count, "a batch was not halved with room for a quarter of it")
    with whole.exclusive() as student:
        one, other = (
            100 * student.anchored_answers(*pair, CANVAS_HEIGHT)[:, 0].double()
            for pair in (expected, halved)
        )
    gap = (one - other).abs().max().item()
    found.figures["largest_difference"] = gap
    found.expect(gap <= TOLERANCE, f"halved batches differ by {gap:.4f} points")
    del halved, expected
    torch.cuda.empty_cache()
    after, _ = torch.cuda.mem_get_info()
    found.figures["not_released_mb"] = (free - after) / 1e6
    found.expect(free - after < 256 << 20, f"{(free - after) / 1e6:.0f} MB were not released")
    again = network(SHIPPED[0], run.device)
    again.compare(encode, anchor)
    found.expect(again.batch_size == count, "with free memory again the whole batch did not fit")
    # last: a library that fails in words of its own ends the section
    with filled(0):
        crumbs: list[Tensor] = []
        with suppress(torch.OutOfMemoryError):
            while True:
                crumbs.append(torch.empty(1 << 20, dtype=torch.uint8, device="cuda"))
        try:
            again.compare(encode, anchor)
            found.figures["message"] = "(a clip fitted all the same)"
        except ToolError as error:
            found.figures["message"] = str(error)
        crumbs.clear()
    return found


def throughput(run: Run) -> Findings:
    """Clips/s and TFLOP/s of students in batches, by ways to run them."""
    found = Findings({"goal": GOAL})
    peaks = machine(run).figures
    plan = [
        _Speed("internvqa-mini", False, (256, 1024, 4096), ("compiled", "graph")),
        _Speed(
            "internvqa-small", True, (8, 32, 128), ("cast", "compiled", "compiled, cast", "graph")
        ),
        _Speed("internvqa-base", True, (8, 32, 128), ("cast", "graph")),
    ]
    if run.small:
        plan = [_Speed("internvqa-mini", True, (1, 2), ("cast",))]
    for each in plan:
        name, peak = each.name, peaks["bf16_peak_tflops" if each.half else "fp32_peak_tflops"]
        rows: list[dict[str, Any]] = []
        found.figures[name] = rows
        for way in (AS_IT_RUNS, *each.ways):
            if run.left_s < (180 if "compiled" in way else 90) and not run.small:
                rows.append({"way": way, "why": "no time left"})
                continue
            rows += list(_speeds(run, each, way, peak))
            run.report(f"  {name} {way}: " + _fastest(rows, way))
        best = max((row.get("share_of_peak", 0.0) for row in rows), default=0.0)
        found.figures[f"{name} best"] = best
        shipped = [row for row in rows if row["way"] == AS_IT_RUNS]
        found.expect(
            any("clips_per_s" in row for row in shipped),
            f"{name} does not run: {'; '.join(row.get('why', '') for row in shipped)}",
        )
        if name == "internvqa-small":
            found.figures["goal_reached"] = best >= GOAL
    return found


@dataclass(frozen=True)
class _Speed:
    """A network to time."""

    name: str
    half: bool
    """In bf16, else in full fp32."""
    sizes: tuple[int, ...]
    """Batches, the smallest first."""
    ways: tuple[str, ...]
    """Beside AS_IT_RUNS: cast (the backbone's weights and residuals in bf16), compiled (its blocks
    by torch.compile), graph (replayed as a CUDA graph, cast where that is wanted)."""


AS_IT_RUNS = "as it runs"
"""As `quality/inference.py` runs a student: in fp32, or in bf16 by autocast."""


def tflops(value: float) -> str:
    """TFLOP/s for people, a CPU's too."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _fastest(rows: list[dict[str, Any]], way: str) -> str:
    mine = [row for row in rows if row["way"] == way]
    done = [row for row in mine if "clips_per_s" in row]
    if not done:
        return "; ".join(row.get("why", "") for row in mine)
    best = max(done, key=lambda row: row["clips_per_s"])
    return (
        f"{best['clips_per_s']:.0f} clips/s in batches of {best['batch']}, "
        f"{tflops(best['tflops'])} TFLOP/s, {best['share_of_peak']:.0%} of the peak"
    )


def _speeds(run: Run, each: _Speed, way: str, peak: float) -> Iterator[dict[str, Any]]:
    """A row for each size of batch, up to what fits."""
    from vqaloop.models import config_of, create_student
    from vqaloop.models.device import exact

    config = config_of(each.name)
    torch.manual_seed(0)
    student = create_student(each.name).to(run.device).eval()
    shape = 3, config.frames, config.size, config.size
    backbone: Any = student.backbone
    few = torch.randn(each.sizes[0], *shape, device=run.device)
    with torch.inference_mode(), exact():
        expected, _ = student.compare(few, student.anchor(few.flip(0), CANVAS_HEIGHT))
    cast = each.half and way in ("cast", "compiled, cast", "graph")
    if cast:
        backbone.bfloat16()
    if "compiled" in way:
        for block in backbone.blocks:
            block.compile(dynamic=False)
    half = torch.autocast(run.device.type, torch.bfloat16, enabled=each.half and not cast)
    # each size is compiled for itself, which takes long
    for batch in each.sizes[:: 2 if "compiled" in way else 1]:
        row: dict[str, Any] = {"way": way, "batch": batch}
        try:
            with torch.inference_mode(), exact(), half:
                found, _ = student.compare(few, student.anchor(few.flip(0), CANVAS_HEIGHT))
                # of values that crops are pooled by, with initial weights
                row["error"] = ((found - expected).norm() / expected.norm()).item()
                clips = torch.randn(batch, *shape, device=run.device)
                work = _comparison(student, clips, is_graph=way == "graph")
                took = seconds(work, run)
                if way == AS_IT_RUNS:
                    # in fp32 whatever the rest is in
                    embedding = seconds(lambda: backbone.patch_embed(clips), run)  # noqa: B023
                    row["embedding_share"] = embedding / took
            flops = batch * flops_of(each.name, run.device)
            row |= {
                "clips_per_s": batch / took,
                "tflops": flops / took / 1e12,
                "share_of_peak": flops / took / 1e12 / peak,
            }
        except Exception as error:  # a way that fails here is a figure too
            yield {**row, "why": f"{type(error).__name__}: {str(error)[:300]}"}
            return
        finally:
            clips = work = None  # type: ignore[assignment]
            if run.on_gpu:
                torch.cuda.empty_cache()
        yield row


def _comparison(student: "Student", clips: Tensor, is_graph: bool) -> Callable[[], Any]:
    """A batch compared with its anchor."""
    anchor = student.anchor(clips, CANVAS_HEIGHT)

    def work() -> Any:
        return student.compare(clips, anchor)

    if not is_graph:
        return work
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = work()

    def replay() -> Any:
        graph.replay()
        return held

    return replay


_flops: dict[str, int] = {}


def flops_of(name: str, device: torch.device) -> int:
    """Floating-point operations of one clip compared, of matrix products and convolutions."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from vqaloop.models import config_of, create_student

    if name not in _flops:
        config = config_of(name)
        student = create_student(name).to(device).eval()
        clip = torch.randn(1, 3, config.frames, config.size, config.size, device=device)
        # the plain kernel, whose products every version counts
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
            anchor = student.anchor(clip, CANVAS_HEIGHT)
            with FlopCounterMode(display=False) as counter:
                student.compare(clip, anchor)
        _flops[name] = int(counter.get_total_flops())
    return _flops[name]


def seconds(work: Callable[[], Any], run: Run, least_s: float = 0.5) -> float:
    """Seconds of one call, the median of three series."""

    def series(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            work()
        if run.on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / count

    if run.small:
        return series(1)
    series(3)
    count = max(3, min(200, int(least_s / 3 / series(1))))
    return statistics.median(series(count) for _ in range(3))


def uploads(run: Run) -> Findings:
    """Scores by several threads, with uploads pinned and on a stream of their own, and without."""
    from vqaloop.quality.inference import Network

    class Plain(Network):
        def _upload(self, clips: Frames) -> Tensor:
            return torch.from_numpy(clips).to(self.device)

        def _uploaded(self, pixels: Tensor) -> Tensor:
            return pixels

    from vqaloop.core.resources import WEIGHTS

    weights = WEIGHTS / f"{SHIPPED[0]}.safetensors"
    threads, rungs, count = (2, 2, 4) if run.small else (4, 40, 128)
    rng = np.random.default_rng(0)
    frames = scene(rng, 2, (300, 260) if run.small else (900, 675))
    when, corners = crops_of(frames, count, rng)
    reference, encode = clips_of(frames, when, corners), clips_of(frames // 2 + 60, when, corners)
    found = Findings({"threads": threads, "rungs": threads * rungs, "clips": count})
    answers: dict[str, list[Tensor]] = {}
    for way, kind in (("overlapped", Network), ("plain", Plain)):
        net = kind(weights, run.device)
        anchor = net.anchor(reference, CANVAS_HEIGHT)
        net.compare(encode, anchor)
        sums: list[Tensor] = []

        def work(net: Network = net, anchor: Any = anchor, sums: list[Tensor] = sums) -> None:
            for _ in range(rungs):
                sums.append(net.compare(encode, anchor)[0].cpu())

        team = [threading.Thread(target=work) for _ in range(threads)]
        begun = time.perf_counter()
        for thread in team:
            thread.start()
        for thread in team:
            thread.join()
        took = time.perf_counter() - begun
        found.figures[f"{way}_clips_per_s"] = threads * rungs * count / took
        answers[way] = sums
        found.expect(len(sums) == threads * rungs, f"{way}: a thread failed")
    expected = answers["plain"][0]
    scale = expected.abs().clamp(min=1)
    every = [values for some in answers.values() for values in some]
    gap = max(((values - expected) / scale).abs().max().item() for values in every)
    found.figures["largest_difference"] = gap
    found.expect(gap < 1e-3, f"answers of uploads differ by {gap:.2g}: clips were read too early")
    return found


def decoding(run: Run) -> Findings:
    """Seconds from a bitstream to its score."""
    for name in ("av", "ffmpeg", "imageio_ffmpeg", "msgspec"):
        if importlib.util.find_spec(name) is None:
            raise Untestable(f"the package {name} is not installed, and decoding needs it")
    import av

    from vqaloop.core.ffmpeg import ffmpeg_path
    from vqaloop.media.probe import probe_source
    from vqaloop.quality.registry import open_metric

    size, frames = ((192, 128), 10) if run.small else ((1280, 720), 100)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("source.mkv", "rung.mp4")]
        picture = scene(np.random.default_rng(0), 2, (400, 300))[0]
        tall, wide = picture.shape[0] * 2 // 3, picture.shape[1]
        for path, codec, options in zip(
            paths, ("ffv1", "libx264"), ({}, {"crf": "30", "preset": "veryfast"}), strict=True
        ):
            with av.open(str(path), "w") as container:
                stream: Any = container.add_stream(codec, rate=25, options=dict(options))
                stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
                for number in range(frames):
                    moved = np.roll(picture[:tall], 2 * number, 1)
                    frame = av.VideoFrame.from_ndarray(moved, "gray")
                    frame = frame.reformat(*size, "yuv420p")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        ffmpeg = ffmpeg_path()
        source = probe_source(paths[0], ffmpeg=ffmpeg)
        metric = open_metric("internvqa", ffmpeg=ffmpeg, device=run.device.type)
        first, *others = (metric.measure(source, paths[1], "pyav") for _ in range(4))
        return Findings(
            {
                "size": list(size),
                "frames": frames,
                "picture": [wide, tall],
                "score": first.value,
                "first_s": first.wall_s,
                "s": min(score.wall_s for score in others),
            }
        )
