"""Distillation: a student learns from its teacher's answers, in a training loop that stays as it was.

    model = DistillationModel(student, teacher, LogitsDistillationLoss(temperature=4), StaticLossBalancer(0.5))
    for x, y in batches(...):
        optimizer.zero_grad()
        student_loss = cross_entropy(model(x), y)
        model.compute_kd_loss(student_loss).backward()  # the line that changes
        optimizer.step()
    quantized = convert(model.student)

The student may be any model that trains, above all one that `prepare_qat` or `quantize_` prepared. The teacher is
frozen; it is no part of `model`'s parameters, nor of what is saved.

Source: NVIDIA ModelOpt's `modelopt.torch.distill`, 0.47, whose names these are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from minquant.autograd import no_grad
from minquant.nn import Module, ModuleList
from minquant.quant.selection import submodule
from minquant.tensor import Tensor

from .balancers import STUDENT_LOSS_KEY

__all__ = ["DistillationModel"]


class DistillationModel(Module):
    """A student that, while it trains, also asks its teacher, and keeps what the losses need.

    `forward` is the student's. In training the teacher gets the same arguments, in `eval()` and without gradients, and
    the outputs of the layers that the criterion names are kept until `compute_kd_loss`, those of the last forward pass
    only. In eval the student runs alone.

    Args:
        student: the model to train.
        teacher: the model to learn from: another object with parameters of its own. It is put into `eval()` and its
            parameters are frozen.
        criterion: a loss of the outputs, called as ``loss(student's, teacher's)``, or
            ``{(path in the student, path in the teacher): loss}``, where the path "" is the whole model. A loss that
            has parameters (a projection between two widths, say) trains with the student.
        loss_balancer: makes one loss of ``{name: loss}``. Left out, the criterion's single loss is all there is.

    Attributes:
        student: the plain student, at any time: there is nothing to take off after training.
        teacher: the teacher. It is no child: `parameters`, `train`, `state_dict` do not see it.

    Raises:
        TypeError: a student, teacher, loss or balancer that is no Module; a layer whose output is no Tensor.
        ValueError: a student without a parameter that trains; modules or parameters that both share; an unknown path;
            several losses and no balancer; in `forward`, a named layer that does not run exactly once.

    Source: modelopt.torch.distill.DistillationModel, ModelOpt 0.47, whose layers keep their hooks and whose teacher
    also runs in eval.
    """

    def __init__(
        self,
        student: Module,
        teacher: Module,
        criterion: Module | Mapping[tuple[str, str], Module],
        loss_balancer: Module | None = None,
    ) -> None:
        super().__init__()
        pairs = dict(criterion) if isinstance(criterion, Mapping) else {("", ""): criterion}
        _check_modules(student=student, teacher=teacher, **{f"criterion[{pair}]": loss for pair, loss in pairs.items()})
        _check_trains(student)
        _check_apart(student, teacher)
        if loss_balancer is not None:
            _check_modules(loss_balancer=loss_balancer)
        elif len(pairs) != 1:
            raise ValueError(
                f"DistillationModel: the criterion holds {len(pairs)} losses and there is no loss_balancer to make "
                "them one; pass StaticLossBalancer([…]) with a weight for each"
            )
        for student_path, teacher_path in pairs:
            submodule(student, student_path, "DistillationModel, criterion, student")
            submodule(teacher, teacher_path, "DistillationModel, criterion, teacher")
        self.student = student
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple, since a Module would become a child
        self.pairs = list(pairs)
        self.criterion = ModuleList(list(pairs.values()))
        self.loss_balancer = loss_balancer
        self._outputs: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None

    @property
    def teacher(self) -> Module:
        return self._teacher[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._outputs = None
        if not self.training:
            return self.student(*args, **kwargs)
        # Somebody who holds the teacher may have put it into train() meanwhile.
        with no_grad(), _kept(self.teacher.eval(), [path for _, path in self.pairs], "teacher") as by_teacher:
            self.teacher(*args, **kwargs)
        with _kept(self.student, [path for path, _ in self.pairs], "student") as by_student:
            output = self.student(*args, **kwargs)
        self._outputs = by_student, by_teacher
        return output

    def compute_kd_loss(self, student_loss: Tensor | None = None) -> Tensor:
        """The loss to call `backward` on, from the last forward pass, which it uses up.

        Args:
            student_loss: the student's own loss, one value; only with a balancer.

        Raises:
            ValueError: no forward pass in training since the last call; a student_loss without a balancer; shapes that
                a loss refuses, with the layers' paths; a loss of more than one value; and what the balancer refuses.
        """
        if student_loss is not None and self.loss_balancer is None:
            raise ValueError(
                "compute_kd_loss: there is a student_loss but no loss_balancer to weigh it; make the model with one, "
                "e.g. DistillationModel(…, loss_balancer=StaticLossBalancer(0.5))"
            )
        own = {} if student_loss is None else {STUDENT_LOSS_KEY: _one_value(student_loss, STUDENT_LOSS_KEY)}
        losses = own | self._kd_losses()
        return next(iter(losses.values())) if self.loss_balancer is None else self.loss_balancer(losses)

    def _kd_losses(self) -> dict[str, Tensor]:
        """The criterion's losses, under the names "LogitsDistillationLoss_0", "MSELoss_1" …."""
        if self._outputs is None:
            raise ValueError(
                "compute_kd_loss: no forward pass to compute it from; call model(x) in train() first, and once for "
                "each loss"
            )
        (by_student, by_teacher), self._outputs = self._outputs, None
        losses = {}
        for i, ((student_path, teacher_path), loss) in enumerate(zip(self.pairs, self.criterion, strict=True)):
            name = f"{type(loss).__name__}_{i}"
            try:
                value = loss(by_student[student_path], by_teacher[teacher_path])
            except ValueError as error:
                layers = f"the student's layer {student_path!r} and the teacher's {teacher_path!r}"
                raise ValueError(f"compute_kd_loss: {name}, of {layers}: {error}") from error
            losses[name] = _one_value(value, name)
        return losses

    def extra_repr(self) -> str:
        return f"teacher={type(self.teacher).__name__}, pairs={self.pairs}"


