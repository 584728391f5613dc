from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cmamil_sdk.errors import ConfigInvalid
from cmamil_sdk.training.config import TrainConfig, load_config, make_config
from cmamil_sdk.training.recipes import Weights, recipe_of
from cmamil_sdk.training.yaml_files import read_hierarchy

HIERARCHY = {"a": "x", "b": "x", "c": "y"}


def config(**options: Any) -> TrainConfig:
    return make_config(model="hmil", hierarchy=HIERARCHY, **options)


def test_defaults_are_the_documented_ones_of_each_model() -> None:
    assert (config().lr, config().epochs, config().dim) == (1e-4, 200, 256)
    sizes = {6: 2, 60: 10, 264: 44, 383: 63, 437: 64, 9000: 64}
    assert {n: config().slides_per_step(n) for n in sizes} == sizes
    assert config(accumulate=16).slides_per_step(6) == 16
    plain = make_config()
    assert (plain.lr, plain.epochs, plain.accumulate, plain.dim) == (2e-4, 50, 1, 128)
    assert plain.slides_per_step(60) == 1
    assert (config(lr=0.5).lr, config().recipe) == (0.5, "ours")


def test_what_each_recipe_weighs_in_time() -> None:
    ours, paper, repo = (recipe_of(config(recipe=name)) for name in ("ours", "paper", "repo"))
    for epoch in (0, 100, 199):
        assert ours.weights_at(epoch, 200) == Weights(1, 1, 0.5, 4, 0)
    assert paper.weights_at(0, 200) == Weights(1, 1, 1, 1, 0)
    assert paper.weights_at(50, 200) == Weights(1, 0.75, 0.75, 0.75, 0.25)
    assert repo.weights_at(0, 200) == Weights(1, 1, 1, 0, 0)
    assert repo.weights_at(100, 200) == Weights(1, 0.75, 1, 0, 0.25)
    assert [r.head for r in (ours, paper, repo)] == ["per_class", "shared", "shared"]
    assert [r.logit_adjust for r in (ours, paper, repo)] == [1, 0, 0]
    assert [r.as_coded for r in (ours, paper, repo)] == [False, True, True]
    assert [r.temperature_at(100, 200) for r in (ours, paper, repo)] == pytest.approx([0.1] * 3)
    assert repo.temperature_at(50, 200) == pytest.approx(0.55)
    assert paper.temperature_at(50, 200) == 0.1


def test_every_weight_can_be_set_and_the_schedule_still_acts() -> None:
    weights = {
        "fine_weight": 2.0,
        "coarse_weight": 3.0,
        "bag_align_weight": 4.0,
        "inst_align_weight": 5.0,
        "contrast_weight": 6.0,
    }
    assert recipe_of(config(**weights)).weights == Weights(2, 3, 4, 5, 6)
    halfway = recipe_of(config(recipe="paper", **weights)).weights_at(100, 200)
    assert halfway == Weights(2, 1.5, 2, 2.5, 3)
    changed = recipe_of(config(recipe="paper", head="per_class", logit_adjust=0.5))
    assert (changed.head, changed.logit_adjust) == ("per_class", 0.5)


def test_the_configuration_survives_its_own_document() -> None:
    for settings in (config(recipe="paper", coarse_weight=0.0), make_config(k_sample=3)):
        document = settings.model_dump(mode="json")
        assert TrainConfig.model_validate(document) == settings
    assert "k_sample" not in config().model_dump()
    assert "recipe" not in make_config().model_dump()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "hmil"}, "needs a hierarchy"),
        ({"model": "hmil", "hierarchy": HIERARCHY, "k_sample": 8}, "k_sample.*'cma-mil'"),
        ({"recipe": "ours"}, "recipe.*'hmil'"),
        ({"hierarchy": HIERARCHY}, "hierarchy.*'hmil'"),
        ({"model": "hmil", "hierarchy": HIERARCHY, "coarse_weight": -1}, "coarse_weight"),
        ({"model": "hmil", "hierarchy": "absent.yaml"}, r"absent\.yaml"),
        ({"model": ["hmil"]}, "model"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        make_config(**fields)


def test_names_in_a_hierarchy_file_are_text_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text("# BRACS\nN: benign\nno: 0\n'007': yes\n3: 1.50\n", encoding="utf-8")
    assert read_hierarchy(path) == {"N": "benign", "no": "0", "007": "yes", "3": "1.50"}
    assert make_config(model="hmil", hierarchy=str(path)).hierarchy == read_hierarchy(path)


def test_a_configuration_file_names_the_hierarchy_beside_it_or_holds_it(tmp_path: Path) -> None:
    (tmp_path / "h.yaml").write_text("a: x\nb: x\nc: y\n", encoding="utf-8")
    file = tmp_path / "train.yaml"
    for text in ("hierarchy: h.yaml\n", "hierarchy: {a: x, b: x, c: y}\n"):
        file.write_text("model: hmil\n" + text, encoding="utf-8")
        assert load_config(file).hierarchy == HIERARCHY


def test_names_in_an_inline_hierarchy_are_text_as_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("model: hmil\nhierarchy: {N: 1, no: 0, '007': yes, 3: 1.50}\n", "utf-8")
    assert load_config(file).hierarchy == {"N": "1", "no": "0", "007": "yes", "3": "1.50"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hierarchy: {a: x, b: y, a: y}\n", "a"),
        ("hierarchy:\n  1: x\n  2: y\n  1: y\n", "1"),
        ("epochs: 3\nhierarchy: {a: x, b: y}\nepochs: 4\n", "epochs"),
        ("features: here\nfeatures: there\n", "features"),
        ("scales: [{a: 1, a: 2}]\n", "a"),
    ],
)
def test_a_name_that_stands_twice_in_a_configuration_is_refused(
    tmp_path: Path, text: str, name: str
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("model: hmil\n" + text, encoding="utf-8")
    with pytest.raises(ConfigInvalid, match=rf"train\.yaml names '{name}' twice"):
        load_config(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: x\nb: y\na: y\n", "'a' twice"),
        ("a: &a {b: *a}\n", "label: coarse label"),
        ("- a\n- b\n", "label: coarse label"),
        ("", "label: coarse label"),
        ("a: [x, y]\n", "label: coarse label"),
        ("a: [\n", "cannot be read .line 2: expected"),
        ("a: x\n\tb: y\n", r"line 2: found character '\\t' that cannot start any token"),
        ("\x00", "cannot be read"),
    ],
)
def test_a_bad_hierarchy_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "h.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigInvalid, match=message) as problem:
        read_hierarchy(path)
    assert str(path) in str(problem.value)


def test_the_shipped_configuration_is_one_and_spells_out_defaults() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs" / "configs"
    shipped = load_config(folder / "bracs-hmil.yaml")
    assert shipped.hierarchy == read_hierarchy(folder / "bracs-hierarchy.yaml")
    assert len(shipped.hierarchy) == 7 and len(set(shipped.hierarchy.values())) == 3
    plain = make_config(model="hmil", hierarchy=shipped.hierarchy, folds=10, early_stopping=True)
    assert shipped == plain
