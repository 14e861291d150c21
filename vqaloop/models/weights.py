"""Student weights on disk: safetensors with metadata in the header, never pickle.

The header holds a SHA-256 of the values; SHA256SUMS holds those of the files that come with the
package. Weights that do not match are refused.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from vqaloop.core.files import check_regular, file_sha256, renamed_to
from vqaloop.core.resources import WEIGHTS
from vqaloop.errors import InputError
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.registry import MODELS, SMALL_MODELS, create_student
from vqaloop.models.student import Student

CONTENT = "content_sha256"
"""Key in the header."""

PROMPT_OF = "prompt_of"
"""Key in the header of prompts, see `style_prompt`."""
_LARGE = 10_000_000
"""Parameters that any model has which is not one of SMALL_MODELS."""


def save_student(
    student: Student, path: Path, model: str, label: str, about: dict[str, str]
) -> None:
    """Write weights: matrices in fp16, which loses nothing that matters, the rest in fp32.

    Args:
        student: Whose weights; the configuration of its heads goes into the header.
        path: Of the safetensors file, written whole or not at all.
        model: Name of the model, one of MODELS.
        label: What its scores predict, such as "VMAF v0.6.1".
        about: Further metadata for the header.
    """

    def stored(name: str, value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():  # FAST-VQA's index tables
            return value
        return value.half() if value.ndim > 1 and "patch_embed" not in name else value.float()

    tensors = {
        name: stored(name, value).cpu().contiguous()
        for name, value in student.state_dict().items()
    }
    header = {"model": model, "label": label, **about, **student.config.header()}
    header[CONTENT] = content_sha256(tensors)
    with renamed_to(path) as part:
        part.write_bytes(save(tensors, header))


def content_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values, independent of their order."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_hashes(
    path: Path, about: Mapping[str, str], data: Mapping[str, torch.Tensor], sha256: str
) -> None:
    """Raises InputError for weights that are not what was saved, or not what was shipped."""
    if CONTENT in about and about[CONTENT] != content_sha256(data):
        raise InputError(
            f"weights {os.fspath(path)!r} are damaged: their values are not those that were "
            "saved; fetch or train them again"
        )
    if path.absolute().parent == WEIGHTS:
        lines = (line.split() for line in (WEIGHTS / "SHA256SUMS").read_text("ascii").splitlines())
        sums = {name: known for known, name in lines}
        if sums.get(path.name, sha256) != sha256:
            raise InputError(
                f"weights {os.fspath(path)!r} are not those that came with vqaloop (SHA-256 "
                f"{sha256[:12]}..., not {sums[path.name][:12]}...); reinstall vqaloop"
            )


def load_student(path: Path) -> tuple[Student, dict[str, str]]:
    """Read a student's weights.

    Returns:
        The student in evaluation mode, fp32 on the CPU, and the metadata of its file with the
        file's `sha256`.

    Raises:
        InputError: The file is missing, damaged, not what was saved or shipped, or of an unknown
            model or of heads that are not known.
    """
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
        data = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {os.fspath(path)!r} cannot be read: {error}") from error
    if PROMPT_OF in about:
        raise InputError(
            f"weights {os.fspath(path)!r} are a prompt; give it with --prompt, and the student it "
            "is of with --weights"
        )
    if about.get("model") not in MODELS:
        raise InputError(f"weights {os.fspath(path)!r} are of no model known here")
    sha256 = file_sha256(path)
    _check_hashes(path, about, data, sha256)
    heads = any(name.startswith("anchored.") for name in data)
    config = HeadConfig.from_header(about, f"weights {os.fspath(path)!r}")
    if config != HeadConfig() and not heads:
        raise InputError(
            f"weights {os.fspath(path)!r} name a configuration of heads that they do not have; "
            "fetch or train them again"
        )
    # meta tensors cost no memory but a second of imports, which small models do without; a large
    # model's memory is not allocated for a file too small to hold it
    small = about["model"] in SMALL_MODELS
    if not small and sum(value.numel() for value in data.values()) < _LARGE:
        raise InputError(
            f"weights {os.fspath(path)!r} do not fit {about['model']}: too few values"
        )
    with torch.device("cpu" if small else "meta"):
        student = create_student(about["model"], heads, config)
    expected = {name: value.shape for name, value in student.state_dict().items()}
    shapes = {name: value.shape for name, value in data.items()}
    if expected != shapes:
        wrong = sorted(n for n in expected.keys() | shapes if expected.get(n) != shapes.get(n))
        raise InputError(
            f"weights {os.fspath(path)!r} do not fit {about['model']}: {', '.join(wrong[:5])}"
        )
    kinds = {name: value.is_floating_point() for name, value in student.state_dict().items()}
    wide = {k: v.float() if kinds[k] and v.is_floating_point() else v for k, v in data.items()}
    wrong = [k for k, v in wide.items() if v.is_floating_point() != kinds[k] or v.is_complex()]
    wrong += [k for k, v in wide.items() if kinds[k] and k not in wrong and not v.isfinite().all()]
    if wrong:
        raise InputError(
            f"weights {os.fspath(path)!r} hold what is no finite number of the right kind: "
            + ", ".join(sorted(wrong)[:5])
        )
    student.load_state_dict(wide, assign=True)
    about["sha256"] = sha256
    return student.eval(), about
