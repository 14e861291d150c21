"""What is drawn of a ladder where it can be read: ticks, legends, menus."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from tests.ladder.test_store import make_ladder, page_of
from vqaloop.ladder import report_plots
from vqaloop.records import Cap
from vqaloop.report.plotting import label_octaves

pytestmark = pytest.mark.drawn


def ticks_of(low: float, high: float, which: str = "x", most: int = 12) -> list[str]:
    axes = Figure().add_subplot()
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    label_octaves(axes, which, most)
    axis = axes.xaxis if which == "x" else axes.yaxis
    words = [label.get_text() for label in axis.get_ticklabels()]
    assert [float(word) for word in words] == pytest.approx(list(axis.get_ticklocs()))
    return words


@pytest.mark.parametrize("which", "xy")
def test_rates_are_marked_at_round_numbers(which: str) -> None:
    assert ticks_of(100, 1100, which) == ["64", "125", "250", "500", "1000", "2000"]
    assert ticks_of(1, 125, which) == ["1", "2", "4", "8", "16", "32", "64", "125"]
    assert ticks_of(64, 125, which) == ["64", "125"]
    assert ticks_of(0.3, 1.5, which) == ["0.25", "0.5", "1", "2"]
    assert ticks_of(125, 100_000, which, 6) == ["125", "500", "2000", "8000", "32000", "128000"]


@given(st.floats(0.01, 1e6), st.floats(1.001, 1e6), st.integers(2, 12))
def test_all_rates_lie_between_the_ticks(low: float, ratio: float, most: int) -> None:
    axes = Figure().add_subplot()
    axes.set(xscale="log", xlim=(low, low * ratio))
    label_octaves(axes, most=most)
    ends = axes.get_xlim()
    assert ends[0] <= low * (1 + 1e-9) and ends[1] >= low * ratio * (1 - 1e-9)
    ticks = [round(tick, 9) for tick in axes.get_xticks()]
    assert len(ticks) <= most + 1
    known = {2.0**n for n in range(-10, 7)} | {125 * 2.0**n for n in range(50)}
    assert {round(tick, 9) for tick in known} >= set(ticks)


@pytest.mark.parametrize("name", ["history_svg", "tuning_svg"])
def test_no_legend_lies_on_the_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn: list[Figure] = []

    def keep(figure: Figure, *_: str) -> str:
        drawn.append(figure)
        return "<svg>"

    monkeypatch.setattr(report_plots, "as_svg", keep)
    assert getattr(report_plots, name)(make_ladder(tmp_path))
    figure = drawn[0]
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    assert not figure.axes[0].get_legend() and len(figure.legends) == 1
    legend, whole = figure.legends[0].get_window_extent(), figure.bbox
    axes = figure.axes[0].get_tightbbox()
    assert axes is not None and legend.y1 <= axes.y0 + 1
    assert legend.x0 >= 0 and legend.x1 <= whole.width and legend.y0 >= 0
    # the panel is as high as those beside it, which have none
    panel = 0.81 * 3.4 * figure.dpi
    assert math.isclose(figure.axes[0].get_window_extent().height, panel, rel_tol=1e-6)


def test_the_words_of_a_menu_are_few(tmp_path: Path) -> None:
    text, _ = page_of(make_ladder(tmp_path))
    words = [part.split("<")[0].split(">")[1] for part in text.split("<option ")[1:]]
    assert len(words) == 2 * 5 * (len(words) // 10) and "source" in words
    # a phone shows about 35 characters
    assert max(map(len, words)) <= 35
    assert any(word.startswith("4: 1280x720, ") and word.endswith(" here") for word in words)


def test_a_cap_is_drawn_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(report_plots, "as_svg", lambda figure, *_: drawn.append(figure))
    ladder = make_ladder(tmp_path)
    rungs = (*ladder.rungs[:-1], replace(ladder.rungs[-1], cap=Cap(4000, 2000)))
    for made, caps in ((ladder, []), (replace(ladder, rungs=rungs), [4000])):
        report_plots.bitrate_svg(made)
        lines = [line for line in drawn[-1].axes[0].lines if line.get_linestyle() == ":"]
        assert [float(np.asarray(line.get_ydata())[0]) for line in lines] == caps
