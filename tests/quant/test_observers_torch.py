from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.ao.quantization.observer as torch_observers  # noqa: I001

import minquant.quant as quant
from minquant.crosscheck.quiet import one_thread
from minquant.quant import histogram as h

F32 = np.float32
pytestmark = pytest.mark.filterwarnings("ignore:torch.inf detected in input tensor")


@pytest.fixture(autouse=True)
def on_one_thread():
    """torch's float sums depend on the number of threads."""
    with one_thread(torch):
        yield


def both(name, **arguments):
    """Our observer and torch's, with the same arguments."""
    named = {k: getattr(torch, v) if isinstance(v, str) else v for k, v in arguments.items()}
    return getattr(quant, name)(**arguments), getattr(torch_observers, name)(**named)


def watch(observers, x):
    ours, theirs = observers
    with np.errstate(over="ignore"):
        ours(x)
    theirs(torch.from_numpy(x.copy()))


def assert_same(observers, context, histogram=False):
    ours, theirs = observers
    names = ["min_val", "max_val"] + ["histogram"] * histogram
    for name in names:
        np.testing.assert_array_equal(
            getattr(ours, name).data, getattr(theirs, name).numpy(), err_msg=f"{name}: {context}"
        )


def assert_same_qparams(observers, context):
    ours, theirs = (observer.calculate_qparams() for observer in observers)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.reshape(b.shape), b.numpy(), err_msg=str(context))


def grid(random, kind):
    """Random dtype, scheme and range of integers."""
    dtype, scheme = str(random.choice(["quint8", "qint8"])), str(random.choice(["affine", "symmetric"]))
    arguments = {"dtype": dtype, "qscheme": f"per_{kind}_{scheme}"}
    if random.random() < 0.3:
        arguments |= dict(zip(("quant_min", "quant_max"), (0, 15) if dtype == "quint8" else (-7, 7), strict=True))
    if random.random() < 0.3 and (dtype, scheme) != ("quint8", "symmetric"):
        arguments["reduce_range"] = True
    if random.random() < 0.3:
        arguments["eps"] = float(10 ** random.uniform(-9, 0))
    return arguments


# ---- smallest and largest value ------------------------------------------------------------------------------

MIN_MAX = [
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver",
]


def special(random, x):
    """x with a few elements that are ±0, infinite, NaN, subnormal or huge."""
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 3e38, -3e38], F32)
    where = random.random(x.shape) < 0.02
    return np.where(where, random.choice(odd, x.shape), x)


@pytest.mark.parametrize("name", MIN_MAX)
@pytest.mark.parametrize("odd", [False, True])
def test_min_max_family(name, odd):
    random = np.random.default_rng(MIN_MAX.index(name))
    for seed in range(150):
        per_channel = "PerChannel" in name
        arguments = grid(random, "channel" if per_channel else "tensor")
        shape = tuple(random.integers(1, 5, random.integers(2, 5)))
        if per_channel:
            arguments["ch_axis"] = int(random.integers(-len(shape), len(shape)))
        if "Moving" in name and random.random() < 0.5:
            arguments["averaging_constant"] = float(random.uniform(0.001, 1))
        observers = both(name, **arguments)
        for _ in range(random.integers(1, 4)):
            x = random.standard_normal(shape) * 10 ** random.uniform(-10, 10) + random.standard_normal()
            x = x.astype(F32)
            watch(observers, special(random, x) if odd else x)
            assert_same(observers, (seed, arguments))
            assert_same_qparams(observers, (seed, arguments))


@pytest.mark.parametrize("name", [*MIN_MAX, "HistogramObserver"])
def test_nothing_seen(name):
    observers = both(name)
    assert_same_qparams(observers, name)
    assert_same(observers, name)
    watch(observers, np.zeros((0, 3), F32))
    assert_same(observers, name)


@pytest.mark.parametrize("name", [*MIN_MAX, "HistogramObserver"])
def test_same_arguments_in_the_same_order_with_the_same_defaults(name):
    import inspect

    ours = inspect.signature(getattr(quant, name)).parameters
    theirs = inspect.signature(getattr(torch_observers, name)).parameters
    common = [p for p in theirs if p not in ("factory_kwargs", "is_dynamic", "kwargs")]
    assert list(ours) == common
    for p in common:
        default = theirs[p].default
        assert ours[p].default == (str(default).removeprefix("torch.") if "torch" in str(default) else default)


# ---- histogram -----------------------------------------------------------------------------------------------


def draw(random):
    """One batch: one of many shapes of distribution, at one of many magnitudes."""
    n = int(random.choice([1, 2, 3, 17, 300, 3000]))
    normal = random.standard_normal(n)
    kinds = [
        normal,
        random.random(n),
        np.full(n, random.standard_normal()),
        -random.exponential(size=n),
        np.append(normal, 100 * random.standard_normal()),
        random.standard_cauchy(n),
        np.maximum(normal, 0),
        random.integers(-5, 6, n) / 4,
        normal + 1e4,
        np.zeros(n),
        np.exp(5 * normal),
    ]
    scale = random.choice(
        [1.0, 10 ** random.uniform(-8, 8), 10 ** random.uniform(-37, -25), 10 ** random.uniform(25, 33)]
    )
    return np.clip(kinds[random.integers(len(kinds))] * scale, -1e37, 1e37).astype(F32)


