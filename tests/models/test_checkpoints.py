"""Public checkpoints: files of the released layouts, and files that must be refused."""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.nets import MINI, MINI_SWIN, noise, published_shapes, shaken
from vqaloop.errors import InputError
from vqaloop.models import CONFIGS, create_model
from vqaloop.models.checkpoints import load_released, table_shape
from vqaloop.models.fastvqa import FastVQA
from vqaloop.models.internvideo2 import InternVideo2, interpolate_positions
from vqaloop.models.student import Student

CLASSES = 400


def weights(model: torch.nn.Module, seed: int = 5) -> dict[str, Tensor]:
    """What a training of `model` might have left."""
    shaken(model, seed, 0.05)
    return {name: value.clone() for name, value in model.state_dict().items()}


def mini(outputs: int = 1) -> InternVideo2:
    return InternVideo2(replace(MINI, outputs=outputs))


def written(path: Path, data: Any) -> Path:
    torch.save(data, path)
    return path


def same(model: torch.nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value.to(state[name].dtype), rtol=0, atol=0)


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "module.encoder."])
def test_wrappers_and_prefixes_come_off(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    state = weights(mini())
    named = {prefix + name: value for name, value in state.items()}
    path = written(tmp_path / "m.pth", {wrapper: named, "epoch": 3} if wrapper else named)
    model = mini()
    found = load_released(model, path)
    same(model, state)
    assert found.ignored == found.first_values == ()
    assert not found.head_dropped and not found.interpolated


def test_safetensors_and_bin_give_the_same(tmp_path: Path) -> None:
    state = weights(mini())
    save_file(state, tmp_path / "m.safetensors")
    written(tmp_path / "m.bin", state)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    clips = noise(1, 3, 2, 28, 28)
    scores = []
    for name in ("m.safetensors", "m.bin", "old.pt"):
        model = mini()
        load_released(model, tmp_path / name)
        same(model, state)
        scores.append(model(clips).item())
    assert scores[0] == scores[1] == scores[2] != 0


def test_class_head_is_dropped_and_a_quality_head_kept(tmp_path: Path) -> None:
    state = weights(mini(CLASSES))
    path = written(tmp_path / "k400.bin", {"module": state})
    model = mini()
    before = model.head.weight.detach().clone()
    found = load_released(model, path)
    assert found.head_dropped and found.ignored == ("head.weight", "head.bias")
    assert found.first_values == ("head.weight", "head.bias")
    assert torch.equal(model.head.weight, before)
    same(model, {k: v for k, v in state.items() if not k.startswith("head.")})
    classifier = mini(CLASSES)
    assert not load_released(classifier, path).head_dropped
    same(classifier, state)


def test_pretraining_files_lack_the_head_and_bring_decoders(tmp_path: Path) -> None:
    state = {k: v for k, v in weights(mini()).items() if not k.startswith(("head.", "fc_norm."))}
    decoders = {
        "clip_pos_embed": torch.zeros(1, 9, 64),
        "final_clip_decoder.head.0.weight": torch.zeros(48, 48),
        "final_clip_decoder.norm.bias": torch.zeros(48),
    }
    for i in range(6):
        decoders[f"clip_decoder.{i}.head.0.weight"] = torch.zeros(64, 64)
        decoders[f"clip_decoder.{i}.norm.weight"] = torch.ones(1408)
    model = mini()
    found = load_released(model, written(tmp_path / "dist.bin", {"module": state | decoders}))
    same(model, state)
    assert set(found.ignored) == decoders.keys()
    assert set(found.first_values) == {
        "fc_norm.weight",
        "fc_norm.bias",
        "head.weight",
        "head.bias",
    }
    assert (model.fc_norm.weight == 1).all() and not found.head_dropped


def test_separate_position_tables_are_merged(tmp_path: Path) -> None:
    state = weights(mini())
    del state["pos_embed"]
    space, time, first = noise(1, 4, 64), noise(1, 2, 64, seed=2), noise(1, 1, 64, seed=3)
    parts = {"pos_embed_spatial": space, "pos_embed_temporal": time, "pos_embed_cls": first}
    model = mini()
    found = load_released(model, written(tmp_path / "m.pth", state | parts))
    assert not found.interpolated
    table = model.pos_embed.detach()[0]
    torch.testing.assert_close(table[0], first[0, 0])
    for t in range(2):
        for place in range(4):
            torch.testing.assert_close(table[1 + 4 * t + place], space[0, place] + time[0, t])


@pytest.mark.parametrize(("frames", "size"), [(4, 28), (1, 28), (2, 56)])
def test_tables_of_other_clips_are_interpolated(tmp_path: Path, frames: int, size: int) -> None:
    other = replace(MINI, frames=frames, size=size)
    state = weights(InternVideo2(other))
    model = mini()
    assert load_released(model, written(tmp_path / "m.pth", state)).interpolated
    expected = interpolate_positions(state["pos_embed"], other, 2, 2, 2)
    torch.testing.assert_close(model.pos_embed.detach(), expected)


def test_separate_tables_of_other_clips_are_merged_then_interpolated(tmp_path: Path) -> None:
    other = replace(MINI, frames=8, size=42)
    state = weights(InternVideo2(other))
    del state["pos_embed"]
    space, time, first = noise(1, 9, 64), noise(1, 8, 64, seed=2), noise(1, 1, 64, seed=3)
    parts = {"pos_embed_spatial": space, "pos_embed_temporal": time, "pos_embed_cls": first}
    model = mini()
    assert load_released(model, written(tmp_path / "m.pth", state | parts)).interpolated
    joint = torch.cat([first, (time[0][:, None] + space[0][None]).reshape(1, 72, 64)], 1)
    expected = interpolate_positions(joint, other, 2, 2, 2)
    torch.testing.assert_close(model.pos_embed.detach(), expected)


def test_shape_of_a_table_is_told_from_its_length() -> None:
    small, tiny = CONFIGS["internvqa-small"], CONFIGS["internvqa-tiny"]
    assert table_shape(2048, small) == table_shape(2048, tiny) == (8, 16)
    assert table_shape(4096, small) == table_shape(4096, tiny) == (16, 16)
    assert table_shape(1024, small) == (4, 16)
    assert table_shape(8 * 32 * 32, small) == (8, 32)
    assert table_shape(12 * 256, small) == (12, 16)
    assert table_shape(8 * 8 * 8, tiny, frames=8) == (8, 8)
    assert table_shape(2 * 8 * 8, tiny) == (2, 8)
    assert table_shape(2047, small) is table_shape(2048, small, frames=3) is None
    assert table_shape(0, small) is table_shape(9, small, frames=0) is None


def test_released_small_in_bf16_goes_into_the_quality_model(tmp_path: Path) -> None:
    """The very layout of S14_ft_k710_ft_k400_f8: names, shapes, type and size of the file."""
    shapes = published_shapes(384, 1536, 12, 2049)
    shapes |= {"head.weight": (400, 768), "head.bias": (400,)}
    generator = torch.Generator().manual_seed(0)
    state = {
        name: (torch.randn(shape, generator=generator) * 0.02).bfloat16()
        for name, shape in shapes.items()
    }
    path = written(tmp_path / "pytorch_model.bin", {"module": state})
    assert math.isclose(path.stat().st_size, 46.7e6, rel_tol=0.01)
    with torch.device("meta"):
        model = create_model("internvqa-small")
    assert isinstance(model, InternVideo2)
    found = load_released(model, path)
    assert found.head_dropped and not found.interpolated
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    same(model, {k: v for k, v in state.items() if not k.startswith("head.")})
    assert (model.head.bias == 0).all() and 0 < model.head.weight.std() < 1e-4
    assert model(torch.zeros(1, 3, 1, 28, 28)).isfinite()


def test_stage_2_files_give_their_vision_encoder(tmp_path: Path) -> None:
    state = weights(mini())
    named = {f"vision_encoder.{name}": value for name, value in state.items()}
    named |= {"text_encoder.bert.weight": torch.zeros(2), "temp": torch.zeros(1)}
    named["vision_encoder.img_pos_embed"] = torch.zeros(1, 5, 64)
    model = mini()
    found = load_released(model, written(tmp_path / "stage2.pt", {"module": named}))
    same(model, state)
    assert len(found.ignored) == 3


def test_students_give_their_backbone(tmp_path: Path) -> None:
    student = Student(mini())
    state = weights(student)
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "student.safetensors")
    model = mini()
    found = load_released(model, tmp_path / "student.safetensors")
    same(model, {k[9:]: v.half() for k, v in state.items() if k.startswith("backbone.")})
    assert found.ignored and not any(key.startswith("backbone.") for key in found.ignored)


