from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest

from minquant import Tensor, no_grad
from minquant import functional as F
from minquant.nn import Parameter
from minquant.tensor import Function


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values, np.float32), requires_grad=True)


# ---- what it holds -----------------------------------------------------------------------------------------


def test_dtypes() -> None:
    assert Tensor(1.5).dtype == np.float32
    assert Tensor([1.0, 2.0]).dtype == np.float32
    assert Tensor([1, 2]).dtype == np.int64
    assert Tensor([True]).dtype == bool
    assert Tensor(np.zeros(2)).dtype == np.float64
    assert Tensor(np.float64(1)).dtype == np.float64
    assert Tensor(np.zeros(2, np.uint8)).dtype == np.uint8


@pytest.mark.parametrize("data", ["text", [None], np.zeros(2, np.complex64), np.zeros(2, np.float16), [[1], [2, 3]]])
def test_other_data_is_refused(data) -> None:
    with pytest.raises((TypeError, ValueError)):
        Tensor(data)


def test_integers_cannot_require_a_gradient() -> None:
    with pytest.raises(RuntimeError, match="int64"):
        Tensor([1, 2], requires_grad=True)


def test_an_array_is_shared() -> None:
    array = np.zeros(3, np.float32)
    assert Tensor(array).data is array
    assert Tensor(array).numpy() is array
    assert np.asarray(Tensor(array)) is array


def test_numbers() -> None:
    x = Tensor([2.5])
    assert (x.item(), float(x), int(x), bool(x), len(x), x.numel()) == (2.5, 2.5, 2, True, 1, 1)
    for use in (Tensor.item, float, bool):
        with pytest.raises(RuntimeError, match=r"\(2,\)"):
            use(Tensor([1.0, 2.0]))
    with pytest.raises(TypeError, match="0-d"):
        len(Tensor(1.0))


def test_numpy_refuses_to_lose_a_gradient() -> None:
    with pytest.raises(RuntimeError, match="detach"):
        leaf(1).numpy()
    with pytest.raises(RuntimeError, match="detach"):
        np.asarray(leaf(1))
    assert leaf(1).detach().numpy() == 1


def test_repr_tells_values_dtype_and_origin() -> None:
    assert repr(Tensor([1.0, 2.5])) == "Tensor([1. , 2.5], float32)"
    assert repr(leaf(1, 2)) == "Tensor([1., 2.], float32, requires_grad=True)"
    assert repr(leaf(1, 2) * 2) == "Tensor([2., 4.], float32, grad_fn=Mul)"
    assert repr(Parameter([1.0])) == "Parameter([1.], float32, requires_grad=True)"
    assert "shape=(2000,)" in repr(Tensor(np.zeros(2000)))


def test_comparisons_are_bools_without_a_gradient() -> None:
    x = leaf(1, 2, 3)
    for result, expected in [
        (x == 2, [False, True, False]),
        (x != 2, [True, False, True]),
        (x < 2, [True, False, False]),
        (x <= 2, [True, True, False]),
        (x > 2, [False, False, True]),
        (2 <= x, [False, True, True]),
        (x == leaf(1, 0, 3), [True, False, True]),
    ]:
        assert result.tolist() == expected
        assert result.dtype == bool
        assert not result.requires_grad


def test_arrays_on_the_left_make_tensors() -> None:
    x = leaf(1, 2)
    for result, expected in [
        (np.array([3, 4], np.float32) - x, [2, 2]),
        (np.array([3, 4], np.float32) * x, [3, 8]),
        (np.float32(2) / x, [2, 1]),
        (2**x, [2, 4]),
        (np.eye(2, dtype=np.float32) @ x, [1, 2]),
        (5 - x, [4, 3]),
    ]:
        assert isinstance(result, Tensor)
        assert result.tolist() == expected
        assert result.dtype == np.float32
        assert result.requires_grad


def test_iteration_and_chains_of_methods() -> None:
    x = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert [row.tolist() for row in x] == [[0, 1, 2], [3, 4, 5]]
    assert x.T.shape == x.transpose(0, 1).shape == x.permute(1, 0).shape == (3, 2)
    assert x.reshape(3, 2).shape == x.reshape((3, 2)).shape == x.reshape(-1, 2).shape == (3, 2)
    assert x.unsqueeze(0).expand(4, -1, -1).shape == (4, 2, 3)
    assert x[None, :1].squeeze().flatten().shape == (3,)
    assert [part.shape for part in x.split(2, dim=1)] == [(2, 2), (2, 1)]
    assert x.max(1).values.tolist() == [2, 5]
    assert x.argmax(1).tolist() == [2, 2]
    assert x.var(1, correction=0).tolist() == pytest.approx([2 / 3, 2 / 3])


# ---- backward ----------------------------------------------------------------------------------------------


def test_a_diamond() -> None:
    x = leaf(2)
    y = x**2 + x**3
    y.sum().backward()
    assert x.grad.tolist() == [16]
    assert x.grad.dtype == np.float32
    assert not x.grad.requires_grad


