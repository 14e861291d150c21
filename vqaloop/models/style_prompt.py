"""Style prompts: a few hundred numbers that turn a frozen student to a codec, a screen, a panel.

After StylePrompt of Q-Mamba (Guan et al., arXiv 2406.09546), for any student: of the tokens of a
clip at the input of a block, the mean and the standard deviation of each channel are its style,
and a prompt shifts both. With P and S the prompts of mean and deviation, x' = x (1 + S) - mean S +
P. Blocks of the network have prompts, and the last hidden layers of the token heads. Besides, the
score before its sigmoid has a gain and an offset, which bring it to another scale of opinions.

A prompt is a small safetensors file that names its student by the SHA-256 of its weights.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vqaloop.core.documents import json_value
from vqaloop.core.files import check_regular, file_sha256, renamed_to
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.models.backbone import Prompt
from vqaloop.models.score_scale import HEADER_KEY
from vqaloop.models.student import Student
from vqaloop.models.weights import CONTENT, PROMPT_OF, content_sha256

MOST_BASIC = 64
"""Basic prompts of a place."""
HEADS = ("anchored", "alone")
"""In the order of `StylePrompt.answers`."""


class StylePrompt(Prompt):
    """The prompts of a student; at first without effect.

    Args:
        widths: Channels of each place that has one.
        basic: Prompts of a place. Of several, a linear layer on the mean weighs them clip by clip.
    """

    def __init__(self, widths: Mapping[str, int], basic: int = 1) -> None:
        super().__init__()
        self.basic = basic
        self.of = ""
        # names of modules hold no dots
        self.means, self.deviations = (
            nn.ParameterDict(
                {_plain(name): nn.Parameter(torch.zeros(basic, w)) for name, w in widths.items()}
            )
            for _ in range(2)
        )
        self.choice = nn.ModuleDict()
        if basic > 1:
            self.choice.update({_plain(k): nn.Linear(width, basic) for k, width in widths.items()})
            # equal prompts would stay equal
            for prompts in (self.means, self.deviations):
                for values in prompts.values():
                    nn.init.normal_(values, std=0.01)
        self.answers = nn.Parameter(torch.zeros(len(HEADS), 2))

    def shifted(self, name: str, x: Tensor) -> Tensor:
        """(B, ..., C) input of the place `name`, in another style."""
        mean_prompt, deviation = self.means[name].float(), self.deviations[name].float()
        mean = x.float().flatten(1, -2).mean(1)
        if self.basic > 1:
            share = self.choice[name](mean.to(self.answers.dtype)).float().softmax(-1)
            mean_prompt, deviation = share @ mean_prompt, share @ deviation
        shift = mean_prompt - mean * deviation
        shape = len(x), *[1] * (x.ndim - 2), x.shape[-1]
        scale, shift = (t.expand(mean.shape).reshape(shape) for t in (1 + deviation, shift))
        moved: Tensor = x * scale + shift
        return moved.to(x.dtype)

    def answer(self, out: Tensor, head: str) -> Tensor:
        """(..., answers) of a head before the sigmoid, with the gain and offset of its score."""
        gain, offset = self.answers[HEADS.index(head)].to(out.dtype)
        return torch.cat([out[..., :1] * (1 + gain) + offset, out[..., 1:]], -1)


def _plain(name: str) -> str:
    return name.replace(".", "_")


def attach(student: Student, basic: int = 1) -> StylePrompt:
    """Give a student prompts, without effect at first, and freeze all else.

    Args:
        student: Without prompts.
        basic: See `StylePrompt`.

    Returns:
        The prompts, which are a part of the student.
    """
    places = student.backbone.styled()
    for name in HEADS:
        head = getattr(student, name)
        if head is not None:
            places[f"{name}.value"] = head.value, head.value.in_features
    prompt = StylePrompt({name: width for name, (_, width) in places.items()}, basic)
    prompt.to(next(student.parameters()).device)
    student.requires_grad_(False)
    student.prompt = prompt
    for name, (module, _) in places.items():
        module.register_forward_pre_hook(partial(_prompted, prompt, _plain(name)))
    return prompt


def _prompted(
    prompt: StylePrompt, name: str, module: nn.Module, given: tuple[Any, ...]
) -> tuple[Any, ...]:
    return prompt.shifted(name, given[0]), *given[1:]


def save_prompt(prompt: Prompt, path: Path, student_sha256: str, about: Mapping[str, str]) -> None:
    """Write a prompt in fp32, whole or not at all.

    Args:
        prompt: The prompts of a student.
        path: Of the safetensors file.
        student_sha256: Of the weights of that student.
        about: Further metadata for the header: `model`, `label`, and as of weights.
    """
    tensors = {name: v.detach().float().cpu() for name, v in prompt.state_dict().items()}
    header = {**about, PROMPT_OF: student_sha256, "basic": json.dumps(prompt.basic)}
    header[CONTENT] = content_sha256(tensors)
    with renamed_to(path) as part:
        part.write_bytes(save(tensors, header))


def prompt_about(path: Path) -> dict[str, str]:
    """The header of a prompt. Raises InputError for a file that is none."""
    shown = f"prompt {quoted(path)}"
    try:
        check_regular(path)
        with safe_open(path, "numpy") as file:
            about = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{shown} cannot be read: {error}") from error
    if PROMPT_OF not in about:
        kind = "weights of a student, which --weights takes" if "model" in about else "something"
        raise InputError(
            f"{shown} is no prompt but {kind}; `vqaloop distill` makes one by a recipe with "
            "[prompt]"
        )
    return about


def load_prompt(path: Path, student: Student, about: Mapping[str, str]) -> dict[str, str]:
    """Attach the prompt of a file to the student that it was trained on.

    Args:
        path: Of the file.
        student: As `load_student` gives it, with `about`, the metadata of its file.
        about: See `student`.

    Returns:
        The metadata of weights and prompt: the label, and all else that the prompt has, are the
        prompt's; `sha256` is that of both files' SHA-256, and `prompt_sha256` that of the prompt.

    Raises:
        InputError: The file is damaged, no prompt, or of another student.
    """
    own, shown = prompt_about(path), f"prompt {quoted(path)}"
    if own[PROMPT_OF] != about["sha256"]:
        raise InputError(
            f"{shown} was trained on other weights ({own.get('model', 'unknown')}, SHA-256 "
            f"{own[PROMPT_OF][:12]}...) than those given ({about['model']}); name its own with "
            "--weights"
        )
    try:
        data = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{shown} cannot be read: {error}") from error
    remedy = "fetch or train it again"
    basic = json_value(own.get("basic", "1"), f"basic of {shown} is no JSON", remedy)
    if type(basic) is not int or not 1 <= basic <= MOST_BASIC:
        raise InputError(f"{shown} has {basic!r} basic prompts; {remedy}")
    prompt = attach(student, basic)
    expected = {name: value.shape for name, value in prompt.state_dict().items()}
    shapes = {name: value.shape for name, value in data.items()}
    if expected != shapes:
        wrong = sorted(n for n in expected.keys() | shapes if expected.get(n) != shapes.get(n))
        raise InputError(f"{shown} does not fit {about['model']}: {', '.join(wrong[:5])}")
    if own.get(CONTENT) != content_sha256(data):
        raise InputError(f"{shown} is damaged: its values are not those that were saved; {remedy}")
    wrong = [k for k, v in data.items() if not v.is_floating_point() or not v.isfinite().all()]
    if wrong:
        raise InputError(f"{shown} holds what is no finite number: {', '.join(sorted(wrong)[:5])}")
    prompt.load_state_dict({name: value.float() for name, value in data.items()})
    student.eval()
    sha256 = file_sha256(path)
    both = hash_of_both(about["sha256"], sha256)
    return {**joined_about(about, own), "prompt_sha256": sha256, "sha256": both}


def joined_about(about: Mapping[str, str], prompt: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a student with its prompt, see `load_prompt`."""
    return {k: v for k, v in about.items() if k not in _REPLACED} | dict(prompt)


_REPLACED = ("label", HEADER_KEY, "panel", "titles", "recipe", "judges", "view")
"""Of the weights' metadata, what says what their scores are; with a prompt they are others."""


def hash_of_both(weights: str, prompt: str) -> str:
    """What names the scores of weights with a prompt, of the SHA-256 of both."""
    return hashlib.sha256(f"{weights} {prompt}".encode()).hexdigest()
