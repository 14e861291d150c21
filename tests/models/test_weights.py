"""Weights on disk: what is saved comes back, and nothing else is let in."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqaloop.core.resources import WEIGHTS
from vqaloop.errors import InputError
from vqaloop.models import create_student, weights
from vqaloop.models.head_config import HEADER_KEY, HeadConfig
from vqaloop.models.student import Student
from vqaloop.models.weights import load_student, save_student
from vqaloop.quality.registry import shipped_weights


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(3)
    return create_student("internvqa-tiny").eval()


@pytest.fixture(scope="module")
def saved(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    save_student(student, path, "internvqa-tiny", "VMAF v0.6.1", {"story": "random"})
    return path


def test_round_trip(student: Student, saved: Path) -> None:
    loaded, about = load_student(saved)
    assert not loaded.training
    assert about["model"] == "internvqa-tiny"
    assert about["label"] == "VMAF v0.6.1"
    assert about["story"] == "random"
    assert about["sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()
    before, after = student.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.dtype == torch.float32
        exact = value.ndim <= 1 or "patch_embed" in name
        torch.testing.assert_close(
            value, before[name], rtol=0 if exact else 5e-4, atol=0 if exact else 1e-7
        )


def test_round_trip_without_heads(tmp_path: Path) -> None:
    torch.manual_seed(4)
    bare = create_student("internvqa-tiny", heads=False).eval()
    save_student(bare, tmp_path / "bare.safetensors", "internvqa-tiny", "MOS", {})
    loaded, about = load_student(tmp_path / "bare.safetensors")
    assert about["label"] == "MOS"
    assert loaded.alone is None and loaded.anchored is None
    assert loaded.state_dict().keys() == bare.state_dict().keys()
    clip = torch.randn(1, 3, 2, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(clip), bare(clip), rtol=0, atol=1e-3)


def test_round_trip_of_another_family(tmp_path: Path) -> None:
    torch.manual_seed(5)
    bare = create_student("fastvqa-tiny", heads=False).eval()
    path = tmp_path / "fast.safetensors"
    save_student(bare, path, "fastvqa-tiny", "MOS", {})
    loaded, about = load_student(path)
    assert about["model"] == "fastvqa-tiny" and not loaded.training
    before, after = bare.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    tables = [name for name, value in before.items() if not value.is_floating_point()]
    assert tables
    for name in tables:  # a window of 8 x 7 x 7 has more pairs than fp16 counts to
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name], before[name])
    assert not any(value.is_meta for value in after.values())
    clip = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(clip), bare(clip), rtol=0, atol=5e-3)


def test_weights_with_one_head_only_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    good = load_file(saved)
    for head, name in (("alone.", "alone.context.bias"), ("anchored.", "alone.context.bias")):
        rest = {key: value for key, value in good.items() if not key.startswith(head)}
        save_file(rest, path, {"model": "internvqa-tiny"})
        with pytest.raises(InputError, match=f"do not fit internvqa-tiny: {name}"):
            load_student(path)


def test_scores_survive_the_half_precision(student: Student, saved: Path) -> None:
    loaded, _ = load_student(saved)
    a, b = torch.randn(2, 1, 3, 2, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert 100 * (loaded(a, b) - student(a, b)).abs().max() < 0.1


def test_loaded_weights_can_be_trained_on(saved: Path) -> None:
    loaded, _ = load_student(saved)
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())


def test_no_part_file_is_left(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_student(tmp_path / "none.safetensors")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_student(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 64, b"{}" * 40])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        load_student(path)


def test_cut_short(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be read"):
        load_student(path)


def test_pickles_are_never_opened(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.safetensors"
    torch.save(student.state_dict(), path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a weights file reached pickle")

    for door in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, door, refuse)
    with pytest.raises(InputError, match="cannot be read"):
        load_student(path)


def test_unknown_model_and_missing_header(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_student(student, path, "internvqa-vast", "", {})
    with pytest.raises(InputError, match="no model known"):
        load_student(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="no model known"):
        load_student(path)


def test_wrong_shape_missing_and_additional_tensors(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    about = {"model": "internvqa-tiny"}
    good = load_file(saved)
    head = "backbone.head.weight"
    for name, data in (
        (head, good | {head: torch.zeros(2, 768)}),
        (head, {key: value for key, value in good.items() if key != head}),
        ("extra", good | {"extra": torch.zeros(1)}),
    ):
        save_file(data, path, about)
        with pytest.raises(InputError, match=f"do not fit internvqa-tiny: {name}"):
            load_student(path)


def test_weights_of_another_size_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_file(load_file(saved), path, {"model": "internvqa-small"})
    with pytest.raises(InputError, match="do not fit internvqa-small"):
        load_student(path)


def test_a_single_bit_of_the_values_is_noticed(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1000] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="are damaged: their values are not those"):
        load_student(path)


def test_shipped_weights_are_those_of_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (WEIGHTS / "SHA256SUMS").read_text().splitlines()
    names = {path.name for path in shipped_weights()}
    assert {line.split()[1] for line in lines} == names
    for name in names:
        load_student(WEIGHTS / name)
    # another file under the name of one that was shipped, whole in itself
    monkeypatch.setattr(weights, "WEIGHTS", tmp_path)
    (tmp_path / "SHA256SUMS").write_text("\n".join(lines))
    torch.manual_seed(5)
    student = create_student("internvqa-mini")
    save_student(student, tmp_path / "internvqa-mini.safetensors", "internvqa-mini", "x", {})
    with pytest.raises(InputError, match="are not those that came with vqaloop .*; reinstall"):
        load_student(tmp_path / "internvqa-mini.safetensors")


CONFIG = HeadConfig(("panel", "cambi"), True, 3, True, True, True, time_power=2.5)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("second") / "second.safetensors"
    student = create_student("internvqa-mini", config=CONFIG)
    save_student(student, path, "internvqa-mini", "panel", {})
    return path


def test_the_configuration_of_heads_comes_back(second: Path) -> None:
    loaded, about = load_student(second)
    assert loaded.config == CONFIG
    heads = json.loads(about[HEADER_KEY])
    assert heads["outputs"] == ["panel", "cambi"] and heads["bits"] is True
    clip = torch.randn(1, 3, 2, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert 0 < loaded(clip, clip + 0.1, 1080.0).item() < 1


def test_weights_of_the_first_generation_name_no_configuration(saved: Path) -> None:
    loaded, about = load_student(saved)
    assert loaded.config == HeadConfig() and HEADER_KEY not in about


@pytest.mark.parametrize(
    ("heads", "fault"),
    [
        ("{", "are no JSON"),
        ("[" * 100_000, "are no JSON"),
        ("[]", "should be an object"),
        ("null", "should be an object"),
        ('{"worst": 65}', "worst"),
        ('{"worst": -1}', "worst"),
        ('{"worst": 2.5}', "worst should be a whole number"),
        ('{"change": 1}', "change should be true or false"),
        ('{"time_power": 0.5}', "time_power"),
        ('{"time_power": NaN}', "time_power"),
        ('{"time_power": Infinity}', "time_power"),
        ('{"outputs": []}', "outputs"),
        ('{"outputs": "panel"}', "outputs should be a list"),
        ('{"outputs": ["panel", "a\\nb"]}', "outputs"),
        ('{"outputs": ["panel", "panel"]}', "name an output twice"),
        (json.dumps({"outputs": [f"o{i}" for i in range(33)]}), "outputs"),
        ('{"sharpness": 3}', "have a field 'sharpness'"),
        ('{"worst": 4}', "do not fit internvqa-mini: "),
        ('{"canvas": true}', "do not fit internvqa-mini: "),
        ('{"bits": true}', "do not fit internvqa-mini: "),
        ('{"bits": 1}', "bits should be true or false"),
    ],
)
def test_a_damaged_configuration_of_heads_is_refused(
    second: Path, tmp_path: Path, heads: str, fault: str
) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(load_file(second), path, {"model": "internvqa-mini", HEADER_KEY: heads})
    with pytest.raises(InputError, match=fault):
        load_student(path)


def test_a_configuration_without_heads_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    bare = create_student("internvqa-mini", heads=False)
    save_student(bare, path, "internvqa-mini", "MOS", {HEADER_KEY: '{"canvas": true}'})
    with pytest.raises(InputError, match="heads that they do not have"):
        load_student(path)
