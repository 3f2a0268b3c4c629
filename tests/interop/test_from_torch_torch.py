"""Float torch models brought over: values, state, flags, sharing, and everything that is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minquant import nn, optim
from minquant.interop import from_torch
from minquant.quant import QuantWrapper, convert, get_default_qconfig, prepare
from minquant.quant.fused import FUSED

torch = pytest.importorskip("torch")
import torch.ao.nn.intrinsic as intrinsic
from torch.nn import functional as TF
from torch.nn.functional import softmax

T = torch.nn
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 4, 6, 7), dtype=np.float32)
ROWS = RNG.standard_normal((5, 4, 6), dtype=np.float32)
WORDS = np.array([[0, 28], [3, 3]])

LAYERS: list[tuple[Any, np.ndarray, int]] = [  # how to make it, an input, how many products it adds up
    (lambda: T.Linear(6, 5), ROWS, 6),
    (lambda: T.Linear(6, 5, bias=False), ROWS, 6),
    (lambda: T.Conv1d(4, 6, 2, 2, 1, 3, 2, bias=False), ROWS, 4),
    (lambda: T.Conv2d(4, 8, (3, 2), (1, 2), (2, 1), (1, 2), groups=4), IMAGES, 6),
    (lambda: T.Conv2d(4, 8, 3, padding="same"), IMAGES, 36),
]
OTHERS: list[tuple[Any, np.ndarray]] = [
    (lambda: T.BatchNorm1d(4), ROWS),
    (lambda: T.BatchNorm2d(4, 1e-3, 0.3), IMAGES),
    (lambda: T.BatchNorm2d(4, momentum=None, affine=False), IMAGES),
    (lambda: T.BatchNorm2d(4, track_running_stats=False), IMAGES),
    (lambda: T.LayerNorm((4, 6), 1e-3, bias=False), ROWS),
    (lambda: T.LayerNorm(6, elementwise_affine=False), ROWS),
    (lambda: T.RMSNorm(6), ROWS),
    (lambda: T.Embedding(30, 7, padding_idx=-2), WORDS),
    (lambda: T.EmbeddingBag(30, 7, mode="sum", padding_idx=3), WORDS),
    (lambda: T.EmbeddingBag(30, 7), WORDS),
    (lambda: T.MaxPool2d((3, 2), 1, 1, (1, 2)), IMAGES),
    (lambda: T.AvgPool2d((3, 2), 1, (1, 0)), IMAGES),
    (lambda: T.AdaptiveAvgPool2d((4, None)), IMAGES),
    (lambda: T.ReLU(), ROWS),
    (lambda: T.GELU(), ROWS),
    (lambda: T.GELU("tanh"), ROWS),
    (lambda: T.SiLU(), ROWS),
    (lambda: T.Sigmoid(), ROWS),
    (lambda: T.Tanh(), ROWS),
    (lambda: T.Softmax(-2), ROWS),
    (lambda: T.Flatten(0, 1), ROWS),
    (lambda: T.Identity(), ROWS),
    (lambda: T.Dropout(0.0), ROWS),
    (lambda: torch.ao.quantization.QuantStub(), ROWS),
    (lambda: torch.ao.quantization.DeQuantStub(), ROWS),
]


def varied(module: Any) -> Any:
    """The module with parameters and buffers that are no initial values."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return module


def run(theirs: Any, x: np.ndarray) -> np.ndarray:
    return theirs(torch.tensor(x)).detach().numpy()


def assert_same_state(ours: nn.Module, theirs: Any) -> None:
    for method in ("named_parameters", "named_buffers"):
        mine, given = list(getattr(ours, method)()), list(getattr(theirs, method)())
        assert [name for name, _ in mine] == [name for name, _ in given]
        for (name, a), (_, b) in zip(mine, given, strict=True):
            np.testing.assert_array_equal(a.data, b.detach().numpy(), strict=True, err_msg=name)
            assert a.requires_grad == b.requires_grad, name
            assert not np.shares_memory(a.data, b.detach().numpy()), name
    assert {n: m.training for n, m in ours.named_modules()} == {n: m.training for n, m in theirs.named_modules()}


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "x", "terms"), LAYERS)
def test_a_layer_with_products_computes_as_torchs(make: Any, x: np.ndarray, terms: int) -> None:
    """A side rounds each product and each of at most terms + 1 sums: (terms + 2) half steps of Σ|x·w| + |b|."""
    theirs = varied(make())
    theirs.weight.data.sub_(1.0)  # both signs
    ours = from_torch(theirs)
    assert_same_state(ours, theirs)
    magnitude = make().double()
    with torch.no_grad():
        for own, given in zip(magnitude.parameters(), theirs.parameters(), strict=True):
            own.copy_(given.abs())
        largest = magnitude(torch.tensor(np.abs(x)).double()).numpy()
    assert (np.abs(ours(x).data - run(theirs, x)) <= 2 * (terms + 2) * 2.0**-24 * largest).all()


