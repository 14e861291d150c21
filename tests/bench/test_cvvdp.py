"""The bench of ColorVideoVDP's cost, on a stand-in for its program."""

from pathlib import Path

import pytest

from bench.cvvdp import main
from tests.quality.test_cvvdp import stand_in


def test_the_smallest_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = stand_in(tmp_path)
    main(["--heights", "72", "--seconds", "0.5", "--cvvdp", str(given)])
    height, jod, pixels, cpu_s = capsys.readouterr().out.splitlines()[1].split()
    assert int(height) == 72 and 0 <= float(jod) < 10 and float(pixels) > 0 and float(cpu_s) > 0
