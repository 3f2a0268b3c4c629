from __future__ import annotations

import copy

import numpy as np
import pytest

from minquant import Tensor, nn
from minquant.nn.module import Module, Parameter


class Block(Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3)
        self.register_buffer("count", np.zeros(1, np.float32))
        self.scale = Parameter(np.ones(3, np.float32))

    def forward(self, x):
        return self.fc(x) * self.scale


class Model(Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Block()
        self.rest = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Dropout())

    def forward(self, x):
        return self.rest(self.first(x))


NAMES = ["first.scale", "first.fc.weight", "first.fc.bias", "rest.0.weight", "rest.0.bias"]
PATHS = ["", "first", "first.fc", "rest", "rest.0", "rest.1", "rest.2"]


# ---- the tree ----


def test_names() -> None:
    model = Model()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert [name for name, _ in model.named_parameters("m", recurse=False)] == []
    assert [name for name, _ in model.named_modules()] == PATHS
    assert [name for name, _ in model.named_children()] == ["first", "rest"]
    assert [name for name, _ in model.named_buffers()] == ["first.count"]
    assert [p.shape for p in model.parameters()] == [(3,), (3, 2), (3,), (2, 3), (2,)]
    assert len(list(model.modules())) == 7
    assert len(list(model.children())) == 2
    assert len(list(model.buffers())) == 1


def test_shared_parts_are_listed_once() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert [name for name, _ in model.named_modules()] == ["", "0", "1"]
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_get_submodule() -> None:
    model = Model()
    assert model.get_submodule("first.fc") is model.first.fc
    assert model.get_submodule("") is model
    with pytest.raises(AttributeError, match=r"'first.fcc'.*first has fc.*'fcc'"):
        model.get_submodule("first.fcc")


def test_attributes_move_between_tables() -> None:
    model = Model()
    model.first.scale = None
    assert "first.scale" not in dict(model.named_parameters())
    model.first.scale = Parameter([1.0])
    model.rest = nn.Identity()
    assert [name for name, _ in model.named_modules()] == ["", "first", "first.fc", "rest"]
    model.first.count = np.ones(1, np.float32)
    assert isinstance(model.first.count, Tensor)
    assert model.first.state_dict()["count"].item() == 1
    del model.rest
    with pytest.raises(AttributeError, match="Model has no attribute 'rest'"):
        _ = model.rest
    assert "first" in dir(model)


def test_wrong_assignments_are_refused() -> None:
    model = Model()
    with pytest.raises(TypeError, match=r"Block.scale is a Parameter"):
        model.first.scale = 3.0
    with pytest.raises(TypeError, match=r"Model.rest is a Module"):
        model.rest = "nothing"
    with pytest.raises(ValueError, match="dots"):
        model.register_buffer("a.b", np.zeros(1))

    class Forgetful(Module):
        def __init__(self) -> None:
            self.fc = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match="super"):
        Forgetful()


# ---- on the whole tree ----


def test_train_and_eval_reach_every_module() -> None:
    model = Model()
    assert all(m.training for m in model.modules())
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    model.train()
    assert all(m.training for m in model.modules())


def test_apply_visits_children_first() -> None:
    seen: list[Module] = []
    model = Model()
    assert model.apply(seen.append) is model
    assert seen[-1] is model
    assert len(seen) == 7
    assert seen.index(model.first.fc) < seen.index(model.first)


def test_gradients_can_be_cleared_and_switched_off() -> None:
    model = Model()
    x = np.ones((4, 2), np.float32)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=False)
    assert all((p.grad.data == 0).all() for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    model.requires_grad_(False)
    assert not model(x).requires_grad


def test_hooks_see_and_replace_the_output() -> None:
    layer, seen = nn.Identity(), []
    watch = layer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output)))
    change = layer.register_forward_hook(lambda module, inputs, output: output * 2)
    assert layer(3) == 6
    assert seen == [(layer, (3,), 3)]
    change.remove()
    assert layer(3) == 3
    watch.remove()
    watch.remove()
    layer(3)
    assert len(seen) == 2


def test_deepcopy_shares_nothing() -> None:
    model = Model()
    twin = copy.deepcopy(model)
    for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert a is not b, name
        assert not np.shares_memory(a.data, b.data), name
        np.testing.assert_array_equal(a.data, b.data)
    x = np.ones((1, 2), np.float32)
    twin.eval()
    assert model.training
    twin(x).sum().backward()
    assert model.first.scale.grad is None


# ---- state ----


def test_state_dict_is_detached_and_shares_memory() -> None:
    model = Model()
    state = model.state_dict()
    assert list(state) == ["first.scale", "first.count", *NAMES[1:]]
    assert not any(value.requires_grad for value in state.values())
    assert np.shares_memory(state["rest.0.bias"].data, model.rest[0].bias.data)


def test_load_state_dict_copies() -> None:
    model, other = Model(), Model()
    parameter = model.first.fc.weight
    model.load_state_dict({name: value.data for name, value in other.state_dict().items()})
    assert model.first.fc.weight is parameter
    np.testing.assert_array_equal(parameter.data, other.first.fc.weight.data)
    assert not np.shares_memory(parameter.data, other.first.fc.weight.data)
    model.load_state_dict({"rest.0.bias": [1, 2]}, strict=False)
    assert model.rest[0].bias.tolist() == [1, 2]


def test_everything_that_does_not_fit_is_listed_at_once_and_nothing_changes() -> None:
    model = Model()
    before = {name: value.data.copy() for name, value in model.state_dict().items()}
    state = {name: np.full(value.shape, 7, np.float32) for name, value in before.items()}
    del state["first.scale"], state["rest.0.bias"]
    state.update({"extra": np.zeros(1), "rest.9.bias": np.zeros(1), "first.fc.weight": np.zeros((2, 3))})
    state["first.count"] = np.zeros(1, complex)
    with pytest.raises(ValueError) as error:
        model.load_state_dict(state)
    assert str(error.value).splitlines() == [
        "load_state_dict does not fit Model:",
        "  dtype of first.count: expected float32, got complex128",
        "  missing: first.scale",
        "  missing: rest.0.bias",
        "  shape of first.fc.weight: expected (3, 2), got (2, 3)",
        "  unexpected: extra",
        "  unexpected: rest.9.bias",
    ]
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.data, before[name])
    with pytest.raises(ValueError, match="shape of first.fc.weight"):
        model.load_state_dict({"first.fc.weight": np.zeros((2, 3))}, strict=False)


# ---- as text ----


def test_repr_shows_the_tree() -> None:
    assert repr(Model()) == "\n".join(
        [
            "Model(",
            "  (first): Block(",
            "    (fc): Linear(in_features=2, out_features=3, bias=True)",
            "  )",
            "  (rest): Sequential(",
            "    (0): Linear(in_features=3, out_features=2, bias=True)",
            "    (1): ReLU()",
            "    (2): Dropout(p=0.5)",
            "  )",
            ")",
        ]
    )
