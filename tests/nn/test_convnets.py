"""Conv1d, Conv2d, the pools, the normalizations and Embedding as modules."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, manual_seed, nn, optim
from minquant import functional as F
from minquant.quant import QuantWrapper, convert, get_default_qconfig, prepare, quantize_dynamic, report

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 4, 6, 7), dtype=np.float32)


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_convolutions_start_within_their_bound(kind: type) -> None:
    layer = kind(16, 20, 5, groups=4)
    bound = 1 / np.sqrt(4 * 5 ** (layer.weight.ndim - 2))
    assert 0.9 * bound < np.abs(layer.weight.data).max() <= bound
    assert 0.5 * bound < np.abs(layer.bias.data).max() <= bound
    assert kind(16, 20, 5, bias=False).bias is None


def test_batch_norm_in_training_standardizes_and_in_eval_uses_what_it_saw() -> None:
    layer = nn.BatchNorm2d(4, momentum=None)
    for _ in range(3):  # alike, so their mean is each one's
        out = layer(IMAGES * 2 + 5).data
    assert np.abs(out.mean((0, 2, 3))).max() < 1e-6
    assert np.abs(out.var((0, 2, 3)) - 1).max() < 1e-5
    assert layer.num_batches_tracked.item() == 3
    mean, var = (IMAGES * 2 + 5).mean((0, 2, 3)), (IMAGES * 2 + 5).var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(layer.running_mean.data, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.data, var, rtol=1e-5)
    layer.eval()(IMAGES)
    np.testing.assert_allclose(layer.running_mean.data, mean, rtol=1e-5)
    assert layer.num_batches_tracked.item() == 3
    layer.reset_running_stats()
    layer.reset_parameters()
    fresh = nn.BatchNorm2d(4, momentum=None).state_dict()
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value.data, fresh[name].data, strict=True)


def test_a_batch_that_is_refused_is_not_counted() -> None:
    layer = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="more than one value"):
        layer(zeros(1, 3))
    assert layer.num_batches_tracked.item() == 0
    assert layer.running_mean.tolist() == [0, 0, 0]


def test_batch_norm_without_running_statistics_uses_the_batchs_in_eval_too() -> None:
    layer = nn.BatchNorm2d(4, track_running_stats=False)
    assert list(layer.state_dict()) == ["weight", "bias"]
    np.testing.assert_array_equal(layer.eval()(IMAGES).data, layer.train()(IMAGES).data)


def test_the_padding_row_starts_at_zero_and_stays_there() -> None:
    layer = nn.Embedding(4, 3, padding_idx=-1)
    assert layer.padding_idx == 3
    optimizer = optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.data.copy()
    layer(np.array([3, 1])).sum().backward()
    optimizer.step()
    assert (layer.weight.data[3] == 0).all()
    np.testing.assert_array_equal(layer.weight.data[1], before[1] - 1)


def test_pools_are_their_functions() -> None:
    np.testing.assert_array_equal(nn.MaxPool2d(3, 1, 1, 2)(IMAGES).data, F.max_pool2d(IMAGES, 3, 1, 1, 2).data)
    np.testing.assert_array_equal(
        nn.AvgPool2d((2, 3), None, 1)(IMAGES).data, F.avg_pool2d(IMAGES, (2, 3), None, 1).data
    )


# ---- with quantization ---------------------------------------------------------------------------------------------


def network() -> nn.Module:
    manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 2)
    )


def test_report_lists_them_in_float() -> None:
    layers = nn.ModuleList([
        nn.Conv1d(2, 3, 2), nn.Conv2d(2, 3, 2), nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.LayerNorm(3), nn.RMSNorm(3),
        nn.Embedding(4, 3), nn.MaxPool2d(2), nn.AvgPool2d(2),
    ])  # fmt: skip
    rows = report(layers).rows
    assert [row["kind"] for row in rows] == [type(layer).__name__ for layer in layers]
    assert [row["weight"] for row in rows] == ["float32"] * 7 + [""] * 2
    assert [row["bytes_before"] for row in rows] == [60, 108, 24, 24, 24, 12, 48, 0, 0]
    assert all(row["bytes_before"] == row["bytes_after"] for row in rows)


def test_a_dynamic_model_keeps_in_float_what_has_no_weight() -> None:
    notes = {row["layer"]: row["note"] for row in report(quantize_dynamic(network().eval())).rows}
    assert notes["0"] == "the input's grid is chosen at run time"
    assert notes["1"] == "stays in float: no integer form"
    assert notes["3"] == "stays in float: no weight to quantize"


def test_max_pooling_works_on_integers_in_a_static_model() -> None:
    manual_seed(0)
    layers = nn.Linear(7, 8), nn.MaxPool2d(2, padding=1), nn.Linear(5, 3)
    prepared = prepare(QuantWrapper(nn.Sequential(*layers)), get_default_qconfig())
    prepared(IMAGES)
    converted = convert(prepared)
    assert converted(IMAGES).shape == (3, 4, 4, 3)
    assert [row["note"] for row in report(converted).rows if row["kind"] == "MaxPool2d"] == [
        "works on integers as they are"
    ]
    stem = converted.module[0](converted.quant(IMAGES))
    expected = F.max_pool2d(stem.dequantize(), 2, padding=1).data
    np.testing.assert_array_equal(converted.module[1](stem).dequantize(), expected)


def test_a_static_model_convolves_integers() -> None:
    model = network().eval()
    prepared = prepare(QuantWrapper(model), get_default_qconfig())
    prepared(IMAGES)
    expected, got = model(IMAGES).data, convert(prepared)(IMAGES).data
    assert 0 < np.abs(got - expected).max() <= 0.1 * np.abs(expected).max()


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ["Conv2d", "groups=2", "in_channels=3", "out_channels=4"]),
        (lambda: nn.Conv2d(0, 4, 3), ["Conv2d", "in_channels=0"]),
        (lambda: nn.Conv1d(1, 1, 0), ["Conv1d: kernel_size", "0"]),
        (lambda: nn.Conv2d(1, 1, 3, stride=2, padding="same"), ["Conv2d", "same", "(2, 2)"]),
        (lambda: nn.Conv2d(3, 4, 3)(zeros(2, 4, 5, 5)), ["Conv2d", "(2, 4, 5, 5)", "4 channels", "in_channels=3"]),
        (lambda: nn.Conv2d(4, 4, 3, groups=2)(zeros(2, 2, 5, 5)), ["Conv2d", "2 channels", "in_channels=4"]),
        (lambda: nn.Conv2d(3, 4, 3)(zeros(5, 5)), ["Conv2d", "(N, C, H, W)", "(5, 5)"]),
        (lambda: nn.Conv1d(3, 4, 3)(zeros(1, 3, 2)), ["conv1d", "(3,)", "(2,)", "padded"]),
        (lambda: nn.MaxPool2d((1, 2, 3)), ["MaxPool2d: kernel_size", "(1, 2, 3)"]),
        (lambda: nn.MaxPool2d(2, dilation=0), ["MaxPool2d: dilation", "0"]),
        (lambda: nn.AvgPool2d(2, padding=-1), ["AvgPool2d: padding", "-1"]),
        (lambda: nn.AdaptiveAvgPool2d((2, 2, 2)), ["AdaptiveAvgPool2d: output_size", "2, 2, 2"]),
        (lambda: nn.BatchNorm2d(0), ["BatchNorm2d", "num_features", "0"]),
        (lambda: nn.BatchNorm2d(3)(zeros(2, 4, 5, 5)), ["BatchNorm2d", "4 channels", "num_features=3"]),
        (lambda: nn.BatchNorm2d(3)(zeros(2, 3, 5)), ["BatchNorm2d", "(N, C, H, W)", "(2, 3, 5)"]),
        (lambda: nn.BatchNorm1d(3)(zeros(2, 3, 5, 5)), ["BatchNorm1d", "(N, C) or (N, C, L)", "(2, 3, 5, 5)"]),
        (lambda: nn.LayerNorm(0), ["LayerNorm: normalized_shape", "0"]),
        (lambda: nn.RMSNorm(3)(zeros(2, 4)), ["rms_norm", "(2, 4)", "(3,)"]),
        (lambda: nn.Embedding(0, 3), ["Embedding", "num_embeddings=0"]),
        (lambda: nn.Embedding(3, 2, padding_idx=3), ["Embedding", "padding_idx 3", "3 rows"]),
        (lambda: nn.EmbeddingBag(3, 0), ["EmbeddingBag", "embedding_dim=0"]),
        (lambda: nn.EmbeddingBag(3, 2, "max"), ["EmbeddingBag", "mode", "'max'"]),
    ],
)
def test_what_does_not_fit_is_named(call, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
