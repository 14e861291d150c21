"""The module of ffmpeg-python, where another package may have taken its place."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.media import REPOSITORY


def test_another_module_called_ffmpeg_is_refused_with_the_remedy(tmp_path: Path) -> None:
    # the package `ffmpeg` of PyPI, which cvvdp asks for, has an empty module of this name
    module = tmp_path / "ffmpeg" / "__init__.py"
    module.parent.mkdir()
    module.touch()
    done = subprocess.run(
        [sys.executable, "-c", "from vqaloop.core.ffmpeg import input; input('INPUT')"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1 and "InputError: the Python module ffmpeg (" in done.stderr
    assert str(module) in done.stderr and "is not that of ffmpeg-python" in done.stderr
    assert "pip install --force-reinstall --no-deps ffmpeg-python" in done.stderr
