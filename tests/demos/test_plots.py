"""The demo's pictures: that they are drawn, and that what they draw is true."""

from __future__ import annotations

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.image import imread

from minquant.demos import plots
from minquant.demos.digits import FLOAT_BITS, WEIGHT_BITS, DigitsResult
from minquant.quant import PerChannel, QSpec, choose_qparams, fake_quantize


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    means = {("float", FLOAT_BITS): 96.6, ("control", FLOAT_BITS): 96.9}
    means |= {(flow, bits): 96 - (flow == "static") * 14 / bits for flow in ("static", "qat") for bits in WEIGHT_BITS}
    return DigitsResult(
        {key: list(mean + rng.normal(size=5) / 3) for key, mean in means.items()},
        {"values": 54000, "mismatches": 0},
        rng.normal(size=(64, 64)).astype(np.float32),
        {bits: 5 * bits + rng.normal(size=(5, 4)) for bits in WEIGHT_BITS},
    )


PICTURES = {
    plots.grid_over_weights: (1080, 444),
    plots.error_by_layer: (888, 504),
    plots.accuracy_by_bits: (888, 528),
    plots.readme_picture: (1200, 504),
}


def settings():
    return {name: value for name, value in matplotlib.rcParams.items() if name != "backend"}  # chosen on first use


@pytest.mark.parametrize("draw", PICTURES, ids=lambda draw: draw.__name__)
def test_pictures(draw, result, tmp_path):
    before = settings()
    path = draw(result, tmp_path / "picture.png")
    assert path == tmp_path / "picture.png" and path.stat().st_size < 150_000
    width, height = PICTURES[draw]
    pixels = imread(path)
    assert pixels.shape[:2] == (height, width)
    blue = np.array([0, 0x72, 0xB2]) / 255
    assert np.any(np.all(np.abs(pixels[..., :3] - blue) < 1 / 255, axis=-1))
    assert settings() == before


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_lines_are_where_the_weights_go(bits, result):
    weight = result.weight
    spec = QSpec(bits, symmetric=True, granularity=PerChannel(0))
    qparams = choose_qparams(weight.min(axis=1), weight.max(axis=1), spec)
    drawn = fake_quantize(weight, qparams) / np.abs(weight).max(axis=1, keepdims=True)
    levels = plots.grid_levels(bits)
    assert len(levels) == 2**bits
    nearest = np.abs(drawn[..., None] - levels).argmin(axis=-1)
    # Four roundings to float32: the channel's scale, the value, its quotient, and the scale of the level.
    assert np.abs(drawn - levels[nearest]).max() <= ((1 + 2.0**-24) ** 4 - 1) * np.abs(levels).max()
    counts = np.bincount(nearest.reshape(-1), minlength=2**bits)
    np.testing.assert_array_equal(plots.shares(weight, bits), counts / weight.size)


def test_share_of_zeros(result):
    amax = np.abs(result.weight).max(axis=1, keepdims=True)
    assert plots.zeros(result.weight) == np.mean(np.abs(result.weight) < amax / 3)  # half a step of amax / 1.5
