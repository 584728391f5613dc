"""From plan to bag: the same bits whatever the workers, and bad tiles counted, never white."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmamil_sdk.engines import load_engine
from cmamil_sdk.errors import FieldInvalid, NonFiniteOutput, SlideCorrupt, SlideNotFound
from cmamil_sdk.features.encode import encode_batch
from cmamil_sdk.features.extract import BagBuilder, Cancelled, extract_bag
from cmamil_sdk.slides import open_slide
from cmamil_sdk.synthetic.svs import write_svs
from cmamil_sdk.tiling.plan import make_plan
from cmamil_sdk.tiling.recipe import TilingRecipe, TissueRecipe, parse_scales

THREE = TilingRecipe(scales=parse_scales("5x,10x,20x"))
EVERYWHERE = THREE.model_copy(update={"tissue": TissueRecipe(method="none")})


def plan_of(path, recipe=THREE, mpp=None):
    with open_slide(path, mpp=mpp) as reader:
        return make_plan(reader, recipe)


def same_bits(a, b):
    assert a.slide_id == b.slide_id
    for name in a.counts():
        for part in ("features", "coords", "parent", "tissue"):
            left, right = getattr(a, part)[name], getattr(b, part)[name]
            assert left.dtype == right.dtype
            assert left.tobytes() == right.tobytes(), (name, part)


def test_features_land_in_the_rows_of_the_plan(synthetic_slide, engine):
    plan = plan_of(synthetic_slide)
    bag = extract_bag(plan, engine, engine.dim, workers=2).finish()
    bag.validate()
    assert bag.counts() == {"5x": 4, "10x": 12, "20x": 36}
    assert bag.dim == engine.dim
    assert engine.tiles == 52
    with open_slide(synthetic_slide) as reader:
        for row in (0, 17, 35):
            x, y = bag.coords["20x"][row]
            tile = reader.read_region(0, int(x), int(y), 224, 224)
            expected = engine.infer({"tiles": tile[None]})["features"][0]
            assert (bag.features["20x"][row] == expected).all()
    # A parent's features are, on 1/16 of its area, the mean of its child's.
    child = 20
    parent = bag.parent["20x"][child]
    assert (bag.coords["10x"][parent] == bag.coords["20x"][child] // 448 * 448).all()


@pytest.fixture(scope="module")
def small_plan(tmp_path_factory):
    """900 x 700 px of texture: 12 tiles at 20x, 4 at 10x."""
    rng = np.random.default_rng(2)
    pixels = rng.integers(90, 220, (70, 90, 3)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
    path = tmp_path_factory.mktemp("small") / "small.svs"
    write_svs(pixels, path, mpp=0.5, objective_power=20.0)
    recipe = TilingRecipe(scales=parse_scales("10x,20x"), tissue=TissueRecipe(method="none"))
    return plan_of(path, recipe)


def test_workers_and_batches_do_not_change_a_bit(small_plan, tiny_bundle):
    encoder = load_engine(tiny_bundle / "encoder.onnx", device="cpu")
    bags = [
        extract_bag(small_plan, encoder, 1280, workers=workers).finish() for workers in (1, 2, 3)
    ]
    with open_slide(Path(small_plan.facts.path)) as reader:
        for batch_tiles in (1, 7, 100):
            builder = BagBuilder(small_plan, 1280)
            for batch in reversed(small_plan.batches(batch_tiles)):
                builder.add(encode_batch(reader, batch, encoder))
            bags.append(builder.finish())
    for bag in bags[1:]:
        same_bits(bags[0], bag)
    assert np.ptp(bags[0].features["20x"], axis=0).max() > 0.1, "tiles differ from each other"


def test_more_workers_than_batches(small_plan, engine):
    same_bits(
        extract_bag(small_plan, engine, engine.dim, workers=16).finish(),
        extract_bag(small_plan, engine, engine.dim, workers=1).finish(),
    )


def test_several_workers_take_part(textured_slide, engine):
    extract_bag(plan_of(textured_slide, EVERYWHERE), engine, engine.dim, workers=2)
    assert len(engine.threads) == 2


def test_progress_only_grows_and_ends_complete(synthetic_slide, engine):
    events = []
    here = threading.get_ident()
    builder = extract_bag(
        plan_of(synthetic_slide),
        engine,
        engine.dim,
        workers=2,
        on_progress=lambda done, total: events.append((done, total, threading.get_ident())),
    )
    done = [event[0] for event in events]
    assert done == sorted(set(done))
    assert done[-1] == 52 == builder.tiles_done
    assert {event[1:] for event in events} == {(52, here)}
    assert builder.times.decode > 0
    assert builder.times.encode > 0


def test_a_bad_tile_is_counted_excluded_and_its_children_orphaned(
    textured_slide, with_zeroed, engine
):
    good = extract_bag(plan_of(textured_slide, EVERYWHERE), engine, engine.dim).finish()
    path = with_zeroed(textured_slide, (5, 6))
    builder = extract_bag(plan_of(path, EVERYWHERE), engine, engine.dim, workers=2)
    assert (builder.tiles_done, builder.tiles_failed) == (189, 3)
    bag = builder.finish()
    bag.validate()
    assert bag.counts() == {"5x": 8, "10x": 35, "20x": 143}
    for name, edge, lost in (("5x", 896, (1, 1)), ("10x", 448, (2, 3)), ("20x", 224, (5, 6))):
        keep = ~(good.coords[name] == np.array(lost) * edge).all(axis=1)
        assert (bag.coords[name] == good.coords[name][keep]).all()
        assert (bag.features[name] == good.features[name][keep]).all()
    # Parents found by coordinates, without looking at the rows.
    for name, above, edge in (("20x", "10x", 448), ("10x", "5x", 896)):
        rows = {tuple(xy): row for row, xy in enumerate(bag.coords[above].tolist())}
        expected = [rows.get(tuple(xy), -1) for xy in (bag.coords[name] // edge * edge).tolist()]
        assert bag.parent[name].tolist() == expected
        assert expected.count(-1) == 3
    assert (bag.index_arrays()["children_5x"] >= 0).sum() == 32


def test_too_many_bad_tiles_fail_the_slide(textured_slide, with_zeroed, engine):
    path = with_zeroed(textured_slide, (0, 0), (4, 0), (8, 0), (0, 4))  # 12 of 189 tiles
    builder = extract_bag(plan_of(path, EVERYWHERE), engine, engine.dim)
    assert builder.tiles_failed == 12
    with pytest.raises(SlideCorrupt, match="12 of 189 tiles"):
        builder.finish()


def test_a_scale_without_tiles_fails_the_slide(synthetic_slide, engine):
    plan = plan_of(synthetic_slide)
    builder = BagBuilder(plan, engine.dim)
    with open_slide(synthetic_slide) as reader:
        for batch in plan.batches():
            encoded = encode_batch(reader, batch, engine)
            encoded.ok[batch.tile_scale == 0] = False
            builder.add(encoded)
    with pytest.raises(SlideCorrupt):
        builder.finish()


class SlowEngine:
    def __init__(self, inner):
        self.inner, self.info = inner, inner.info

    def infer(self, inputs):
        time.sleep(0.05)
        return self.inner.infer(inputs)


def test_cancel_stops_soon(textured_slide, engine):
    plan, slow, cancel = plan_of(textured_slide, EVERYWHERE), SlowEngine(engine), threading.Event()
    before = threading.active_count()
    with pytest.raises(Cancelled):
        extract_bag(
            plan, slow, engine.dim, workers=1, cancel=cancel, on_progress=lambda *_: cancel.set()
        )
    of_three_batches = 3 * max(len(batch) for batch in plan.batches())
    assert engine.tiles <= of_three_batches < plan.total_tiles()
    assert threading.active_count() == before, "no thread is left behind"


def test_a_failing_callback_ends_the_threads(textured_slide, engine):
    before = threading.active_count()

    def fail(*_args: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_bag(
            plan_of(textured_slide, EVERYWHERE), engine, engine.dim, workers=3, on_progress=fail
        )
    assert threading.active_count() == before


def test_an_encoder_that_fails_or_returns_nan(synthetic_slide, engine):
    plan = plan_of(synthetic_slide)

    class Broken(type(engine)):
        def infer(self, inputs):
            features = super().infer(inputs)["features"]
            features[0, 3] = np.nan
            return {"features": features}

    with pytest.raises(NonFiniteOutput, match="NaN"):
        extract_bag(plan, Broken(), engine.dim, workers=2)

    class Refusing(type(engine)):
        def infer(self, inputs):
            raise FieldInvalid("wrong tiles")

    with pytest.raises(FieldInvalid, match="wrong tiles"):
        extract_bag(plan, Refusing(), engine.dim, workers=3)


def test_a_slide_that_vanishes_after_planning(synthetic_slide, tmp_path, engine):
    path = tmp_path / "gone.svs"
    path.write_bytes(synthetic_slide.read_bytes())
    plan = plan_of(path)
    path.unlink()
    with pytest.raises(SlideNotFound, match=r"gone\.svs"):
        extract_bag(plan, engine, engine.dim, workers=2)


def test_an_override_reaches_the_workers(synthetic_slide, engine):
    plan = plan_of(synthetic_slide, mpp=0.25)
    bag = extract_bag(plan, engine, engine.dim, workers=2).finish()
    assert bag.coords["20x"][1, 0] - bag.coords["20x"][0, 0] == 448


def test_a_png_has_the_features_of_its_pixels_in_a_slide(synthetic_slide, tmp_path, engine):
    with open_slide(synthetic_slide) as reader:
        pixels = reader.read_region(0, 0, 0, reader.facts.width, reader.facts.height)
    path = tmp_path / f"{synthetic_slide.stem}.png"
    Image.fromarray(pixels).save(path)
    plan = plan_of(synthetic_slide)
    image = plan_of(path, mpp=0.5)
    assert image.facts.reader == "image"
    bags = [extract_bag(p, engine, engine.dim, workers=2).finish() for p in (plan, image)]
    same_bits(*bags)