@pytest.mark.parametrize(("make", "x"), OTHERS)
def test_another_layer_computes_as_torchs(make: Any, x: np.ndarray) -> None:
    """Within 32 half steps, a side, of 100, in training and in eval: no intermediate value here is larger."""
    theirs = varied(make())
    ours = from_torch(theirs)
    assert_same_state(ours, theirs)
    assert type(ours).__name__ == type(theirs).__name__
    assert np.abs(ours(x).data - run(theirs, x)).max() <= 2 * 32 * 2.0**-24 * 100
    ours = from_torch(theirs.eval())
    assert_same_state(ours, theirs)
    assert np.abs(ours(x).data - run(theirs, x)).max() <= 2 * 32 * 2.0**-24 * 100


@pytest.mark.parametrize("kind", FUSED.values())
def test_fused_layers_stay_fused(kind: Any) -> None:
    made = {
        "Linear": lambda: T.Linear(6, 4), "Conv1d": lambda: T.Conv1d(4, 4, 3), "Conv2d": lambda: T.Conv2d(4, 4, 3),
        "BatchNorm1d": lambda: T.BatchNorm1d(4), "BatchNorm2d": lambda: T.BatchNorm2d(4), "ReLU": lambda: T.ReLU(),
    }  # fmt: skip
    theirs = varied(getattr(intrinsic, kind.__name__)(*(made[part.__name__]() for part in kind.kinds))).eval()
    ours = from_torch(theirs)
    assert type(ours) is kind
    assert_same_state(ours, theirs)
    x = {"Linear": ROWS[:, 0], "Conv1d": ROWS, "Conv2d": IMAGES}[kind.kinds[0].__name__]
    assert np.abs(ours(x).data - run(theirs, x)).max() <= 2 * 64 * 2.0**-24 * 100


# ---- models ----------------------------------------------------------------------------------------------------------


def whole_numbers(module: Any) -> Any:
    """The module with small whole weights: its sums are exact, whatever their order."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator).float()
    return module


PIXELS = RNG.integers(-4, 5, (2, 3, 8, 8)).astype(np.float32)


class Block(T.Module):
    """What a reader writes: submodules, a helper, a class attribute, a plain value, an absent child."""

    factor = 2

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = T.Conv2d(channels, channels, 3, padding=1)
        self.relu = T.ReLU()
        self.shortcut = None
        self.register_module("absent", None)
        self.shifts = {"by": [1.0, 2.0]}
        self.notes = object()  # which forward does not read

    def scaled(self, x: Any) -> Any:
        return sum([x * (self.factor * by) for by in self.shifts["by"]])

    @property
    def ready(self) -> bool:
        return self.absent is None

    def forward(self, x: Any, *, flip: bool = False) -> Any:
        y = self.relu(self.conv(x))
        assert self.ready
        if self.shortcut is not None:
            x = self.shortcut(x)
        return (self.scaled(y) - x if not flip else y)[:, :, 1:].reshape(x.shape[0], -1)


class ConvReLU(T.Sequential):
    """A container that only says how it is made."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(T.Conv2d(inner, outer, 3), T.ReLU())