def test_values_take_the_type_of_the_model(tmp_path: Path) -> None:
    state = weights(mini())
    model = mini().bfloat16()
    load_released(model, written(tmp_path / "m.pt", state))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    same(model, state)


def swin_state() -> dict[str, Tensor]:
    return weights(FastVQA(MINI_SWIN))


def test_fast_vqa_file_as_released(tmp_path: Path) -> None:
    state = swin_state()
    figures = (np.float64(0.87), np.float32(0.86), np.int64(3), 0.5)
    path = written(tmp_path / "FAST_VQA.pth", {"state_dict": state, "validation_results": figures})
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = FastVQA(MINI_SWIN)
        found = load_released(model, path)
        same(model, state)
        assert found.first_values == () and not found.fragments_from_relative
        assert model(noise(1, 3, 4, 32, 32)).isfinite()


def test_video_swin_gives_backbone_and_starts_the_fragment_tables(tmp_path: Path) -> None:
    state = swin_state()
    prefix = "fragments_backbone."
    named = {
        "backbone." + name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and "fragment_position" not in name
    }
    named["cls_head.fc_cls.weight"] = torch.zeros(400, 96)
    path = written(tmp_path / "swin.pth", {"meta": {}, "state_dict": named})
    model = FastVQA(MINI_SWIN)
    found = load_released(model, path)
    assert found.head_dropped and found.fragments_from_relative
    assert found.ignored == ("cls_head.fc_cls.weight",)
    assert {key.split(".")[0] for key in found.first_values} == {"vqa_head"}
    for name, value in model.fragments_backbone.state_dict().items():
        source = name.replace("fragment_position", "relative_position")
        assert torch.equal(value, named["backbone." + source])


