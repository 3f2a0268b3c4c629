"""to_torch: whole models with the same integers as minquant's, their state, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from minquant import Tensor, functional, manual_seed, nn
from minquant.demos.networks import Attention, random_network
from minquant.functional import relu
from minquant.interop import to_torch
from minquant.interop.torch_modules.quantized import QuantizedTensor
from minquant.quant import (
    PerGroup,
    PerToken,
    QConfig,
    QParams,
    QSpec,
    QTensor,
    convert,
    default_dynamic_qconfig,
    fuse_modules,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
)
from minquant.quant import between as q_between
from minquant.quant import linear as q_linear
from minquant.quant.dialects.torchao import IntxWeightObserver
from minquant.quant.stubs import Quantize
from tests.interop.layers_in_torch import (
    DEVICES,
    EXACT,
    TORCHS,
    UINT8,
    grid,
    in_torch,
    integers,
    static_linear,
    weight_grid,
)

# ---- whole models ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Convolutions, a skip connection and a join, in a forward of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels // 2)
        self.skip, self.join = nn.FloatFunctional(), nn.FloatFunctional()
        self.times = 2

    def forward(self, x):
        for _ in range(self.times):
            y = self.conv2(self.relu1(self.conv1(x)))
            x = self.skip.add_relu(x, y)
        return self.join.cat([x, y], 1)


class Net(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant = nn.QuantStub(), nn.DeQuantStub()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.blocks = nn.ModuleList([Block(12), Block(24)])
        self.pool, self.act, self.flatten = pool, nn.Sigmoid(), nn.Flatten()
        self.head = nn.Sequential(nn.Linear(48 * 4, 20), nn.ReLU(), nn.Linear(20, 10))

    def forward(self, x):
        x = self.stem(self.quant(x))
        for block in self.blocks:
            x = block(x)
        x = self.act(self.pool(x)).flatten(1)
        return self.dequant(self.head(x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(4), nn.AvgPool2d(4), nn.AdaptiveAvgPool2d(2)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("dialect", EXACT)
def test_a_model_with_all_of_it(device, dialect, pool):
    manual_seed(1)
    rng = np.random.default_rng(11)
    model = fuse_modules(Net(pool).eval(), [["stem.0", "stem.1", "stem.2"], ["head.0", "head.1"]])
    prepared = prepare(model, get_default_qconfig(dialect))
    prepared(Tensor(rng.normal(size=(20, 1, 8, 8)).astype(np.float32)))
    converted = convert(prepared)
    x = (rng.normal(size=(30, 1, 8, 8)) * 1.5).astype(np.float32)
    with torch.no_grad():
        found = to_torch(converted, device)(torch.tensor(x, device=device)).cpu().numpy()
    wanted = converted(Tensor(x)).data
    assert len(np.unique(wanted)) > 20
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dialect", TORCHS)
def test_the_cnn_on_digits(dialect):
    """The network of the conformance suite, every layer's integers."""
    from minquant.crosscheck import convnet
    from minquant.data import load_digits
    from minquant.quant import fuse_modules

    manual_seed(0)
    digits = load_digits(0)
    images = digits.x_train[:200].reshape(-1, 1, 8, 8)
    model = fuse_modules(convnet.ConvNet((8, 16, 16), "average").eval(), convnet.FUSED)
    prepared = prepare(model, get_default_qconfig(dialect))
    prepared(images)
    converted = convert(prepared)
    theirs, heard = to_torch(converted), {}
    for name in convnet.LAYERS:
        getattr(converted, name).register_forward_hook(lambda m, x, y, name=name: heard.update({name: y.int_repr()}))
        getattr(theirs, name).register_forward_hook(
            lambda m, x, y, name=name: np.testing.assert_array_equal(y.int_repr().numpy(), heard[name], name)
        )
    wanted = converted(images).data
    np.testing.assert_array_equal(theirs(torch.tensor(images)).numpy(), wanted)
    assert set(heard) == set(convnet.LAYERS)