class Branches(T.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvReLU(3, 4)
        self.branches = T.ModuleList([Block(4), Block(4)])
        self.head = T.Sequential()
        self.head.add_module("fc", T.Linear(4 * 5 * 6, 3))
        self.head.add_module("again", torch.ao.quantization.QuantWrapper(T.Linear(3, 3)))

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for branch in self.branches:
            y = branch(x)
        return self.head(y) if self.training else self.head(branch(x, flip=True))


def test_a_module_of_ones_own_keeps_its_forward() -> None:
    theirs = whole_numbers(Branches())
    ours = from_torch(theirs)
    assert_same_state(ours, theirs)
    assert type(ours).__name__ == "Branches" and type(ours.branches[0]).__name__ == "Block"
    assert type(ours.stem) is nn.Sequential and type(ours.head.again) is nn.QuantWrapper
    np.testing.assert_array_equal(ours(PIXELS).data, run(theirs, PIXELS), strict=True)
    np.testing.assert_array_equal(ours.eval()(PIXELS).data, run(theirs.eval(), PIXELS), strict=True)
    assert ours.branches[0].shifts == theirs.branches[0].shifts
    assert ours.branches[0].shifts["by"] is not theirs.branches[0].shifts["by"]


def test_a_borrowed_forward_can_be_trained_and_quantized() -> None:
    theirs = torch.nn.Sequential(T.Linear(6, 5), Wide(), T.Linear(5, 2))
    ours = from_torch(theirs)
    before = ours[1].fc.weight.data.copy()
    (ours(ROWS) ** 2).sum().backward()
    optim.SGD(ours.parameters(), lr=0.1).step()
    assert (ours[1].fc.weight.data != before).any()
    prepared = prepare(QuantWrapper(ours.eval()), get_default_qconfig())
    prepared(ROWS)
    converted = convert(prepared)
    steps = float(converted.module[2].output.scale) * 3
    assert np.abs(converted(ROWS).data - prepared(ROWS).data).max() < steps * 4


class Skip(T.Module):
    """A sum by FloatFunctional, which quantization can watch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = T.Linear(6, 6)
        self.sum = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Any) -> Any:
        return self.sum.cat([self.sum.add_relu(self.sum.mul_scalar(self.fc(x), 2.0), x), x], dim=-1)


def test_float_functional_is_brought_over() -> None:
    theirs = whole_numbers(Skip())
    ours = from_torch(theirs)
    assert type(ours.sum) is nn.FloatFunctional
    x = np.rint(ROWS * 4)
    np.testing.assert_array_equal(ours(x).data, run(theirs, x), strict=True)


class Wide(T.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = T.Linear(5, 5)

    def forward(self, x: Any) -> Any:
        return self.fc(x)


def test_shared_modules_and_tied_parameters_stay_shared() -> None:
    layer, tied = T.Linear(6, 6), T.Linear(6, 6)
    tied.weight = layer.weight
    theirs = T.Sequential(layer, T.ReLU(), layer, tied)
    ours = from_torch(theirs)
    assert ours[0] is ours[2] and ours[3] is not ours[0]
    assert ours[3].weight is ours[0].weight and ours[3].bias is not ours[0].bias
    assert len(list(ours.parameters())) == 3


def test_flags_are_brought_over_each() -> None:
    theirs = T.Sequential(T.Linear(6, 6), T.BatchNorm1d(4), T.Dropout(0.3))
    theirs[1].eval()
    theirs[0].weight.requires_grad = False
    theirs(torch.tensor(ROWS)).sum().backward()
    ours = from_torch(theirs)
    assert_same_state(ours, theirs)
    assert [m.training for m in ours] == [True, False, True] and ours[2].p == 0.3
    assert all(p.grad is None for p in ours.parameters())


def test_in_place_modules_are_plain_ones_where_no_tensor_is_read_twice() -> None:
    theirs = T.Sequential(T.Linear(6, 6), T.ReLU(inplace=True))
    ours = from_torch(theirs)
    assert type(ours[1]) is nn.ReLU
    x = ROWS.copy()
    ours[1](x)
    np.testing.assert_array_equal(x, ROWS)


# ---- what cannot be brought over -------------------------------------------------------------------------------------


class Functions(T.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = T.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        return self.joined([TF.relu(self.fc(y)) for y in (x, torch.nn.functional.relu(x))])

    def joined(self, parts: Any) -> Any:
        return softmax(torch.cat(parts), dim=0)


class Importing(T.Module):
    def forward(self, x: Any) -> Any:
        import torch.nn.functional

        return torch.nn.functional.relu(x)


class Closed(T.Module):
    relu = staticmethod(TF.relu)

    def __init__(self) -> None:
        super().__init__()
        self.weight = T.Parameter(torch.ones(2))
        self.register_buffer("offset", torch.ones(2))
        self.act = TF.relu
        self.layers = [T.Linear(2, 2)]

    def forward(self, x: Any) -> Any:
        return self.layers[0](self.act(x * self.weight + self.offset))

    def train(self, mode: bool = True) -> Any:
        return super().train(mode)


class Child(Wide):
    def forward(self, x: Any) -> Any:
        return super().forward(x)


class Decorated(T.Module):
    @torch.no_grad()
    def forward(self, x: Any) -> Any:
        return x


class InPlace(T.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = T.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        return self.act(x) + x


class Empty(T.Module):
    pass


def hooked() -> Any:
    layer = T.Linear(2, 2)
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    return layer


def prepared() -> Any:
    model = torch.ao.quantization.QuantWrapper(T.Linear(2, 2)).eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    return torch.ao.quantization.prepare(model)


def patched() -> Any:
    layer = Wide()
    layer.forward = lambda x: x
    return layer


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: T.Sequential(T.Conv2d(2, 2, 3, padding_mode="reflect")), ["0 (Conv2d)", "padding_mode='reflect'"]),
        (lambda: T.MaxPool2d(2, ceil_mode=True), ["the model itself (MaxPool2d)", "ceil_mode=True"]),
        (lambda: T.MaxPool2d(2, return_indices=True), ["return_indices=True"]),
        (lambda: T.AvgPool2d(2, count_include_pad=False), ["count_include_pad=False"]),
        (lambda: T.AvgPool2d(2, divisor_override=3), ["divisor_override=3"]),
        (lambda: T.Embedding(3, 2, max_norm=1.0), ["max_norm=1.0"]),
        (lambda: T.Embedding(3, 2, sparse=True), ["sparse=True"]),
        (lambda: T.EmbeddingBag(3, 2, mode="max"), ["mode='max'"]),
        (lambda: T.Sequential(T.Sequential(T.Softmax())), ["0.0 (Softmax)", "dim=None"]),
        (lambda: T.Sequential(T.MultiheadAttention(4, 2)), ["0 (MultiheadAttention)", "no counterpart", "activation"]),
        (lambda: T.ModuleDict(), ["ModuleDict", "no counterpart"]),
        (lambda: T.Linear(2, 2).double(), ["weight: is torch.float64", "bias: is torch.float64", "model.float()"]),
        (lambda: T.Sequential(T.BatchNorm1d(2).bfloat16()), ["0.running_mean: is torch.bfloat16", "0.weight"]),
        (lambda: T.Linear(2, 2, device="meta"), ["weight: has no dense values", "meta"]),
        (lambda: T.LazyLinear(2), ["has hooks (_forward_pre_hooks)", "no counterpart", "LazyLinear"]),
        (hooked, ["the model itself (Linear)", "has hooks (_forward_hooks)", "remove"]),
        (prepared, ["quant (QuantStub)", "activation_post_process", "has hooks", "plain float model"]),
        (lambda: torch.ao.nn.quantized.Linear(2, 2), ["no counterpart of torch.ao.nn.quantized.modules.linear.Linear"]),
        (lambda: torch.nn.utils.parametrizations.weight_norm(T.Linear(2, 2)), ["ParametrizedLinear", "no counterpart"]),
        (Functions, ["Functions", "torch.nn.functional.relu", "torch.cat", "torch's softmax", "joined uses"]),
        (Importing, ["Importing", "uses torch.nn.functional", "into="]),
        (
            lambda: T.Sequential(Closed()),
            ["0 (Closed)", "parameters of its own (weight)", "buffers of its own (offset)", "'act', a function",
             "'layers', a list", "overrides train"],
        ),
        (Child, ["Child", "calls super()", "into="]),
        (Decorated, ["Decorated", "is decorated"]),
        (lambda: T.Sequential(T.ReLU(inplace=True), InPlace()), ["0 (ReLU)", "1.act (ReLU)", "inplace=False"]),
        (Empty, ["Empty", "has no forward"]),
        (patched, ["Wide", "has no forward in its class"]),
    ],
)  # fmt: skip
def test_what_cannot_be_brought_over_is_named(make: Any, words: list[str]) -> None:
    with pytest.raises(ValueError, match="from_torch cannot bring") as error:
        from_torch(make())
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_all_that_is_wrong_is_listed_at_once() -> None:
    with pytest.raises(ValueError) as error:
        from_torch(T.Sequential(T.Softmax(), T.Linear(2, 2).half(), T.LSTM(2, 2)))
    assert len(str(error.value).splitlines()) == 1 + 1 + 2 + 1


def rolled(x: Any) -> Any:
    return x.roll(1)


def relued(x: Any) -> Any:
    return torch.relu(x)


class Runs(T.Module):
    """What shows only when it runs."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.fc = T.Linear(2, 2)
        self.kind = function.__name__

    def forward(self, x: Any) -> Any:
        return globals()[self.kind](self.fc(x))


@pytest.mark.parametrize(("function", "words"), [(rolled, ["'roll'"]), (relued, ["must be Tensor, not Tensor"])])
def test_what_shows_only_at_run_time_is_explained(function: Any, words: list[str]) -> None:
    ours = from_torch(T.Sequential(T.Identity(), T.Sequential(Runs(function))))
    with pytest.raises(TypeError) as error:
        ours(ROWS[0, :, :2])
    for word in [*words, "Runs '1.0'", "brought over by from_torch", "into="]:
        assert word in str(error.value)


class Idiomatic(T.Module):
    """As most networks are written: the commonest line of all is `x.view(x.size(0), -1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = T.Conv2d(1, 2, 3), T.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        return self.fc(x.view(x.size(0), -1))


def test_views_and_sizes_come_over_and_work_on_integers() -> None:
    theirs = Idiomatic()
    x = np.random.default_rng(0).standard_normal((5, 1, 4, 4)).astype(np.float32)
    ours = from_torch(theirs)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    assert np.abs(ours(x).data - expected).max() <= 1e-5
    prepared = prepare(QuantWrapper(ours), get_default_qconfig())
    prepared(x)
    assert np.abs(convert(prepared)(x).data - expected).max() <= 0.1 * np.abs(expected).max()


def test_an_error_of_a_layer_is_its_own() -> None:
    with pytest.raises(TypeError, match=r"^linear|^Linear") as error:
        from_torch(Wide())(np.ones((2, 5)))  # float64
    assert "from_torch" not in str(error.value)


def test_only_torch_modules_are_taken() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got Linear"):
        from_torch(nn.Linear(2, 2))


# ---- into ------------------------------------------------------------------------------------------------------------


class Ours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Any) -> Any:
        return nn.ReLU()(self.norm(self.fc(x)))


class Theirs(T.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = T.Linear(3, 3)
        self.norm = T.BatchNorm1d(3)

    def forward(self, x: Any) -> Any:
        return torch.relu(self.norm(self.fc(x)))


def test_a_module_of_ones_own_is_filled_by_name() -> None:
    theirs, own = varied(Theirs()), Ours()
    theirs.fc.weight.requires_grad = False
    theirs.norm.eval()
    assert from_torch(theirs, into=own) is own
    assert_same_state(own, theirs)
    x = ROWS[:, 0, :3]
    assert np.abs(own(x).data - run(theirs, x)).max() <= 2 * 32 * 2.0**-24 * 10


def test_every_name_that_does_not_fit_is_listed_and_nothing_is_changed() -> None:
    theirs = varied(T.Sequential())
    theirs.fc = T.Linear(3, 4)
    theirs.norm = T.BatchNorm1d(3, eps=1e-3, track_running_stats=False).double()
    theirs.extra = T.Linear(1, 1, bias=False)
    own = Ours()
    before = {name: value.data.copy() for name, value in own.state_dict().items()}
    with pytest.raises(ValueError) as error:
        from_torch(theirs, into=own)
    for words in (
        "missing in torch: norm.running_mean", "missing in torch: norm.num_batches_tracked",
        "unexpected, not in into: extra.weight", "shape of fc.weight: (4, 3) in torch, (3, 3) in into",
        "norm.weight is torch.float64", "norm: eps is 0.001 in torch, 1e-05 in into", "fc: out_features is 4 in torch",
    ):  # fmt: skip
        assert words in str(error.value)
    assert all((value.data == before[name]).all() for name, value in own.state_dict().items())


@pytest.mark.parametrize("tied_in", ["torch", "into"])
def test_ties_must_be_the_same_on_both_sides(tied_in: str) -> None:
    theirs, own = T.Sequential(T.Linear(3, 3), T.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    side: Any = theirs if tied_in == "torch" else own
    side[1].weight = side[0].weight
    with pytest.raises(ValueError, match=rf"0\.weight and 1\.weight are one tensor in {tied_in} only"):
        from_torch(theirs, into=own)


def test_settings_that_mean_the_same_fit() -> None:
    theirs, own = T.Sequential(T.MaxPool2d((2, 2), stride=2)), nn.Sequential(nn.MaxPool2d(2))
    assert from_torch(theirs, into=own) is own
    with pytest.raises(ValueError, match=r"0: kernel_size is 3 in torch, 2 in into"):
        from_torch(T.Sequential(T.MaxPool2d(3)), into=own)


def test_into_must_be_a_minquant_module() -> None:
    with pytest.raises(TypeError, match="expected a minquant Module as into"):
        from_torch(Theirs(), into=Theirs())
