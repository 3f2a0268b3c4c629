"""Distillation: the loss by its definition, the teacher who never changes, and a loop that stays as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import minquant as mq
from minquant import Tensor, nn, optim
from minquant.quant import (
    Int8DynamicActivationIntxWeightConfig,
    PerGroup,
    QATConfig,
    QATLinear,
    QuantWrapper,
    convert,
    get_default_qat_qconfig,
    prepare_qat,
    quantize_,
)
from minquant.train import DistillationModel, LogitsDistillationLoss, StaticLossBalancer

EPS = np.finfo(np.float32).eps
X = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(s, t, temperature):
    """The definition in float64, row by row, its gradient, and the bounds of both as documented."""
    classes, total = s.shape[-1], 0.0
    rows_s, rows_t = (np.float64(x).reshape(-1, classes) / temperature for x in (s, t))
    log_q, log_p = log_softmax(rows_s), log_softmax(rows_t)
    for p, q in zip(log_p, log_q, strict=True):
        total += sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    spread = -log_p.min() - log_q.min()
    logs = 32 * EPS * (np.abs(rows_s).max() + np.abs(rows_t).max() + spread)
    gradient = (temperature / len(rows_s) * (np.exp(log_q) - np.exp(log_p))).reshape(s.shape)
    bounds = temperature**2 * (1 + spread) * logs, temperature / len(rows_s) * logs
    return temperature**2 * total / len(rows_s), gradient, *bounds


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_by_hand():
    teacher, student = np.log(np.float32([0.5, 0.25, 0.25])), np.log(np.float32([0.25, 0.5, 0.25]))
    assert abs(LogitsDistillationLoss()(Tensor(student), Tensor(teacher)).item() - 0.25 * np.log(2)) <= EPS
    assert abs(LogitsDistillationLoss()(Tensor(teacher), Tensor(teacher)).item()) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(5,), (3, 10), (2, 7, 33)])
def test_definition_and_gradient(shape, temperature):
    rng = np.random.default_rng(len(shape))
    s, t = (rng.normal(0, 5, shape).astype(np.float32) for _ in range(2))
    student, teacher = Tensor(s, requires_grad=True), Tensor(t, requires_grad=True)
    loss = LogitsDistillationLoss(temperature)(student, teacher)
    loss.backward()
    expected, gradient, bound, gradient_bound = divergence(s, t, temperature)
    assert loss.shape == () and abs(loss.item() - expected) <= bound
    assert np.abs(student.grad.data - gradient).max() <= gradient_bound
    assert teacher.grad is None


def test_what_the_teacher_calls_impossible_costs_nothing():
    loss = LogitsDistillationLoss()(Tensor(np.float32([0, 0, 0])), Tensor(np.float32([0, 0, -200])))
    assert abs(loss.item() - np.log(1.5)) <= 4 * EPS


def test_at_high_temperature_logits_are_matched():
    rng = np.random.default_rng(1)
    s, t = (rng.normal(0, 1, (8, 10)) for _ in range(2))
    s, t = (x - x.mean(1, keepdims=True) for x in (s, t))
    student = Tensor(s, requires_grad=True)
    LogitsDistillationLoss(1e4)(student, Tensor(t)).backward()
    assert np.abs(student.grad.data - (s - t) / s.size).max() <= 1e-4 * np.abs(s - t).max() / len(s)


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan")])
def test_a_temperature_is_above_0(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0, got"):
        LogitsDistillationLoss(temperature)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 3), (2, 4), r"\(2, 3\).*\(2, 4\).*vocabulary"),
        ((2, 3), (4, 3), "the same batch"),
        ((0, 3), (0, 3), "at least one row"),
        ((), (), "at least one row"),
    ],
)
def test_logits_that_do_not_fit(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        LogitsDistillationLoss()(Tensor(np.zeros(student, np.float32)), Tensor(np.zeros(teacher, np.float32)))


# ---- the model -------------------------------------------------------------------------------------------------------


def net(width: int = 5, seed: int = 0) -> nn.Sequential:
    mq.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.data.copy() for name, value in model.state_dict().items()}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], strict=True)


def train(model: nn.Module, loss, steps: int = 3) -> None:
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    model.eval()


def own_loss(model: nn.Module) -> Tensor:
    return nn.CrossEntropyLoss()(model(Tensor(X)), Y)


def kd_loss(model: DistillationModel) -> Tensor:
    return model.compute_kd_loss(own_loss(model))


def test_a_loop_with_the_loss_written_out_trains_alike():
    teacher, start = net(seed=1), state(net())
    criterion = {("", ""): LogitsDistillationLoss(2.0), ("0", "0"): nn.MSELoss()}
    model = DistillationModel(net(), teacher, criterion, StaticLossBalancer([0.5, 0.25]))
    train(model, kd_loss)

    plain = net()

    def written_out(plain):
        hidden = plain[0](Tensor(X))
        logits = plain[2](plain[1](hidden))
        kd = 0.5 * LogitsDistillationLoss(2.0)(logits, teacher(Tensor(X)))
        return kd + 0.25 * nn.MSELoss()(hidden, teacher[0](Tensor(X))) + 0.25 * nn.CrossEntropyLoss()(logits, Y)

    train(plain, written_out)
    assert_equal(state(model.student), state(plain))
    assert not any(np.array_equal(value, start[name]) for name, value in state(plain).items())


def test_the_teacher_stays_as_it_was():
    mq.manual_seed(1)
    teacher = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    before, modes = state(teacher), []
    teacher[2].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    model = DistillationModel(net(), teacher, LogitsDistillationLoss())
    assert not any(p.requires_grad for p in teacher.parameters())
    teacher.train()  # by somebody else
    train(model, lambda model: (model(Tensor(X)), model.compute_kd_loss())[1])
    assert modes == [False] * 3 and not any(m.training for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert_equal(state(teacher), before)
    assert model.teacher is teacher


def test_no_gradient_flows_through_the_teacher():
    student, teacher, x, alone = net(), net(seed=1), Tensor(X, requires_grad=True), Tensor(X, requires_grad=True)
    model = DistillationModel(student, teacher, nn.MSELoss())
    model(x)
    model.compute_kd_loss().backward()
    nn.MSELoss()(student(alone), teacher(Tensor(X))).backward()
    assert np.array_equal(x.grad.data, alone.grad.data)


def tied(seed: int = 0) -> nn.Sequential:
    """A chain whose first and last layer have one weight, as embedding and head of a language model may."""
    mq.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("make", [net, tied])
def test_only_the_student_is_counted_and_saved(make, tmp_path):
    student, teacher = make(), make(seed=1)
    names = list(student.state_dict())
    model = DistillationModel(student, teacher, LogitsDistillationLoss(), StaticLossBalancer())
    assert [id(p) for p in model.parameters()] == [id(p) for p in student.parameters()]
    assert {id(m) for m in model.modules()}.isdisjoint(id(m) for m in teacher.modules())
    train(model, kd_loss)
    model.train()(Tensor(X))  # in mid training, with outputs kept
    assert list(model.state_dict()) == [f"student.{name}" for name in names]
    mq.save(model.student, tmp_path / "student.safetensors")
    loaded = mq.load(tmp_path / "student.safetensors")
    assert_equal(state(loaded), state(student))
    assert (loaded[0].weight is loaded[2].weight) == (make is tied)


def test_in_eval_the_student_runs_alone():
    calls, teacher = [], net(seed=1)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    model = DistillationModel(net(), teacher, LogitsDistillationLoss()).eval()
    assert np.array_equal(model(Tensor(X)).data, model.student(Tensor(X)).data) and not calls
    model.train()(Tensor(X))
    model.eval()(Tensor(X))
    with pytest.raises(ValueError, match="no forward pass to compute it from"):
        model.compute_kd_loss()
    assert len(calls) == 1


@pytest.mark.parametrize("bits", [8, 2])
def test_with_qat_the_loop_is_unchanged_and_the_student_converts(bits):
    teacher = QuantWrapper(net(seed=1))
    prepared = prepare_qat(copy.deepcopy(teacher), get_default_qat_qconfig(weight_bits=bits))
    criterion = {("", ""): LogitsDistillationLoss(), ("module.0", "module.0"): nn.MSELoss()}
    model = DistillationModel(prepared, teacher, criterion, StaticLossBalancer([0.4, 0.3]))
    before = kd_loss(model.train()).item()
    train(model, kd_loss, steps=30)
    assert kd_loss(model.train()).item() < before
    assert isinstance(model.student.module[0], QATLinear)
    converted = convert(model.eval().student)
    assert np.array_equal(converted(Tensor(X)).data, model(Tensor(X)).data)


def test_a_student_that_quantize_prepared():
    base = Int8DynamicActivationIntxWeightConfig("int4", PerGroup(2))
    student, teacher = net(6), net(6, seed=1)
    quantize_(student, QATConfig(base, step="prepare"), lambda module, path: path == "2")
    model = DistillationModel(student, teacher, {("2", "2"): LogitsDistillationLoss()})
    train(model, lambda model: (model(Tensor(X)), model.compute_kd_loss())[1])
    trained = model(Tensor(X)).data
    quantize_(model.student, QATConfig(base, step="convert"))
    assert np.array_equal(model.student(Tensor(X)).data, trained)


def test_a_loss_with_parameters_trains_with_the_student():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(5, 8)

        def forward(self, narrow, wide):
            return nn.MSELoss()(self.project(narrow), wide)

    criterion = {("0", "0"): Projected()}
    model = DistillationModel(net(5), net(8, seed=1), criterion)
    before = criterion["0", "0"].project.weight.data.copy()
    train(model, lambda model: (model(Tensor(X)), model.compute_kd_loss())[1])
    assert not np.array_equal(criterion["0", "0"].project.weight.data, before)
    assert {name.split(".")[0] for name in model.state_dict()} == {"student", "criterion"}


# ---- refusals --------------------------------------------------------------------------------------------------------


def shares_a_layer():
    student = net()
    return student, nn.Sequential(student[0], nn.ReLU(), nn.Linear(5, 3))


def shares_a_weight():
    student, teacher = net(), net(seed=1)
    teacher[2].weight = nn.Parameter(student[2].weight.data)
    return student, teacher


def frozen_student():
    return net().requires_grad_(False), net(seed=1)


def apart():
    return net(), net(seed=1)


def itself():
    student = QuantWrapper(net())
    return prepare_qat(student, get_default_qat_qconfig()), student


KD = LogitsDistillationLoss()


@pytest.mark.parametrize(
    ("models", "criterion", "message"),
    [
        (shares_a_layer, KD, "share the module '0', the parameter '0.weight' .the student's '0.weight'.*deepcopy"),
        (shares_a_weight, KD, "share the parameter '2.weight' .the student's '2.weight'.*deepcopy"),
        (itself, KD, "share the parameter 'module.0.weight'.* and 1 more"),
        (frozen_student, KD, "no parameter that requires a gradient"),
        (apart, {("00", "0"): nn.MSELoss()}, "criterion, student: no module is named '00'; did you mean '0'"),
        (apart, {("0", "fc"): nn.MSELoss()}, "criterion, teacher: no module is named 'fc'; there are 0, 1, 2"),
        (apart, {}, "holds 0 losses"),
        (apart, {("", ""): KD, ("0", "0"): nn.MSELoss()}, r"holds 2 losses.*StaticLossBalancer\(\[…\]\)"),
    ],
)
def test_models_and_criteria_that_are_refused(models, criterion, message):
    with pytest.raises(ValueError, match=message):
        DistillationModel(*models(), criterion)


def test_what_is_no_module_is_refused():
    for arguments, message in [
        ((net, net(), KD), "student must be a Module"),
        ((net(), None, KD), "teacher must be a Module, got None"),
        ((net(), net(), lambda s, t: s), "criterion.* must be a Module"),
        ((net(), net(), KD, 0.5), "loss_balancer must be a Module, got 0.5"),
    ]:
        with pytest.raises(TypeError, match=message):
            DistillationModel(*arguments)


def test_a_loss_needs_a_forward_pass_of_its_own():
    model = DistillationModel(net(), net(seed=1), KD)
    for _ in range(2):
        with pytest.raises(ValueError, match="no forward pass to compute it from"):
            model.compute_kd_loss()
        model(Tensor(X))
        model.compute_kd_loss()


def test_a_students_loss_needs_a_balancer():
    model = DistillationModel(net(), net(seed=1), KD)
    with pytest.raises(ValueError, match="no loss_balancer to weigh it"):
        model.compute_kd_loss(own_loss(model))


@pytest.mark.parametrize(
    ("teacher", "criterion", "message"),
    [
        (nn.Linear(4, 7), {("", ""): KD}, r"layer '' and the teacher's '': .*\(6, 3\).*\(6, 7\).*vocabulary"),
        (
            net(8),
            {("0", "0"): nn.MSELoss()},
            r"MSELoss_0, of the student's layer '0' and the teacher's '0': .*\(6, 8\)",
        ),
        (net(5), {("0", "0"): nn.MSELoss("none")}, r"MSELoss_0 must be one value, got shape \(6, 5\)"),
    ],
)
def test_outputs_that_do_not_fit_name_the_layers(teacher, criterion, message):
    model = DistillationModel(net(), teacher, criterion)
    model(Tensor(X))
    with pytest.raises(ValueError, match=message):
        model.compute_kd_loss()


def test_a_layer_must_run_once_and_leaves_no_hook():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice, self.never, self.pair = nn.Linear(4, 3), nn.ReLU(), nn.ReLU(), Pair()

        def forward(self, x):
            return self.pair(self.twice(self.twice(self.once(x))))[0]

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    for path, kind, message in [
        ("twice", ValueError, "the student's layer 'twice' runs more than once"),
        ("never", ValueError, "the student's layer 'never' did not run"),
        ("pair", TypeError, "the student's layer 'pair' returns a tuple"),
    ]:
        model = DistillationModel(Odd(), net(seed=1), {(path, ""): nn.MSELoss()})
        with pytest.raises(kind, match=message):
            model(Tensor(X))
        assert not any(m._forward_hooks for m in (*model.student.modules(), *model.teacher.modules()))
