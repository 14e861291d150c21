"""A training recipe: what it may say, and what is said of one that does not."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.media import REPOSITORY
from vqaloop.errors import InputError
from vqaloop.training.recipe import Losses, Recipe, Teacher, bundled_recipes, read_recipe

TOP = {
    "model": '"internvqa-mini"',
    "corpus": '["a", "b"]',
    "held_out": '["c"]',
    "out": '"out"',
    "steps": "3",
    "learning_rate": "1e-3",
}
TEACHER = {"model": '"internvqa-1b"', "freeze": '"paper"', "corpus": '["wide"]'}


def written(
    path: Path,
    changes: dict[str, str] | None = None,
    loss: str = "alone = 1",
    teacher: dict[str, str] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    top = {k: v for k, v in {**TOP, **(changes or {})}.items() if k not in without}
    lines = [f"{key} = {value}" for key, value in top.items()] + ["[loss]", loss]
    if teacher is not None:
        lines += ["[teacher]", *(f"{key} = {value}" for key, value in teacher.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_recipe_is_read_with_its_types_and_defaults(tmp_path: Path) -> None:
    path = written(tmp_path / "r.toml", {"clip_norm": "2"}, "alone = 1\nfeature = 0.5", TEACHER)
    assert read_recipe(path) == Recipe(
        model="internvqa-mini",
        corpus=("a", "b"),
        out="out",
        steps=3,
        learning_rate=1e-3,
        loss=Losses(alone=1.0, feature=0.5),
        held_out=("c",),
        teacher=Teacher("internvqa-1b", freeze="paper", corpus=("wide",)),
        clip_norm=2.0,
    )
    found = read_recipe(path)
    assert type(found.clip_norm) is float and type(found.loss.alone) is float
    assert read_recipe(written(path)).teacher is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": '"3"'}, "steps should be a whole number and is "),
        ({"steps": "true"}, "steps should be a whole number and is "),
        ({"steps": "3.0"}, "steps should be a whole number and is "),
        ({"steps": "0"}, "steps should be a whole number >= 1"),
        ({"crops": "-1"}, "crops should be a whole number >= 1"),
        ({"scenes": "0"}, "scenes should be a whole number >= 1"),
        ({"encodes": "0"}, "encodes should be a whole number >= 1"),
        ({"accumulate": "0"}, "accumulate should be a whole number >= 1"),
        ({"average": "true"}, "average should be a number and is "),
        ({"corpus": '"folder"'}, "corpus should be a list and is "),
        ({"corpus": "[1]"}, r"corpus\[0\] should be text and is "),
        ({"model": "3"}, "model should be text and is "),
        ({"model": '"internvqa-vast"'}, "model is one of internvqa-mini, .*not 'internvqa-vast'"),
        ({"augment": '"blur"'}, "augment is one of none, mirror, turns, colour, not 'blur'"),
        (
            {"elephants": "3", "birds": "1"},
            "elephants is no key that vqaloop knows; known are accumulate, ",
        ),
        ({"split": '"authors"'}, "give either held_out .* or split"),
        ({"teacher": "3"}, "teacher should be an object and is 3"),
        ({"seed": "-1"}, "seed should be a whole number >= 0"),
        ({"warm_up": "-5"}, "warm_up should be a whole number >= 0"),
        ({"weight_decay": "-0.1"}, "weight_decay should be a number >= 0"),
        ({"weight_decay": "inf"}, "weight_decay should be a number <= 1000000"),
        ({"learning_rate": "nan"}, "learning_rate should be a number >= 0"),
        ({"betas": "[0.9]"}, "betas should be "),
        ({"betas": "[0.9, 1.0]"}, r"betas\[1\] should be a number < 1"),
        ({"drop_path": "1"}, "drop_path should be a number < 1"),
        ({"label": '"mos"'}, "label is one of panel, v1, v0.6.1, neg, not 'mos'"),
        ({"panel": '["xpsnr", "psnr"]'}, "panel is one of neg, .*, cvvdp, not 'psnr'"),
        ({"panel": '["v1"]'}, "panel is one of neg, .*not 'v1'"),
        ({"panel": '["xpsnr", "xpsnr"]'}, "panel names a label twice"),
        ({"label": '"panel"', "panel": "[]"}, 'panel is empty; name .* or take label = "v1"'),
        ({"auxiliary": '["cambi", "v1"]'}, "auxiliary names a label twice, or that of `label`"),
        ({"auxiliary": '["psnr"]'}, "auxiliary is one of v1, .* not 'psnr'"),
        ({"heads": '{outputs = ["a"]}'}, "heads.outputs are `label` and `auxiliary`; leave it"),
        ({"heads": "{best = 1}"}, "heads.best is no key .* knows; known are bits, canvas"),
        ({"heads": "{worst = -1}"}, "heads.worst should be a whole number >= 0"),
        ({"attacks": "1.5"}, "attacks should be a number <= 1"),
        ({"regions": "0"}, "regions should be a whole number >= 1"),
        ({"model": '"fastvqa-tiny"', "recompute": "true"}, "recompute is for the internvqa model"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    path = written(tmp_path / "r.toml", changes)
    with pytest.raises(InputError, match=says) as error:
        read_recipe(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("key", ["model", "corpus", "out", "steps", "learning_rate"])
def test_what_has_no_default_must_be_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match=f"{key} is missing"):
        read_recipe(written(tmp_path / "r.toml", without=(key,)))


def test_titles_are_held_out_in_one_way(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give either held_out"):
        read_recipe(written(tmp_path / "r.toml", without=("held_out",)))
    path = written(tmp_path / "r.toml", {"split": '"fold 2/5"'}, without=("held_out",))
    assert read_recipe(path).split == "fold 2/5"


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (
            "alone = 1\nsharpness = 2",
            "loss.sharpness is no key that vqaloop knows; known are alone, alone_pooled",
        ),
        ('alone = "much"', "loss.alone should be a number and is "),
        ("alone = 0", r"\[loss\] gives no part a weight"),
        ("", r"\[loss\] gives no part a weight"),
        ("alone = 1\nteacher = 1", r"need a \[teacher\]: teacher; give one"),
        ("feature = 1\nlevels = 1", r"need a \[teacher\]: feature, levels"),
        ("answers = 1", r"need a \[teacher\]"),
        ("preferences = 1", r"need a \[teacher\]"),
        ("auxiliary = 1", "loss auxiliary has no outputs; name them in `auxiliary`"),
        ("crop = 1", "loss.crop is no key that vqaloop knows"),
        ("alone = -1", "loss.alone should be a number >= 0"),
        ("alone = 1\nregion = nan", "loss.region should be a number >= 0"),
        ("alone = inf", "loss.alone should be a number < 1000000"),
    ],
)
def test_losses_are_checked(tmp_path: Path, loss: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_recipe(written(tmp_path / "r.toml", loss=loss))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"freeze": '"half"'}, "teacher.freeze is one of paper, as_released, all, not 'half'"),
        (
            {"model": '"vit"'},
            "teacher.model is one of internvqa-mini, .*fastvqa-base, .*not 'vit'",
        ),
        ({"corpus": '"wide"'}, "teacher.corpus should be a list and is "),
        ({"frames": "8", "corpus": "[]"}, "teacher.frames and teacher.crop are of teacher.corpus"),
        ({"frost": "1"}, "teacher.frost is no key that vqaloop knows.*; known are corpus, "),
    ],
)
def test_the_teacher_is_checked(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_recipe(written(tmp_path / "r.toml", teacher={**TEACHER, **changes}))
    with pytest.raises(InputError, match="teacher.model is missing"):
        read_recipe(written(tmp_path / "r.toml", teacher={"freeze": '"all"'}))


def test_losses_must_suit_the_teacher(tmp_path: Path) -> None:
    for loss, teacher, says in (
        ("alone = 1\nteacher = 1", {**TEACHER, "freeze": '"all"'}, "nothing to train"),
        ("alone = 1\nlevels = 1", TEACHER, "loss levels compares token by token"),
    ):
        with pytest.raises(InputError, match=says):
            read_recipe(written(tmp_path / "r.toml", loss=loss, teacher=teacher))
    without = {key: value for key, value in TEACHER.items() if key != "corpus"}
    read_recipe(written(tmp_path / "r.toml", loss="levels = 1\nteacher = 1", teacher=without))


def test_a_folder_stands_for_its_recipe(tmp_path: Path) -> None:
    written(tmp_path / "recipe.toml", {"engine": '"zero.json"'})
    assert read_recipe(tmp_path).engine == str(tmp_path / "zero.json")


@pytest.mark.parametrize("content", [b"model = \n", b"\xff\xfe = 1", b"[loss]\n[loss]\n"])
def test_what_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "r.toml")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_recipe(path)


def test_the_engines_file_lies_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    path = written(tmp_path / "recipes" / "r.toml", {"engine": '"zero.json"'})
    assert read_recipe(path).engine == str(tmp_path / "recipes" / "zero.json")
    monkeypatch.chdir(tmp_path)
    assert read_recipe(Path("recipes/r.toml")).engine == "recipes/zero.json"
    elsewhere = tmp_path / "far.json"
    path = written(path, {"engine": f"'{elsewhere}'"})
    assert read_recipe(path).engine == str(elsewhere)


def test_a_recipe_takes_over_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    changes = {"engine": '"zero.json"', "warm_up": "5"}
    written(tmp_path / "base" / "r.toml", changes, "alone = 1\npairs = 0.5", TEACHER)
    near = tmp_path / "near.toml"
    near.write_text('extends = "base/r.toml"\nsteps = 7\n[loss]\nteacher = 1\n', "utf-8")
    path = tmp_path / "r.toml"
    path.write_text('extends = "near.toml"\nout = "mine"\n[loss]\npairs = 0.25\n', "utf-8")
    found = read_recipe(path)
    assert (found.steps, found.out, found.warm_up) == (7, "mine", 5)
    assert found.loss == Losses(alone=1.0, teacher=1.0, pairs=0.25)
    assert found.teacher == Teacher("internvqa-1b", freeze="paper", corpus=("wide",))
    assert found.engine == str(tmp_path / "base" / "zero.json")


def test_a_recipe_extends_a_bundled_one_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "waterloo-mini"\ncorpus = ["mine"]\nsteps = 7\n', "utf-8")
    bundled = read_recipe(Path("waterloo-mini"))
    assert read_recipe(path) == replace(bundled, corpus=("mine",), steps=7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('extends = "r.toml"', "extends itself by way of .*r.toml; break the circle"),
        ('extends = "other.toml"', "extends itself by way of .*other.toml"),
        ('extends = "none.toml"', "none.toml cannot be read"),
        ('extends = "none"', "no recipe 'none'; give a TOML, or one of .*waterloo-mini"),
        ("extends = 3", "extends should be text"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    (tmp_path / "other.toml").write_text('extends = "r.toml"', encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_recipe(tmp_path / "r.toml")


def test_every_shipped_recipe_can_be_read() -> None:
    recipes = bundled_recipes()
    assert len(recipes) == len([*(REPOSITORY / "recipes").glob("*/*.toml")])
    outs = [read_recipe(path).out for path in recipes.values()]
    assert len(set(outs)) == len(outs), "no run writes over that of another"
    for name in recipes:
        found = read_recipe(Path(name))
        assert not found.engine or Path(found.engine).is_file()


def test_the_papers_table_is_bundled() -> None:
    """Table I of arXiv 2502.19026: two sets; three sizes alone, two taught, FAST-VQA both ways."""
    fast = ("fastvqa", "fastvqa-base")
    for dataset in ("waterloo", "bvi-hd"):
        for size, model in [(s, f"internvqa-{s}") for s in ("small", "base", "1b")] + [
            ("fastvqa", "fastvqa-tiny"),
            ("fastvqa-base", "fastvqa-base"),
        ]:
            name = f"{dataset}-{size}"
            alone = read_recipe(Path(name if size == "1b" else f"{name}/alone"))
            assert alone.model == model and alone.teacher is None
            assert alone.loss == Losses(alone=1.0) and alone.split == "authors"
            assert all(dataset in folder for folder in alone.corpus)
            assert alone.betas == (0.9, 0.999)
            assert alone.drop_path == (0.3 if size == "1b" else 0.1)
            if size == "1b":
                assert alone.recompute
                continue
            taught = read_recipe(Path(name))
            assert taught.teacher is not None and taught.teacher.model == "internvqa-1b"
            assert taught.loss == Losses(alone=1.0, teacher=1.0, feature=1.0)
            assert bool(taught.teacher.corpus) == (size in fast)
            assert all(dataset in folder for folder in taught.teacher.corpus)
            same = replace(taught, teacher=None, loss=alone.loss, out=alone.out)
            assert same == alone, "but for the teacher"