def test_a_trained_model_in_the_reference_dialect():
    manual_seed(2)
    rng = np.random.default_rng(12)
    prepared = prepare_qat(nn.QuantWrapper(nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 3))),
                           get_default_qat_qconfig(weight_bits=3))  # fmt: skip
    x = rng.normal(size=(50, 9)).astype(np.float32)
    prepared(Tensor(x))
    converted = convert(prepared.eval())
    np.testing.assert_array_equal(to_torch(converted)(torch.tensor(x)).numpy(), converted(Tensor(x)).data)
    np.testing.assert_array_equal(to_torch(converted)(torch.tensor(x)).numpy(), prepared(Tensor(x)).data)


class Functions(nn.Module):
    """A forward that calls functions, on integers and on real values."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = nn.QuantStub(), nn.DeQuantStub()
        self.conv, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3 * 9, 5)

    def forward(self, x, scale: float = 2.0):
        x = functional.max_pool2d(relu(self.conv(self.quant(x))), 2)
        x = functional.transpose(functional.unsqueeze(functional.permute(x, (0, 2, 3, 1)), 1), 1, 2)
        x = self.dequant(self.fc(functional.flatten(functional.reshape(x, (-1, 9, 3)), 1)))
        return functional.cat([functional.abs(x) * scale, x], 1)


@pytest.mark.parametrize("dialect", EXACT)
def test_functions_of_a_forward_become_torchs(dialect):
    manual_seed(6)
    rng = np.random.default_rng(25)
    prepared = prepare(Functions().eval(), get_default_qconfig(dialect))
    prepared(Tensor(rng.normal(size=(9, 1, 8, 8)).astype(np.float32)))
    converted, x = convert(prepared), rng.normal(size=(4, 1, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(to_torch(converted)(torch.tensor(x)).numpy(), converted(Tensor(x)).data)
    assert Functions.forward.__globals__["relu"] is functional.relu  # the reader's own is as it was


@pytest.mark.parametrize("dialect", [*TORCHS, "reference"])
def test_a_dynamic_mlp(dialect):
    manual_seed(3)
    model = quantize_dynamic(
        nn.Sequential(nn.Linear(33, 40), nn.ReLU(), nn.Linear(40, 7)), default_dynamic_qconfig(dialect)
    )
    x = np.random.default_rng(13).normal(size=(50, 33)).astype(np.float32)
    np.testing.assert_array_equal(to_torch(model)(torch.tensor(x)).numpy(), model(Tensor(x)).data)


def test_a_dynamic_mlp_with_int4_groups():
    manual_seed(4)
    weight = IntxWeightObserver.with_args(weight_bits=4, granularity=PerGroup(32))
    config = QConfig(activation=QSpec(granularity=PerToken()), weight=weight, backend="reference")
    model = quantize_dynamic(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)), config)
    x = np.random.default_rng(14).normal(size=(33, 64)).astype(np.float32)
    np.testing.assert_array_equal(to_torch(model)(torch.tensor(x)).numpy(), model(Tensor(x)).data)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_with_every_kind_of_layer(seed):
    """But for attention, whose products of activations are refused."""
    rng = np.random.default_rng(seed)
    manual_seed(seed)
    for bits in (8, 4, 2):
        model, draw = random_network(rng)
        prepared = prepare_qat(model.train(), get_default_qat_qconfig(weight_bits=bits, act_bits=max(bits, 4)))
        prepared(draw(rng, 16, 1))
        converted, x = convert(prepared.eval()), draw(rng, 30, 2)
        if isinstance(model, Attention):
            with pytest.raises(ValueError, match="calls matmul"):
                to_torch(converted)
        else:
            np.testing.assert_array_equal(to_torch(converted)(torch.tensor(x.data)).numpy(), converted(x).data)


def test_shared_modules_stay_shared_and_run_on_each_grid():
    """One Linear at two places, on inputs of two grids: what it keeps of the first must not serve the second."""
    rng = np.random.default_rng(15)
    layer, x_grid = static_linear(rng, "fbgemm", (9, 9), "channel", False, True)
    model = nn.Sequential(layer, layer, layer)
    theirs = to_torch(model)
    assert theirs[0] is theirs[1]
    x = integers(rng, (20, 9), x_grid)
    np.testing.assert_array_equal(theirs(in_torch(x, "cpu")).int_repr().numpy(), model(x).int_repr())


# ---- float layers ----------------------------------------------------------------------------------------------------


def test_float_layers_become_torchs_own():
    manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.LayerNorm(64), nn.Linear(64, 8), nn.GELU("tanh"), nn.RMSNorm(8), nn.Softmax(-1), nn.Dropout(0.1),
    ).eval()  # fmt: skip
    before = torch.random.get_rng_state()
    theirs = to_torch(model)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [type(m).__module__.split(".")[:2] for m in theirs] == [["torch", "nn"]] * 11 and not theirs.training
    assert {name: tuple(v.shape) for name, v in theirs.state_dict().items()} == {
        name: v.shape for name, v in model.state_dict().items()
    }
    x = np.random.default_rng(16).normal(size=(3, 1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(theirs(torch.tensor(x)).detach().numpy(), model(Tensor(x)).data, rtol=0, atol=1e-6)
    theirs[6].weight.data.zero_()
    assert model[6].weight.data.any()  # no memory is shared


def test_tied_parameters_stay_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    theirs = to_torch(model)
    assert theirs[0].weight is theirs[1].weight and theirs[0].weight.requires_grad


# ---- state -----------------------------------------------------------------------------------------------------------


def test_state_dict_is_readable_and_loads_into_another():
    rng = np.random.default_rng(17)
    (one, x_grid), (other, _) = (static_linear(rng, "x86", (9, 5), "channel", False, True) for _ in range(2))
    first, second = to_torch(nn.Sequential(one)), to_torch(nn.Sequential(other))
    names = [f"0.{name}" for name in ("bias", "weight.scale", "weight.zero_point", "weight.integers", "output.scale",
                                      "output.zero_point")]  # fmt: skip
    assert list(first.state_dict()) == names
    np.testing.assert_array_equal(first.state_dict()["0.weight.integers"].numpy(), one.weight.int_repr())
    x = integers(rng, (12, 9), x_grid)
    assert (second(in_torch(x, "cpu")).int_repr().numpy() == other(x).int_repr()).all()  # it keeps its terms now
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second(in_torch(x, "cpu")).int_repr().numpy(), one(x).int_repr())


def test_half_precision_is_refused():
    rng = np.random.default_rng(18)
    layer, x_grid = static_linear(rng, "x86", (9, 5), "channel", False, True)
    with pytest.raises(TypeError, match=r"scale must be float32, got torch.float16: move .* \.to\(device\) alone"):
        to_torch(layer).half()(in_torch(integers(rng, (1, 9), x_grid), "cpu"))


def test_it_can_be_copied_and_saved(tmp_path):
    import copy

    rng = np.random.default_rng(19)
    layer, x_grid = static_linear(rng, "qnnpack", (9, 5), "tensor", True, True)
    theirs, x = to_torch(layer), in_torch(integers(rng, (4, 9), x_grid), "cpu")
    y = theirs(x).int_repr()
    assert torch.equal(copy.deepcopy(theirs)(x).int_repr(), y)
    torch.save(theirs.state_dict(), tmp_path / "state.pt")
    fresh = to_torch(layer)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(x).int_repr(), y)


# ---- errors ----------------------------------------------------------------------------------------------------------


class UsesFunctions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return functional.layer_norm(self.fc(x), (2,))


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(np.ones(2, np.float32))

    def forward(self, x):
        return x * self.gain


def test_everything_that_is_wrong_is_listed_by_path():
    norm = q_between.BetweenGrids(nn.BatchNorm1d(4), QParams(np.float32(1), np.int32(0), UINT8), "reference")
    inner = nn.Sequential(norm, UsesFunctions())
    with pytest.raises(ValueError) as caught:
        to_torch(nn.Sequential(inner, OwnParameter()))
    message = str(caught.value)
    assert "'0.0' (BetweenGrids): BatchNorm1d between two grids is not covered" in message
    assert (
        "'0.1' (UsesFunctions): its forward uses minquant.functional.layer_norm, which" in message
        and "cannot read torch's tensors" in message
    )
    assert "'1' (OwnParameter): has parameters of its own (gain)" in message
    assert "covered are Linear and Conv1d/2d" in message


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = q_between.QFunctional(QParams(np.float32(1), np.int32(0), UINT8), "reference")

    def forward(self, x, y):
        return self.scores.matmul(x, y)


def test_products_of_activations_are_refused():
    with pytest.raises(
        ValueError, match=r"'0' \(Scores\): its forward calls matmul of the QFunctional 'scores', which adds"
    ):
        to_torch(nn.Sequential(Scores()))
    x = QuantizedTensor(torch.zeros(2, 2, dtype=torch.uint8), Scores().scores.output)
    with pytest.raises(TypeError, match="matmul of two activations adds real values, in an order that each device"):
        to_torch(Scores().scores).matmul(x, x)


def test_prepared_models_and_hooks_are_refused():
    prepared = prepare(nn.QuantWrapper(nn.Linear(2, 2)), get_default_qconfig())
    with pytest.raises(ValueError, match="is prepared, not converted: call convert first"):
        to_torch(prepared)
    hooked = nn.Sequential(nn.ReLU())
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"'0' \(ReLU\): has forward hooks"):
        to_torch(hooked)
    with pytest.raises(TypeError, match="expected a minquant Module, got Linear"):
        to_torch(torch.nn.Linear(2, 2))


def test_wrong_inputs_are_refused():
    rng = np.random.default_rng(20)
    static, x_grid = static_linear(rng, "reference", (9, 5), "tensor", False, True)
    theirs = to_torch(nn.Sequential(static))
    with pytest.raises(
        TypeError, match="StaticLinear '0': expected a quantized tensor, got Tensor: there is no QuantStub"
    ):
        theirs(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"'0': the last axis must have 9 features, got shape \(2, 8\)"):
        theirs(in_torch(integers(rng, (2, 8), x_grid), "cpu"))
    weight = integers(rng, (5, 9), weight_grid(rng, "reference", 5, "tensor"))
    dynamic = to_torch(nn.Sequential(q_linear.DynamicQuantizedLinear(weight, None, UINT8, "reference")))
    with pytest.raises(ValueError, match="the input of DynamicLinear '0' holds NaN or infinity"):
        dynamic(torch.full((2, 9), torch.nan))
    with pytest.raises(TypeError, match="expected real values, got a QuantizedTensor"):
        dynamic(in_torch(integers(rng, (2, 9), x_grid), "cpu"))
    quantizer = to_torch(Quantize(x_grid, "reference"))
    with pytest.raises(ValueError, match="NaN in the input"):
        quantizer(torch.tensor([1.0, torch.nan]))
    with pytest.raises(TypeError, match="tensor of real values"):
        quantizer(torch.tensor([1, 2]))


def test_arithmetic_on_integers_is_refused():
    rng = np.random.default_rng(21)
    x = in_torch(integers(rng, (2, 2), grid(rng, UINT8)), "cpu")
    with pytest.raises(TypeError, match="arithmetic on a quantized tensor is refused"):
        x + x
    with pytest.raises(TypeError, match="softmax has no form on integers"):
        torch.nn.functional.softmax(x, -1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_so():
    with pytest.raises(RuntimeError, match="to_torch: no CUDA device .* or ask for the CPU: device='cpu'"):
        to_torch(nn.Linear(2, 2), "cuda")


def test_sums_that_could_leave_int32_are_refused():
    K = 70_000
    weight = QTensor(np.zeros((1, K), np.int8), QParams(np.float32(1), np.int32(0), QSpec()))
    layer = q_linear.QuantizedLinear(weight, None, QParams(np.float32(1), np.int32(0), UINT8), "reference")
    x = QTensor(np.zeros((1, K), np.uint8), QParams(np.float32(1), np.int32(0), UINT8))
    with pytest.raises(ValueError, match="int32 accumulator could overflow"):
        to_torch(layer)(in_torch(x, "cpu"))
