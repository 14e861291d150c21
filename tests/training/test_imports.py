"""Training runs where nothing decodes, encodes, searches or draws pages."""

import subprocess
import sys

ABSENT = (
    *("av", "ffmpeg", "imageio_ffmpeg"),
    *("optuna", "sqlalchemy", "cmaes", "ray", "filelock", "platformdirs"),
    *("pandas", "matplotlib", "jinja2", "PIL"),
)
SCRIPT = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None
import vqaloop.training.train
from vqaloop.cli.main import main
sys.exit(main(["distill", "no such recipe"]))
"""


def test_training_imports_neither_decoders_nor_what_ladders_need() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stderr.startswith("vqaloop: no recipe 'no such recipe'"), done.stderr[-2000:]
    assert done.returncode == 2