def test_windows_of_another_size_are_refused(tmp_path: Path) -> None:
    state = swin_state()
    path = written(tmp_path / "m.pth", state)
    model = FastVQA(replace(MINI_SWIN, window=(2, 3, 2)))
    with pytest.raises(InputError, match="other windows"):
        load_released(model, path)


def test_half_of_the_fragment_tables_is_not_enough(tmp_path: Path) -> None:
    state = swin_state()
    del state["fragments_backbone.layers.0.blocks.0.attn.fragment_position_bias_table"]
    with pytest.raises(InputError, match="1 missing"):
        load_released(FastVQA(MINI_SWIN), written(tmp_path / "m.pth", state))


def without(*names: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for name in names:
            del state[name]

    return change


def with_value(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("cls_token"), "1 missing: cls_token;"),
        (without("pos_embed"), "1 missing: pos_embed;"),
        (without("head.bias"), "1 missing: head.bias;"),
        (
            without(*(f"blocks.1.{k}.weight" for k in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"))),
            r"4 missing: [\w.]+, [\w.]+, [\w.]+, \.\.\.",
        ),
        (with_value("blocks.2.ls1.gamma", torch.zeros(64)), "1 unknown: blocks.2.ls1.gamma;"),
        (with_value("fc_norm.bias", torch.zeros(768)), r"fc_norm.bias \(768,\) instead of \(48,"),
        (with_value("pos_embed", torch.zeros(1, 8, 64)), "of other shape: pos_embed"),
        (with_value("pos_embed", torch.zeros(1, 9, 32)), "of other shape: pos_embed"),
        (with_value("pos_embed", torch.zeros(1)), "of other shape: pos_embed"),
        (with_value("head.weight", torch.tensor(1.0)), r"head.weight \(\) instead of \(1, 48\)"),
        (with_value("encoder.cls_token", torch.zeros(1, 1, 64)), "'cls_token' twice"),
        (with_value("cls_token", torch.full((1, 1, 64), math.nan)), "cls_token holds no finite"),
        (with_value("cls_token", torch.zeros(1, 1, 64).int()), "cls_token holds no finite"),
        (with_value("pos_embed", torch.zeros(1).expand(1, 10**12, 64)), "of other shape"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_names(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    state = weights(mini())
    change(state)
    model = mini()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message) as refused:
        load_released(model, written(tmp_path / "m.pth", state))
    assert "m.pth" in str(refused.value)
    same(model, before)


def test_another_member_of_the_family_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "m.bin", weights(InternVideo2(replace(MINI, depth=3, width=32))))
    with pytest.raises(InputError, match="13 unknown.*of other shape.*another member"):
        load_released(mini(), path)


def test_separate_tables_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    state = weights(mini())
    del state["pos_embed"]
    parts = {"pos_embed_temporal": torch.zeros(1, 2, 64), "pos_embed_cls": torch.zeros(1, 1, 64)}
    for i, space in enumerate([torch.zeros(4), torch.zeros(1).expand(1, 10**9, 64)]):
        path = written(tmp_path / f"{i}.pth", state | parts | {"pos_embed_spatial": space})
        with pytest.raises(InputError, match="do not fit"):
            load_released(mini(), path)


def test_options_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    state = weights(mini())
    options = argparse.Namespace(lr=1e-3, name="small")
    model = mini()
    load_released(model, written(tmp_path / "m.pth", {"model": state, "args": options}))
    same(model, state)
