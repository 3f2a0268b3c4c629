"""Loss balancers, with losses whose sum can be done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor
from minquant.train import MovingAverageLossBalancer, StaticLossBalancer


def losses(**values: float) -> dict[str, Tensor]:
    return {name: Tensor(np.float32(value), requires_grad=True) for name, value in values.items()}


def total(balancer, given: dict[str, Tensor]) -> tuple[float, list[float]]:
    """The loss, and the gradient of each part: its weight."""
    loss = balancer(given)
    loss.backward()
    return loss.item(), [None if part.grad is None else part.grad.item() for part in given.values()]


def test_static_weights():
    given = losses(student_loss=8, KL_0=4, MSE_1=2)
    assert total(StaticLossBalancer([0.5, 0.25]), given) == (4.5, [0.25, 0.5, 0.25])
    assert total(StaticLossBalancer(), losses(student_loss=8, KL_0=4)) == (6, [0.5, 0.5])


def test_weights_that_add_up_to_one_ask_for_no_students_loss():
    assert total(StaticLossBalancer(1.0), losses(KL_0=4)) == (4, [1])
    assert total(StaticLossBalancer(1.0), losses(student_loss=8, KL_0=4)) == (4, [None, 1])
    assert StaticLossBalancer([0.7, 0.2, 0.1]).student_loss_weight == 0  # 0.9999999999999999 in float


def test_moving_average_by_hand():
    balancer = MovingAverageLossBalancer([0.5, 0.25], averaging_constant=0.5)
    # The first magnitudes are the losses themselves: each term counts as the student's loss does.
    assert total(balancer, losses(student_loss=8, KL_0=4, MSE_1=0.5)) == (8, [0.25, 1, 4])
    # Halfway to the new losses: 8 → 6, 4 → 3, 0.5 → 1.5, so the factors are 2 and 4.
    assert total(balancer, losses(student_loss=4, KL_0=2, MSE_1=2.5)) == (1 + 2 + 2.5, [0.25, 1, 1])
    np.testing.assert_array_equal(balancer.magnitudes.data, np.float32([6, 3, 1.5]), strict=True)


def test_moving_average_without_a_students_loss_goes_by_the_first():
    balancer = MovingAverageLossBalancer([0.5, 0.5])
    assert total(balancer, losses(KL_0=4, MSE_1=2)) == (4, [0.5, 1])


def test_a_loss_of_0_has_no_magnitude_to_divide_by():
    assert total(MovingAverageLossBalancer(0.5), losses(student_loss=8, KL_0=0)) == (4, [0.5, 0.5])


def test_the_magnitudes_are_saved_and_resumed():
    one, other = (MovingAverageLossBalancer(0.5) for _ in range(2))
    one(losses(student_loss=8, KL_0=4))
    other.load_state_dict(one.state_dict())
    given = {"student_loss": 2, "KL_0": 3}
    assert total(one, losses(**given)) == total(other, losses(**given))


@pytest.mark.parametrize("kind", [StaticLossBalancer, MovingAverageLossBalancer])
def test_refusals(kind):
    for weights in (-0.1, 1.1, [0.5, 0.6], [1.5, -0.5], float("nan")):
        with pytest.raises(ValueError, match="kd_loss_weight must hold numbers from 0, 1 at most in all, got"):
            kind(weights)
    with pytest.raises(ValueError, match="0.5 of the loss is to be the student's own, which is missing"):
        kind(0.5)(losses(KL_0=4))
    with pytest.raises(ValueError, match="kd_loss_weight holds 1 weights, the criterion 2 losses"):
        kind(0.5)(losses(student_loss=8, KL_0=4, MSE_1=2))


def test_refusals_of_the_moving_average():
    for constant in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="averaging_constant must lie above 0 and not above 1"):
            MovingAverageLossBalancer(averaging_constant=constant)
    balancer = MovingAverageLossBalancer(1.0)
    balancer(losses(KL_0=4))
    with pytest.raises(ValueError, match=r"2 losses \(student_loss, KL_0\) where there were 1"):
        balancer(losses(student_loss=8, KL_0=4))
    with pytest.raises(ValueError, match="the loss 'KL_0' is inf"):
        balancer(losses(KL_0=np.inf))