@contextlib.contextmanager
def _kept(model: Module, paths: list[str], whose: str) -> Iterator[dict[str, Tensor]]:
    """Keeps the outputs of these layers in a dict; the layers are as before afterwards, and can be saved."""
    outputs: dict[str, Tensor] = {}

    def keep(path: str, _module: Module, _inputs: Any, output: Any) -> None:
        where = f"DistillationModel: the {whose}'s layer {path!r}"
        if not isinstance(output, Tensor):
            raise TypeError(f"{where} returns a {type(output).__name__}; name a layer that returns a Tensor")
        if path in outputs:
            raise ValueError(f"{where} runs more than once in a forward pass; name one that runs once")
        outputs[path] = output

    handles = [model.get_submodule(path).register_forward_hook(partial(keep, path)) for path in dict.fromkeys(paths)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
    for path in paths:
        if path not in outputs:
            raise ValueError(f"DistillationModel: the {whose}'s layer {path!r} did not run in the forward pass")


# ---- checks ----------------------------------------------------------------------------------------------------------


def _check_modules(**named: Any) -> None:
    for name, value in named.items():
        if not isinstance(value, Module):
            raise TypeError(f"DistillationModel: {name} must be a Module, got {value!r}")


def _check_trains(student: Module) -> None:
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError(
            "DistillationModel: the student has no parameter that requires a gradient, so nothing could learn; "
            "distill the float or the prepared model and convert afterwards, and thaw the copy of a frozen teacher, "
            "student.requires_grad_()"
        )


def _check_apart(student: Module, teacher: Module) -> None:
    """Refuses what both hold: training would change the teacher, and its `eval()` the student."""
    modules = {id(module) for module in student.modules()}
    shared = [f"the module {path!r}" for path, module in teacher.named_modules() if id(module) in modules]
    memory = {_address(parameter): name for name, parameter in student.named_parameters()}
    for name, parameter in teacher.named_parameters():
        if parameter.numel() and _address(parameter) in memory:
            shared.append(f"the parameter {name!r} (the student's {memory[_address(parameter)]!r})")
    if shared:
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise ValueError(
            f"DistillationModel: teacher and student share {', '.join(shared[:3])}{more}; "
            "make the teacher a copy, copy.deepcopy(model), before the student is prepared"
        )


def _address(parameter: Tensor) -> int:
    return parameter.data.__array_interface__["data"][0]


def _one_value(loss: Any, name: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"shape {loss.shape}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f'compute_kd_loss: {name} must be one value, got {what}; use reduction="mean" or "sum"')
    return loss
