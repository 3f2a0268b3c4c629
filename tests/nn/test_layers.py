from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, manual_seed, nn
from minquant import functional as F

x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.ReLU(), F.relu),
        (nn.GELU(), F.gelu),
        (nn.GELU("tanh"), lambda v: F.gelu(v, "tanh")),
        (nn.SiLU(), F.silu),
        (nn.Sigmoid(), F.sigmoid),
        (nn.Tanh(), F.tanh),
        (nn.Softmax(1), lambda v: F.softmax(v, 1)),
        (nn.Flatten(0), F.flatten),
        (nn.Flatten(), lambda v: v),
        (nn.Identity(), lambda v: v),
    ],
)
def test_a_layer_is_its_function_on_arrays_and_tensors(layer: nn.Module, function) -> None:
    expected = np.asarray(function(Tensor(x)))
    np.testing.assert_array_equal(np.asarray(layer(x)), expected, strict=True)
    np.testing.assert_array_equal(np.asarray(layer(Tensor(x))), expected, strict=True)
    assert list(layer.state_dict()) == []


def test_linear() -> None:
    layer = nn.Linear(3, 2)
    expected = x @ layer.weight.data.T + layer.bias.data
    np.testing.assert_array_equal(layer(x).data, expected)
    assert nn.Linear(3, 2, bias=False).bias is None
    assert list(nn.Linear(3, 2, bias=False).state_dict()) == ["weight"]
    assert layer(x.reshape(2, 2, 3)).shape == (2, 2, 2)
    assert layer(np.zeros((0, 3), np.float32)).shape == (0, 2)


def test_linear_starts_within_its_bound() -> None:
    layer = nn.Linear(100, 50)
    for values in (layer.weight.data, layer.bias.data):
        assert 0.09 < np.abs(values).max() <= 0.1


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.zeros((4, 5), np.float32), ValueError, ["(4, 5)", "in_features=3", "(2, 3)"]),
        (np.float32(1), ValueError, ["()", "in_features=3"]),
        (np.zeros((4, 3), np.int32), TypeError, ["int32", "float32", ".float()"]),
        (np.zeros((4, 3), bool), TypeError, ["bool"]),
        (np.zeros((4, 3)), TypeError, ["float64", "float32", ".float()"]),
    ],
)
def test_linear_names_what_does_not_fit(value, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        nn.Linear(3, 2)(value)
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)


def test_dropout_in_training_and_in_eval() -> None:
    layer = nn.Dropout(0.5)
    t = Tensor(np.ones(1000, np.float32))
    manual_seed(0)
    dropped = layer(t)
    assert 400 < (dropped.data == 0).sum() < 600
    manual_seed(0)
    np.testing.assert_array_equal(layer(t).data, dropped.data)
    assert layer.eval()(t) is t


def test_sequential() -> None:
    a, b, c = nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)
    model = nn.Sequential(a, b)
    assert model.append(c) is model
    np.testing.assert_array_equal(model(x).data, c(b(a(x))).data)
    assert list(model) == [a, b, c]
    assert (len(model), model[0], model[-1]) == (3, a, c)
    assert isinstance(model[1:], nn.Sequential)
    assert list(model[1:]) == [b, c]
    model[1] = nn.Tanh()
    assert isinstance(model[1], nn.Tanh)
    with pytest.raises(IndexError, match="3"):
        model[3]
    named = nn.Sequential({"fc": a, "act": b})
    assert list(named.state_dict()) == ["fc.weight", "fc.bias"]
    assert named.act is b
    assert named[0] is a


def test_module_list() -> None:
    modules = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    assert [name for name, _ in modules.named_parameters()][:3] == ["0.weight", "0.bias", "1.weight"]
    assert len(modules[:2]) == 2
    assert isinstance(modules[:2], nn.ModuleList)


def test_losses() -> None:
    target = np.zeros((4, 3), np.float32)
    assert nn.MSELoss()(x, target).item() == pytest.approx((x**2).mean(), rel=1e-6)
    assert nn.MSELoss("sum")(x, target).item() == pytest.approx((x**2).sum(), rel=1e-6)
    assert nn.MSELoss(reduction="none")(x, target).shape == (4, 3)
    labels = np.array([0, 1, 2, 0])
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    assert nn.CrossEntropyLoss()(x, labels).item() == pytest.approx(-log_p[range(4), labels].mean(), rel=1e-6)
    assert nn.CrossEntropyLoss("none")(x, labels).shape == (4,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(0, 3),
        lambda: nn.Dropout(1.5),
        lambda: nn.MSELoss("max"),
        lambda: nn.CrossEntropyLoss("max"),
        lambda: nn.init.uniform_(Tensor(x.copy()), 1, 0),
        lambda: nn.init.normal_(Tensor(x.copy()), 0, -1),
        lambda: nn.init.kaiming_uniform_(Tensor([1.0])),
    ],
)
def test_impossible_arguments_are_refused(make) -> None:
    with pytest.raises(ValueError):
        make()
