"""The Rosetta table's rows against the installed torch and torchao: equal grids, equal integers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minquant.crosscheck.inputs import KINDS, near_ties, values
from minquant.crosscheck.quiet import quiet
from minquant.quant import QSpec, choose_qparams
from minquant.quant.rosetta import rosetta

UINT8 = QSpec(signed=False)


def tensors():
    """Every kind of values, half of them near the ties of some grid."""
    rng = np.random.default_rng(0)
    for i in range(120):
        x = values(rng, (int(rng.integers(1, 6)), int(rng.integers(1, 40))), KINDS[i % len(KINDS)])
        if i % 2:
            spec = [UINT8, QSpec(symmetric=True), QSpec(signed=False, qmax=127)][i % 3]
            x = near_ties(rng, x, choose_qparams(x.min(), x.max(), spec))
        yield x


def ours(x: np.ndarray, name: str, bits: int = 8) -> dict:
    return next(row for row in rosetta(x, bits).rows if row["dialect"] == name)


def assert_reads(x: np.ndarray, name: str, scale, zero_point, integers, bits: int = 8) -> None:
    row = ours(x, name, bits)
    assert (row["scale"], row["zero_point"]) == (float(scale), int(zero_point)), x
    assert np.array_equal(row["integers"], integers.numpy()), x


@pytest.mark.parametrize(
    ("name", "dtype", "arguments"),
    [
        ("torch observer quint8", "quint8", {}),
        ("torch observer quint8, reduce_range", "quint8", {"reduce_range": True}),
        ("torch observer qint8", "qint8", {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric}),
    ],
)
def test_observers(name, dtype, arguments):
    with quiet(torch):
        for x in tensors():
            observer = torch.ao.quantization.MinMaxObserver(**arguments)
            observer(torch.tensor(x))
            scale, zero_point = observer.calculate_qparams()
            q = torch.quantize_per_tensor(torch.tensor(x), float(scale), int(zero_point), getattr(torch, dtype))
            assert_reads(x, name, scale, zero_point, q.int_repr())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_fused_fake_quantizer(symmetric, bits):
    name = f"torch fused fake-quantizer, {'symmetric' if symmetric else 'affine'}"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    one = torch.tensor([1])
    for x in tensors():
        state = [torch.tensor([end]) for end in (np.inf, -np.inf)]
        scale, zero_point = torch.ones(1), torch.zeros(1, dtype=torch.int32)
        y = torch.fused_moving_avg_obs_fake_quant(
            torch.tensor(x), one, one, *state, scale, zero_point, 0.01, low, high, -1, False, symmetric
        )
        row = ours(x, name, bits)
        assert (row["scale"], row["zero_point"]) == (float(scale), int(zero_point)), x
        assert np.array_equal((row["integers"] - row["zero_point"]).astype(np.float32) * scale.numpy(), y.numpy()), x


@pytest.mark.parametrize("name", ["fbgemm and x86 at run time", "qnnpack at run time"])
def test_run_time(name):
    """The scale that quantize_per_tensor_dynamic keeps is a float64; what it divides by is a float32."""
    with quiet(torch):
        for x in tensors():
            q = torch.quantize_per_tensor_dynamic(torch.tensor(x), torch.quint8, not name.startswith("qnnpack"))
            assert_reads(x, name, np.float32(q.q_scale()), q.q_zero_point(), q.int_repr())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("mapping", ["SYMMETRIC", "SYMMETRIC_NO_CLIPPING_ERR", "ASYMMETRIC"])
def test_torchao(mapping, bits):
    pytest.importorskip("torchao")
    from torchao.quantization import quant_primitives as ao

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for x in tensors():
        t, kind = torch.tensor(x), getattr(ao.MappingType, mapping)
        scale, zero_point = ao.choose_qparams_affine(t, kind, x.shape, torch.int8, low, high)
        q = ao.quantize_affine(t, x.shape, scale, zero_point, torch.int8, low, high)
        assert_reads(x, f"torchao {mapping}", scale, zero_point, q, bits)