def test_a_tensor_used_many_times_gets_every_contribution() -> None:
    x = leaf(3)
    (x * x * x + x - x / x + x[0] * 2).sum().backward()
    assert x.grad.tolist() == [27 + 1 + 2]


def test_gradients_accumulate_until_they_are_cleared() -> None:
    x = leaf(1, 2)
    (x * 3).sum().backward()
    first = x.grad
    (x * 4).sum().backward()
    assert x.grad is first  # in place, as torch does
    assert x.grad.tolist() == [7, 7]
    x.grad = None
    (x * 4).sum().backward()
    assert x.grad.tolist() == [4, 4]


def test_gradients_of_two_leaves_never_alias() -> None:
    a, b = leaf(1), leaf(1)
    (a + b).sum().backward()
    a.grad.zero_()
    assert b.grad.tolist() == [1]


def test_a_second_backward_needs_the_graph() -> None:
    x = leaf(3)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()
    assert x.grad.tolist() == [6]  # the failed one added nothing

    x.grad = None
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [12]
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()


def test_a_shared_part_of_two_graphs_is_freed_by_the_first() -> None:
    x = leaf(3)
    shared = x.exp()
    (shared * 2).sum().backward()
    with pytest.raises(RuntimeError, match="Exp"):
        (shared * 3).sum().backward()


def test_a_graph_that_saved_nothing_can_be_walked_again() -> None:
    x = leaf(3)
    y = (x + 1).sum()
    y.backward()
    y.backward()
    assert x.grad.tolist() == [2]


def test_backward_needs_a_number_or_a_gradient() -> None:
    x = leaf(1, 2)
    with pytest.raises(RuntimeError, match=r"\(2,\)"):
        (x * 2).backward()
    with pytest.raises(RuntimeError, match=r"\(3,\).*\(2,\)"):
        (x * 2).backward(np.ones(3))
    (x * 2).backward([1.0, 10.0])
    assert x.grad.tolist() == [2, 20]
    x.backward(Tensor([1.0, 1.0]))
    assert x.grad.tolist() == [3, 21]
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        Tensor([1.0]).backward()


def test_deep_graphs_need_no_recursion() -> None:
    x = leaf(1)
    y = x
    for _ in range(5_000):
        y = y * 1.0 + 0.0
    y.backward()
    assert x.grad.tolist() == [1]


def test_wide_graphs_are_walked_once() -> None:
    x = leaf(1)
    y = x
    for _ in range(60):
        y = y + y  # 2⁶⁰ paths
    y.backward()
    assert x.grad.tolist() == [2.0**60]


def test_inputs_that_need_no_gradient_get_none() -> None:
    a, b = leaf(1), Tensor([2.0])
    (a * b).sum().backward()
    assert b.grad is None
    assert a.grad.tolist() == [2]


def test_detach_cuts_the_graph_and_shares_memory() -> None:
    x = leaf(3)
    d = x.detach()
    assert not d.requires_grad
    assert np.shares_memory(d.data, x.data)
    (x * d).sum().backward()
    assert x.grad.tolist() == [3]


def test_retain_grad_of_an_inner_tensor() -> None:
    x = leaf(2)
    y = x * 3
    y.retain_grad()
    (y * y).sum().backward()
    assert y.grad.tolist() == [12]
    z = x * 3
    z.sum().backward()
    assert z.grad is None


def test_results_are_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        y = leaf(1).exp().sigmoid()
        gone = weakref.ref(y)
        del y
        assert gone() is None
    finally:
        gc.enable()


def test_a_wrong_backward_is_named() -> None:
    class Wrong(Function):
        def forward(self, x):
            return x * 2

        def backward(self, grad):
            return grad.sum()

    with pytest.raises(RuntimeError, match=r"Wrong.backward.*\(\).*\(2,\)"):
        Wrong.apply(leaf(1, 2)).sum().backward()


def test_a_tensor_function_takes_over() -> None:
    class Special:
        def __tensor_function__(self, function, inputs, options):
            return function.__name__, len(inputs), options

    assert F.relu(Special()) == ("ReLU", 1, {})
    assert F.softmax(Special(), 1) == ("Softmax", 1, {"dim": 1})
    assert leaf(1) + Special() == ("Add", 2, {})
    assert F.cat([leaf(1), Special()], dim=0) == ("Cat", 2, {"dim": 0})


# ---- no_grad -----------------------------------------------------------------------------------------------


def test_no_grad_as_a_block_and_as_a_decorator() -> None:
    x = leaf(1)
    with no_grad():
        assert not (x * 2).requires_grad
        with no_grad():
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad

    @no_grad()
    def countdown(n: int) -> Tensor:
        return x * 2 if n == 0 else countdown(n - 1) + 1

    assert not countdown(3).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (leaf(1) * 2).requires_grad


# ---- changes in place --------------------------------------------------------------------------------------


def add_one(y: Tensor) -> None:
    y += 1


def write_first(y: Tensor) -> None:
    y[0] = 5.0


def write_first_of_detached(y: Tensor) -> None:
    y.detach()[0] = 5.0


def write_first_of_view(y: Tensor) -> None:
    with no_grad():
        y.reshape(-1)[:1].copy_(5.0)