def next_batch(random, x):
    """A batch that is new, of another scale, the same, or shifted."""
    kind = random.integers(4)
    if kind == 0:
        return draw(random)
    if kind == 1:
        return x * F32(random.uniform(0.1, 3))
    return x if kind == 2 else x + F32(random.standard_normal() * abs(x).max() / 2)


@pytest.mark.parametrize("seed", range(120))
def test_histogram(seed):
    random = np.random.default_rng(seed)
    bins = int(random.choice([2048, 2048, 2048, 1, 2, 7, 64, 100, 500]))
    arguments = grid(random, "tensor") | {"bins": bins}
    observers = both("HistogramObserver", **arguments)
    x = draw(random)
    for batch in range(random.integers(1, 6)):
        x = next_batch(random, x) if batch else x
        watch(observers, np.append(x, F32(np.inf)) if random.random() < 0.1 else x)
        assert_same(observers, (seed, batch, arguments), histogram=True)
    if seed % 12 == 0:  # torch's search takes up to two seconds; the recorded answers hold more of them
        assert_same_qparams(observers, (seed, arguments))


@pytest.mark.parametrize("reduce_range", [False, True])
def test_histogram_of_the_articles_calibration_data(reduce_range):
    x = torch.rand(5000, 3, generator=torch.Generator().manual_seed(42)).numpy()
    observers = both("HistogramObserver", reduce_range=reduce_range)
    for batch in (x[:1000], x, np.maximum(x @ np.array([[1.12, 1.6], [-2.24, 2.5], [3.6, 3.9]], F32), 0)):
        watch(observers, batch)
        assert_same(observers, reduce_range, histogram=True)
    assert_same_qparams(observers, reduce_range)


def test_histogram_where_the_bin_index_overflows():
    observers = both("HistogramObserver")
    for batch in ([1e36, 0, 5e35], [-1e36, 2e36]):
        watch(observers, np.array(batch, F32))
        assert_same(observers, batch, histogram=True)
    assert_same_qparams(observers, "overflow")


def test_histogram_refuses_nan_as_torch_does():
    ours, theirs = both("HistogramObserver")
    with pytest.raises(RuntimeError, match="not finite"):
        theirs(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="NaN"):
        ours(np.array([1.0, np.nan], F32))


def test_quantization_error():
    random = np.random.default_rng(9)
    for bins in (2, 100, 2048):
        ours, theirs = both("HistogramObserver", bins=bins)
        for _ in range(40):
            ours.reset_min_max_vals()
            x = draw(random)
            ours(x)
            theirs.reset_histogram(torch.from_numpy(x), torch.tensor(x.min()), torch.tensor(x.max()))
            cut = np.sort(random.integers(0, bins, 2))
            with np.errstate(all="ignore"):
                (error,) = h.quantization_error(ours.histogram.data, x.min(), x.max(), cut[np.newaxis])
            expected = theirs._compute_quantization_error(*cut.tolist())
            np.testing.assert_array_equal(error, F32(expected), err_msg=f"{bins} {cut} {x.min()} {x.max()}")


@pytest.mark.parametrize("n", [1, 3, 7, 8, 31, 32, 100, 511, 513, 2048, 4097, 20000, 32768])
def test_cascade_sum(n):
    random = np.random.default_rng(n)
    for _ in range(20):
        x = (random.standard_normal(n) * 10.0 ** random.integers(-6, 6, n)).astype(F32)
        assert h.cascade_sum(x) == torch.from_numpy(x).sum().item()


def test_linspace():
    random = np.random.default_rng(7)
    for _ in range(200):
        ends = (random.standard_normal(2) * 10 ** random.uniform(-30, 30) + random.choice([0, 100])).astype(F32)
        low, high = np.sort(ends)
        n = int(random.choice([2, 3, 33, 513, 2049, 32769]))
        theirs = torch.linspace(torch.tensor(low), torch.tensor(high), n).numpy()
        np.testing.assert_array_equal(h.linspace(low, high, n), theirs, err_msg=f"{low} {high} {n}")


@pytest.mark.parametrize("low", [-3e-45, 1e-30, -1e-12, 3e-9])
def test_linspace_where_the_smaller_end_only_breaks_ties(low):
    random = np.random.default_rng(10)
    for _ in range(100):
        high, n = F32(random.uniform(0.1, 2)), int(random.choice([33, 513, 2049]))
        theirs = torch.linspace(torch.tensor(F32(low)), torch.tensor(high), n).numpy()
        np.testing.assert_array_equal(h.linspace(F32(low), high, n), theirs, err_msg=f"{low} {high} {n}")


def test_count():
    random = np.random.default_rng(8)
    for _ in range(200):
        x, bins = draw(random), int(random.choice([1, 10, 2048]))
        low, high = x.min(), x.max()
        theirs = torch.histc(torch.from_numpy(x), bins, min=torch.tensor(low), max=torch.tensor(high)).numpy()
        np.testing.assert_array_equal(h.count(x, bins, low, high), theirs, err_msg=f"{low} {high} {bins}")
