"""Style prompts: by hand, as a part of students of each family, and on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.nets import noise, random_student
from vqaloop.errors import InputError
from vqaloop.models import create_student
from vqaloop.models.head_config import HeadConfig
from vqaloop.models.student import Student
from vqaloop.models.style_prompt import (
    StylePrompt,
    attach,
    hash_of_both,
    load_prompt,
    save_prompt,
)
from vqaloop.models.weights import load_student
from vqaloop.quality.registry import open_metric
from vqaloop.quality.student_engine import StudentEngine

CLIPS, SOURCE = noise(2, 2, 3, 2, 112, 112)


def filled(prompt: StylePrompt, seed: int = 3, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


@pytest.mark.parametrize("basic", [1, 3])
@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 3, 2, 5, 4)])
def test_style_is_shifted_by_hand(basic: int, shape: tuple[int, ...]) -> None:
    prompt = StylePrompt({"blocks.0": 4}, basic)
    filled(prompt)
    x = noise(*shape)
    found = prompt.shifted("blocks_0", x).detach().numpy()
    p = {name: v.detach().double().numpy() for name, v in prompt.state_dict().items()}
    for one, answer in zip(x.double().numpy(), found, strict=True):
        mean = one.reshape(-1, 4).mean(0)
        deviation = one.reshape(-1, 4).std(0)
        share = np.ones(1)
        if basic > 1:
            logits = p["choice.blocks_0.weight"] @ mean + p["choice.blocks_0.bias"]
            share = np.exp(logits) / np.exp(logits).sum()
        of_mean, of_deviation = (share @ p[f"{kind}.blocks_0"] for kind in ("means", "deviations"))
        expected = (one - mean) / deviation * (deviation * (1 + of_deviation)) + mean + of_mean
        np.testing.assert_allclose(answer, expected, atol=1e-5)
        moved = answer.reshape(-1, 4)
        np.testing.assert_allclose(moved.mean(0), mean + of_mean, atol=1e-5)
        np.testing.assert_allclose(moved.std(0), deviation * np.abs(1 + of_deviation), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # blocks, the last hidden layers of both heads, gains and offsets
        ("internvqa-mini", 2 * 3 * 64 + 2 * 2 * 128 + 4),
        ("rankdvqa-mini", 2 * (5 + 10 + 20 + 30 + 40) + 2 * 2 * 128 + 4),
        ("swinv2-c2f-mini", 2 * 2 * (32 + 64 + 128) + 2 * 2 * 128 + 4),
        ("qmamba-mini", 2 * 2 * (32 + 64 + 128) + 2 * 2 * 128 + 4),
    ],
)
def test_a_prompt_begins_without_effect_and_alone_is_trained(name: str, count: int) -> None:
    torch.manual_seed(0)
    student = create_student(name, config=HeadConfig(("v1", "cambi"))).eval()
    with torch.no_grad():
        before = student(CLIPS, SOURCE), student(CLIPS)
        prompt = attach(student)
        torch.testing.assert_close((student(CLIPS, SOURCE), student(CLIPS)), before)
    trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
    assert all(n.startswith("prompt.") for n in trained)
    assert sum(p.numel() for p in trained.values()) == count
    look = student.look(CLIPS, student.anchor(SOURCE))
    assert look.anchored is not None
    score = student.anchored_answers(*look.anchored)[:, 0].square().sum()
    alone = student.alone_answers(*look.alone)[:, 0].square().sum()
    torch.autograd.backward(score + alone + look.feature.square().sum())
    without = [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
    assert without == []
    filled(prompt)
    with torch.no_grad():
        assert ((student(CLIPS, SOURCE) - before[0]).abs() > 1e-3).all()


def test_gain_and_offset_are_those_of_the_score_alone() -> None:
    prompt = StylePrompt({"a": 2})
    with torch.no_grad():
        prompt.answers.copy_(torch.tensor([[0.5, 1.0], [0.0, -2.0]]))
    out = torch.tensor([[2.0, 7.0]])
    assert prompt.answer(out, "anchored").tolist() == [[4.0, 7.0]]
    assert prompt.answer(out, "alone").tolist() == [[0.0, 7.0]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_student(tmp_path_factory.mktemp("weights"), "internvqa-mini", "VMAF v1")


def loaded(weights: Path) -> tuple[Student, dict[str, str]]:
    return load_student(weights)


@pytest.fixture(scope="module")
def saved(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    student, about = loaded(weights)
    prompt = attach(student)
    filled(prompt)
    path = tmp_path_factory.mktemp("prompts") / "phone.safetensors"
    header = {"model": "internvqa-mini", "label": "VMAF of phones"}
    save_prompt(prompt, path, about["sha256"], header)
    return path


def scores(student: Student) -> Tensor:
    with torch.inference_mode():
        return torch.cat([student(CLIPS, SOURCE), student(CLIPS)])


def test_a_prompt_comes_back_and_names_its_scores(weights: Path, saved: Path) -> None:
    student, about = loaded(weights)
    filled(attach(student))
    again, own = loaded(weights)
    plain = scores(again)
    joined = load_prompt(saved, again, own)
    torch.testing.assert_close(scores(again), scores(student), rtol=0, atol=0)
    assert not torch.allclose(scores(again), plain, atol=1e-3)
    assert joined["label"] == "VMAF of phones" and joined["model"] == "internvqa-mini"
    assert joined["sha256"] == hash_of_both(about["sha256"], joined["prompt_sha256"])
    assert saved.stat().st_size < 20_000


def test_an_engine_scores_with_it(weights: Path, saved: Path) -> None:
    plain, adapted = StudentEngine(weights, "cpu"), StudentEngine(weights, "cpu", prompt=saved)
    adapted.check(anchored=True)
    assert adapted.header["label"] == adapted.facts.label == "VMAF of phones"
    assert plain.header["sha256"] != adapted.header["sha256"] == adapted.network.sha256
    assert plain.network is not adapted.network
    clips = np.random.default_rng(0).integers(16, 236, (1, 2, 168, 112), np.uint8)
    one, other = (engine.network.alone(clips)[0] for engine in (plain, adapted))
    assert not torch.allclose(one, other)
    metrics = [
        open_metric("internvqa", ffmpeg="", weights=weights, prompt=prompt)
        for prompt in (None, saved)
    ]
    assert [metric.name for metric in metrics] == ["internvqa-mini"] * 2
    with pytest.raises(InputError, match="vmaf takes no prompt; leave out --prompt"):
        open_metric("vmaf", ffmpeg="", prompt=saved)


def test_a_prompt_of_another_student_is_refused(
    saved: Path, tmp_path: Path, weights: Path
) -> None:
    other = random_student(tmp_path, "internvqa-tiny")
    student, about = loaded(other)
    before = scores(student)
    with pytest.raises(InputError) as refused:
        load_prompt(saved, student, about)
    text = str(refused.value)
    assert f"{str(saved)!r} was trained on other weights (internvqa-mini" in text
    assert "than those given (internvqa-tiny" in text and "--weights" in text
    assert torch.equal(scores(student), before)
    with pytest.raises(InputError, match="is no prompt but weights of a student"):
        load_prompt(weights, student, about)
    with pytest.raises(InputError, match="are a prompt; give it with --prompt"):
        load_student(saved)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("truncated", "cannot be read"),
        ("shape", "does not fit internvqa-mini: means.blocks_1"),
        ("missing", "does not fit internvqa-mini: answers"),
        ("value", "is damaged: its values are not those that were saved"),
        ("basic", "has 0 basic prompts"),
        ("no header", "is no prompt but something"),
    ],
)
def test_bad_prompts_are_refused_by_name(
    weights: Path, saved: Path, tmp_path: Path, change: str, why: str
) -> None:
    student, about = loaded(weights)
    path = tmp_path / "bad.safetensors"
    values = load_file(saved)
    header = {"prompt_of": about["sha256"], "model": "internvqa-mini", "basic": "1"}
    if change == "shape":
        values["means.blocks_1"] = torch.zeros(1, 32)
    elif change == "missing":
        del values["answers"]
    elif change == "value":
        values["answers"] = values["answers"] + 1
        header["content_sha256"] = "0" * 64
    elif change == "basic":
        header["basic"] = "0"
    save_file(values, path, {} if change == "no header" else header)
    if change == "truncated":
        path.write_bytes(saved.read_bytes()[:-40])
    with pytest.raises(InputError) as refused:
        load_prompt(path, student, about)
    assert why in str(refused.value) and "bad.safetensors" in str(refused.value)