@pytest.mark.parametrize("change", [add_one, write_first, write_first_of_detached, write_first_of_view])
@pytest.mark.parametrize("use", [lambda y: y * y, lambda y: y.exp().log() / y, lambda y: y[None] @ y[:, None]])
def test_a_change_that_the_graph_still_needs_is_refused(change, use) -> None:
    x = leaf(1, 2)
    y = x * 2
    z = use(y).sum()
    change(y)
    with pytest.raises(RuntimeError, match="changed in place"):
        z.backward()
    assert x.grad is None


def test_a_change_of_a_saved_result_is_refused() -> None:
    y = leaf(1, 2).exp()
    y += 1
    with pytest.raises(RuntimeError, match="Exp"):
        y.sum().backward()


def test_a_change_of_a_parameter_between_forward_and_backward_is_refused() -> None:
    x, w = leaf(1, 2), leaf(3, 4)
    loss = (x * w).sum()
    with no_grad():
        w -= 1
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_harmless_changes_are_recorded() -> None:
    x = leaf(1, 2)
    y = x * 2
    same = y
    y += x
    y *= 3
    y[0] = 7.0
    y -= 1
    y /= 2
    assert y is same
    assert y.tolist() == [3, 8.5]
    y.sum().backward()
    assert x.grad.tolist() == [0, 4.5]


def test_a_total_can_be_added_up_in_place() -> None:
    x = leaf(1, 2)
    total = Tensor(0.0)
    for value in x * 3:
        total += value
    total.backward()
    assert total.item() == 9
    assert x.grad.tolist() == [3, 3]


def test_written_values_get_their_gradient() -> None:
    x = leaf(1, 2)
    y = Tensor(np.zeros(3, np.float32))
    y[1:] = x * 2
    y[0] = x[1]
    (y * Tensor([1.0, 10.0, 100.0])).sum().backward()
    assert x.grad.tolist() == [20, 201]


def test_leaves_and_views_that_require_a_gradient_are_not_changed() -> None:
    x = leaf(1, 2)
    with pytest.raises(RuntimeError, match="leaf"):
        x += 1
    with pytest.raises(RuntimeError, match="leaf"):
        x[0] = 1
    y = x * 2
    view = y[:1]
    with pytest.raises(RuntimeError, match="view"):
        view += 1
    assert y.tolist() == [2, 4]


def test_a_view_does_not_outlive_a_change_of_its_base() -> None:
    y = leaf(1, 2) * 2
    view = y[:1]
    y *= 3
    with pytest.raises(RuntimeError, match="changed in place"):
        view.sum().backward()


def test_integers_are_not_rounded_in_place() -> None:
    n = Tensor([1, 2])
    n += 1
    assert n.tolist() == [2, 3]
    with pytest.raises(TypeError):
        n += 0.5


def test_a_change_takes_a_tensor_off_its_grid() -> None:
    x = Tensor([1.0])
    x.qparams = object()
    x += 1
    assert x.qparams is None


class Grid:
    scale = np.float32(0.1)


def test_only_movements_and_relu_keep_a_grid() -> None:
    x = Tensor(np.zeros((2, 3), np.float32))
    x.qparams = grid = Grid()
    kept = [
        x.relu(),
        x.T,
        x.reshape(6),
        x[0],
        x[[0, 0]],
        x.flatten(),
        x.unsqueeze(0),
        x.squeeze(),
        x.detach(),
    ]
    assert all(out.qparams is grid for out in kept)
    lost = [x + 1, x * 2, x.sigmoid(), x.sum(), x.clip(0, 1), x.double(), F.cat([x, x])]
    assert all(out.qparams is None for out in lost)
    x.qparams = grid = Grid()
    grid.scale = np.ones(2, np.float32)  # per channel: the axis may have moved
    assert x.T.qparams is None


# ---- copies ------------------------------------------------------------------------------------------------


def test_deepcopy_of_a_leaf() -> None:
    p = Parameter(np.array([1.0, 2.0], np.float32))
    (p * 2).sum().backward()
    twin = copy.deepcopy([p, p])
    assert type(twin[0]) is Parameter
    assert twin[0] is twin[1]
    assert twin[0].requires_grad
    assert twin[0].grad.tolist() == [2, 2]
    twin[0].data[0] = 9
    twin[0].grad.data[0] = 9
    assert p.tolist() == [1, 2]
    assert p.grad.tolist() == [2, 2]
    with pytest.raises(RuntimeError, match="Mul"):
        copy.deepcopy(p * 2)


def test_requires_grad_can_be_switched_on_leaves_only() -> None:
    x = Tensor([1.0]).requires_grad_()
    y = x * 2
    with pytest.raises(RuntimeError, match="detach"):
        y.requires_grad = False
    x.requires_grad = False
    assert not (x * 2).requires_grad


def test_casts() -> None:
    x = leaf(1, 2)
    x.double().sum().backward()
    assert x.double().dtype == np.float64
    assert x.grad.dtype == np.float32
    assert Tensor([1, 2]).float().dtype == np.float32
