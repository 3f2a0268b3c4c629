# %% [markdown]
# # 13 Teaching a quantized student
#
# *Ten classes: does `reduction="mean"` matter?*
#
# A label says: this is a 3. A network that has learned to read says: a 3, quite surely, though it has something
# of an 8. The second answer holds more than the first. In this lesson a float network gives such answers to its
# own quantized copy, while that trains. This is knowledge distillation; together with QAT (lesson 06) it is
# called quantization-aware distillation, QAD.
#
# We need lessons 02 (gradients) and 06 (QAT), and a little of 11 (`quantize_`).

# %% tags=["exercise-setup"]
import copy
import math
import warnings
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from lesson_tools import COLOURS, check, compare, quiet_torch, show_versions, torch_or_recorded, use_style

import minquant as mq
from minquant import nn, optim
from minquant import quant as mqq
from minquant.data import batches, load_digits
from minquant.train import DistillationModel, LogitsDistillationLoss, MovingAverageLossBalancer, StaticLossBalancer

# %%
show_versions()
use_style()
torch = quiet_torch()  # None where torch is not installed

# %% [markdown]
# ## What you will be able to do
#
# After this lesson you can
#
# - compute by hand how far a student's answer is from its teacher's;
# - see in a published loss which mean it takes, and by what factor that makes the teacher quieter;
# - say what a temperature does to an answer, and why the loss is multiplied by its square;
# - distil into a QAT student without touching the training loop, and save the student alone;
# - register a fake quantizer of your own;
# - tell from a table with spreads whether a teacher has helped.

# %% [markdown]
# ## Notation
#
# | written | means |
# | --- | --- |
# | u, v | logits, of the student and of the teacher: what goes into the softmax |
# | p, r | probabilities: p = softmax(v/T) the teacher's, r = softmax(u/T) the student's |
# | T | temperature, 1 unless we say otherwise |
# | C, N | number of classes; of rows, that is of examples in a batch |
# | KL(p ‖ r) | Kullback-Leibler divergence, Σ p·(ln p − ln r) over the classes |
# | W2A8 | weights of 2 bits, activations of 8 |
# | `x`, `q`, `scale`, `zero_point`, `qmin`, `qmax`, `acc` | as ever: real, integer, the grid, its ends, the sum |

# %% [markdown]
# ## The question
#
# Here are two losses for distillation. They differ in one word.
#
# ```python
# torch.nn.functional.kl_div(log_r, p, reduction="mean")
# torch.nn.functional.kl_div(log_r, p, reduction="batchmean")
# ```
#
# NVIDIA's ModelOpt, in the version that pip installs today (0.47), has the first as the default of its
# `LogitsDistillationLoss`. We have ten classes. Does it matter? If so, by how much, and who would notice?

# %%
guess = None  # for example: ("no", 1) or ("yes", 3): by which factor do the two differ?

# %% [markdown]
# ## 1 · How far apart are two answers?
#
# Three classes. The teacher says (½, ¼, ¼), the student (¼, ½, ¼). The divergence weighs, class by class, the
# difference of the logarithms with the *teacher's* probability:
#
# $$KL(p \| r) = \sum_c p_c\,(\ln p_c - \ln r_c)$$
#
# By hand: ½·ln 2 − ¼·ln 2 + 0 = **¼ ln 2 = 0.1733**. It is 0 where both agree, never below, and it is not
# symmetric: what the teacher holds for impossible costs nothing, what it holds for sure costs most.

# %%
p, r = np.float32([[0.5, 0.25, 0.25]]), np.float32([[0.25, 0.5, 0.25]])
ours = LogitsDistillationLoss()(mq.Tensor(np.log(r)), mq.Tensor(np.log(p))).item()


def torch_divergence(torch):
    by_torch = torch.nn.functional.kl_div(torch.tensor(np.log(r)), torch.tensor(p), reduction="batchmean")
    return np.array([round(1e4 * by_torch.item())])


print(f"by hand {0.25 * math.log(2):.4f}, minquant {ours:.4f}")
assert f"{ours:.4f}" == f"{0.25 * math.log(2):.4f}" == "0.1733"
assert compare("KL × 10,000", np.array([round(1e4 * ours)]), torch_or_recorded(torch_divergence, np.array([1733])))

# %% [markdown]
# Mind the arguments of PyTorch's `kl_div`: the student first, as *logarithms*; then the teacher, as
# probabilities. Written as mathematics the teacher comes first. Whoever passes probabilities twice gets a number
# as well: −1.352 here, less than any divergence can be, and no complaint.

# %% [markdown]
# ### Exercise: the divergence of a batch
#
# From the student's log-probabilities and the teacher's probabilities, (N, C) each: the divergence of each row,
# summed over its classes, in the mean over the rows. A probability of 0 is allowed for the teacher; its term is
# 0, and no warning may be printed.

# %% tags=["exercise-setup"]
one_log_r, one_p = np.log([[0.25, 0.5, 0.25]]), np.array([[0.5, 0.25, 0.25]])


def kd_loss_specification(log_r, p):
    """Row by row, class by class."""
    total = 0.0
    for row_log_r, row_p in zip(log_r, p, strict=True):
        for student, teacher in zip(row_log_r, row_p, strict=True):
            if teacher > 0:
                total += teacher * (math.log(teacher) - student)
    return total / len(p)


# %% answer="kd_loss" lines=3
def kd_loss(log_r, p):
    """Mean over the rows of KL(p ‖ r), from log r and p. [3 lines]"""
    ### BEGIN SOLUTION
    log_p = np.log(np.where(p > 0, p, 1))
    terms = p * (log_p - log_r)
    return terms.sum(axis=1).mean()
    ### END SOLUTION


# %% check="kd_loss" points=2
# A few dozen float64 operations on numbers below 10 err by less than 1e-12.
check(
    "kd_loss(ln (¼, ½, ¼), (½, ¼, ¼))",
    kd_loss(one_log_r, one_p),
    kd_loss_specification(one_log_r, one_p),
    within=1e-12,
    means=[
        (0.25 * math.log(2) / 3, "0.0578 is the mean over the classes too: a row's divergence is a sum over them."),
        (np.sum(one_p * (np.log(one_p) - np.exp(one_log_r))), "−1.352: the student's logarithm is missing."),
    ],
)
### BEGIN HIDDEN TESTS
two_log_r = np.log([[0.1, 0.2, 0.7], [0.25, 0.5, 0.25]])
two_p = np.array([[0.6, 0.3, 0.1], [0.5, 0.25, 0.25]])
check(
    "two rows",
    kd_loss(two_log_r, two_p),
    kd_loss_specification(two_log_r, two_p),
    within=1e-12,
    means=[
        (2 * kd_loss_specification(two_log_r, two_p), "This is the sum over the rows, not their mean."),
        (
            kd_loss_specification(np.log(two_p), np.exp(two_log_r)),
            "This is KL(r ‖ p): the teacher's probabilities are the weights, not the student's.",
        ),
    ],
)
sure = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
check(
    "a teacher who is sure: (1, 0, 0)",
    kd_loss(two_log_r, sure),
    kd_loss_specification(two_log_r, sure),
    within=1e-12,
    means=[(np.nan, "0·ln 0 is 0 here, and nan in floating point.")],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · The mean over what?
#
# Now ten classes and the words of the question. The teacher's logits are 4, 1 and eight zeros; the student knows
# nothing yet, ten zeros.

# %%
v, u = np.float32([[4, 1] + [0] * 8]), np.zeros((1, 10), np.float32)
ours = LogitsDistillationLoss()(mq.Tensor(u), mq.Tensor(v)).item()


def torch_reductions(torch):
    log_r, p = torch.log_softmax(torch.tensor(u), 1), torch.softmax(torch.tensor(v), 1)
    kl = torch.nn.functional.kl_div
    with warnings.catch_warnings(record=True) as said:
        found = np.array([round(1e4 * kl(log_r, p, reduction=word).item()) for word in ("batchmean", "mean")])
    print(*(f"torch warns: {notice.message}" for notice in said), sep="\n")
    return found


batchmean, mean = torch_or_recorded(torch_reductions, np.array([15086, 1509]))
print(f"batchmean {batchmean / 1e4:.4f}, mean {mean / 1e4:.4f}, minquant {ours:.4f}")
assert (batchmean, mean) == (15086, 1509) and f"{ours:.4f}" == "1.5086"

# %% [markdown]
# A factor of ten: `"mean"` divides by *every* number in the matrix, N·C of them, and a divergence is a sum over
# C. The loss is C times too small, and so is its gradient. PyTorch knows it, and warns; the "next major release"
# has been announced for years, and the default is still `"mean"`.
#
# Alone, that would do little harm: Adam does not care about a constant factor. But a teacher is rarely alone. It
# shares the loss with the labels, by a balance, and there the factor decides who is heard.

# %% [markdown]
# Let us see it on a real student. Handwritten digits, 8×8 pixels, ten classes; a network 64-64-64-10, trained in
# float. The student is its copy on W2A8, prepared for QAT and not yet trained. We measure the gradient that each
# loss sends into the student's weights for one batch.

# %%
digits = load_digits()


def net():
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    return mqq.QuantWrapper(nn.Sequential(*layers))


def own_loss(model, x, y):
    return nn.CrossEntropyLoss()(model(mq.Tensor(x)), y)


def fit(model, loss, epochs=10, batch_size=128, lr=4e-3):
    """Adam; the learning rate falls to 0."""
    optimizer = optim.Adam(model.parameters(), lr=lr)
    model.train()
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * (1 - epoch / epochs)
        for x, y in batches(digits.x_train, digits.y_train, batch_size):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
    return model.eval()


# %%
def preset(weight_bits, act_bits):
    return mqq.get_default_qat_qconfig(weight_bits=weight_bits, act_bits=act_bits)


# On two bits ten logits would have four values between them; the last layer's output keeps eight.
SCHEMES = {"W2A8": preset(2, 8), "W2A2": {"": preset(2, 2), "module.4": preset(2, 8)}}


def student_of(net, scheme):
    return mqq.prepare_qat(copy.deepcopy(net).train(), SCHEMES[scheme])


def trained(seed):
    mq.manual_seed(seed)
    model = fit(net(), own_loss, epochs=12, batch_size=32, lr=3e-3)
    model.zero_grad()
    return model


def accuracy(model):
    with mq.no_grad():
        return np.mean(model(mq.Tensor(digits.x_test)).data.argmax(axis=1) == digits.y_test)


teacher = trained(0)
print(f"the float network reads {accuracy(teacher):.1%} of {len(digits.y_test)} test digits")
assert accuracy(teacher) > 0.93

# %%
student = student_of(teacher, "W2A8")
x, y = digits.x_train[:128], digits.y_train[:128]
logits_t = teacher(mq.Tensor(x)).detach()


def gradient_size(loss):
    student.zero_grad()
    loss.backward()
    return math.sqrt(sum(float(np.sum(p.grad.data**2)) for p in student.parameters()))


by_labels = gradient_size(own_loss(student, x, y))
by_teacher = gradient_size(LogitsDistillationLoss(temperature=4)(student(mq.Tensor(x)), logits_t))
shares = {}
for what, divisor in {"batchmean": 1, "mean, 10 classes": 10, "mean, 128,256 tokens": 128_256}.items():
    shares[what] = by_teacher / divisor / (by_teacher / divisor + by_labels)
    print(f"{what:21} the teacher's part of the gradient, at equal weights: {shares[what]:8.3%}")
assert shares["batchmean"] > 0.6 and 0.1 < shares["mean, 10 classes"] < 0.5
assert shares["mean, 128,256 tokens"] < 0.0001

# %% [markdown]
# The third row is what the same word does to a language model with the vocabulary of Llama 3 (our gradient,
# their divisor): both losses have weight ½, and the teacher has been switched off. But for one warning nothing
# happens. The loss falls, by the labels alone, and one reports that distillation did not help.
#
# It has happened: see [knowledge-distillation-pytorch#48](https://github.com/haitongli/knowledge-distillation-pytorch/issues/48)
# and [Teacher-free#41](https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation/issues/41). ModelOpt's
# default was `"batchmean"` in its versions 0.33 and 0.39 and is `"mean"` in 0.47, so a script that worked may have
# gone deaf. minquant has no such argument.

# %% [markdown]
# And is `"batchmean"` right, always? It divides by the *first* axis. For a language model's logits, (batch,
# tokens, vocabulary), that is the batch without its tokens: the loss grows with the length of the text
# ([transformers#1181](https://github.com/huggingface/transformers/issues/1181)). The rows have to be counted.

# %%
rng = np.random.RandomState(0)
text_u, text_v = (rng.standard_normal((2, 8, 10)).astype(np.float32) for _ in range(2))
ours = LogitsDistillationLoss()(mq.Tensor(text_u), mq.Tensor(text_v)).item()


def torch_text(torch):
    log_r, p = torch.log_softmax(torch.tensor(text_u), -1), torch.softmax(torch.tensor(text_v), -1)
    kl = torch.nn.functional.kl_div
    as_it_is = kl(log_r, p, reduction="batchmean").item()
    in_rows = kl(log_r.reshape(-1, 10), p.reshape(-1, 10), reduction="batchmean").item()
    return np.array([as_it_is, in_rows])


as_it_is, in_rows = torch_or_recorded(torch_text, np.array([6.09641, 0.762051]))
print(f"2 texts of 8 tokens: torch {as_it_is:.4f} as it is, {in_rows:.4f} in rows; minquant {ours:.4f}")
assert abs(as_it_is - 8 * in_rows) < 1e-4 and f"{ours:.4f}" == f"{in_rows:.4f}"

# %% [markdown]
# ## 3 · Temperature
#
# A trained teacher is sure of itself. Where it gives 99.9% to one class, the other nine probabilities, in which
# its knowledge of likeness lies, are too small to weigh anything. So both answers are softened, by dividing
# the logits by T before the softmax. By hand, for the logits 4, 1, 0:

# %%
logits = np.float32([4, 1, 0])
softened = {}
for T in (1, 4):
    e = np.exp(logits / T)
    softened[T] = e / e.sum()
    print(f"T = {T}:", "  ".join(f"{value:.3f}" for value in softened[T]))
assert [f"{value:.3f}" for value in softened[1]] == ["0.936", "0.047", "0.017"]
assert [f"{value:.3f}" for value in softened[4]] == ["0.543", "0.257", "0.200"]

# %% [markdown]
# What does it do to the gradient? Of KL(p ‖ r) by the student's logit u it is as simple as can be: (r − p)/T.
# A student who knows nothing has r = ⅓. At T = 1 the first component is ⅓ − 0.936 = **−0.603**. At T = 4 it is
# (⅓ − 0.543)/4 = **−0.0525**: one T from the chain rule, and another since softened answers lie nearer to each
# other. Hinton's remedy is a factor T²: **−0.840**, of the old size.

# %%
found = {}
for T in (1, 4, 100):
    u = mq.Tensor(np.zeros((1, 3), np.float32), requires_grad=True)
    LogitsDistillationLoss(temperature=T)(u, mq.Tensor(logits[None])).backward()
    found[T] = u.grad.data[0]
    without = found[T][0] / T**2
    print(f"T = {T:<4} gradient of the first logit {without:9.5f}, times T² {found[T][0]:7.3f}")
matched = (logits.mean() - logits) / 3
print(f"all three, T = 100: {found[100].round(3)}   (u − v)/C, v less its mean: {matched.round(3)}")
assert f"{found[1][0]:.3f} {found[4][0] / 16:.4f} {found[4][0]:.3f}" == "-0.603 -0.0525 -0.840"
assert np.abs(found[100] - matched).max() < 0.01

# %% [markdown]
# The last line is the limit: at high temperature the gradient is (u − v)/C, that of a squared error between
# logits. Low T says "get the answer right", high T "be like me, in everything".
#
# Now a real answer. Of the test digits that our teacher reads correctly, we take the one of which it is least
# sure, and put the answers of the untrained W2A8 student beside it.

# %%
with mq.no_grad():
    v_test, u_test = (model(mq.Tensor(digits.x_test)).data for model in (teacher, student.eval()))
chance = np.exp(v_test - v_test.max(axis=1, keepdims=True))
chance /= chance.sum(axis=1, keepdims=True)
right = v_test.argmax(axis=1) == digits.y_test
unsure = int(np.argmin(np.where(right, chance.max(axis=1), 1)))

figure, axes = plt.subplots(1, 3, figsize=(8.6, 3.2), width_ratios=(1, 2, 2))
axes[0].imshow(digits.x_test[unsure].reshape(8, 8), cmap="gray_r")
axes[0].set(title=f"a test digit, {digits.y_test[unsure]}")
axes[0].axis("off")
for axis, T in zip(axes[1:], (1, 4), strict=True):
    for logits, name, shift in ((v_test, "float", -0.2), (u_test, "minquant", 0.2)):
        e = np.exp((logits[unsure] - logits[unsure].max()) / T)
        label = {"float": "teacher, float", "minquant": "student, W2A8, untrained"}[name]
        axis.bar(np.arange(10) + shift, e / e.sum(), 0.4, color=COLOURS[name], label=label)
    axis.set(title=f"T = {T}", xticks=range(10), xlabel="class", ylim=(0, 1))
    axis.grid(axis="x", visible=False)
axes[1].set_ylabel("probability")
axes[2].legend(loc="upper right")
plt.show()

# %% [markdown]
# ### Exercise: with a temperature
#
# `softmax` and `divergence` are given. The whole loss: both softened, and of the old size.

# %% tags=["exercise-setup"]
KNOWS_NOTHING, SURE = np.zeros((1, 3)), np.array([[4.0, 1.0, 0.0]])


def softmax(x):
    """(N, C) logits to probabilities."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def divergence(p, r):
    """Mean over the rows of KL(p ‖ r)."""
    return np.sum(p * (np.log(p) - np.log(r)), axis=1).mean()


def tempered_loss_specification(u, v, temperature):
    """T²·KL(p ‖ r), one number at a time."""
    total = 0.0
    for row_u, row_v in zip(u, v, strict=True):
        e_u, e_v = [math.exp(a / temperature) for a in row_u], [math.exp(a / temperature) for a in row_v]
        for a, b in zip(e_u, e_v, strict=True):
            r, p = a / sum(e_u), b / sum(e_v)
            total += p * (math.log(p) - math.log(r))
    return temperature**2 * total / len(u)


# %% answer="temperature" lines=2
def tempered_loss(u, v, temperature):
    """T²·KL(softmax(v/T) ‖ softmax(u/T)); u the student's logits, v the teacher's. [2 lines]"""
    ### BEGIN SOLUTION
    p, r = softmax(v / temperature), softmax(u / temperature)
    return temperature**2 * divergence(p, r)
    ### END SOLUTION


# %% check="temperature" points=2
wanted = tempered_loss_specification(KNOWS_NOTHING, SURE, 4)
check(
    "tempered_loss(u = (0, 0, 0), v = (4, 1, 0), T = 4)",
    tempered_loss(KNOWS_NOTHING, SURE, 4),
    wanted,
    within=1e-12,
    means=[
        (wanted / 16, "T² is missing: the gradient would be 0.0525 where it was 0.603 at T = 1."),
        (wanted / 4, "Only one T: the gradient shrinks by T twice."),
        (16 * divergence(softmax(SURE), softmax(KNOWS_NOTHING)), "The teacher's answer has not been softened."),
        (
            16 * divergence(softmax(KNOWS_NOTHING), softmax(SURE / 4)),
            "This is KL(r ‖ p): the teacher's p is the first argument.",
        ),
    ],
)
### BEGIN HIDDEN TESTS
check(
    "tempered_loss(v, v, T = 4): equal logits",
    tempered_loss(SURE, SURE, 4),
    0.0,
    within=1e-12,
    means=[
        (16 * 0.6332528369755572, "T on one side: v/4 against v is 0.633, times 16, for a student who is perfect."),
        (16 * 0.3876934738341643, "T on one side: v against v/4 is 0.388, times 16, for a student who is perfect."),
    ],
)
check(
    "T = 1",
    tempered_loss(KNOWS_NOTHING, SURE, 1),
    tempered_loss_specification(KNOWS_NOTHING, SURE, 1),
    within=1e-12,
)
check(
    "two rows, student and teacher not alike",
    tempered_loss(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]), np.array([[3.0, 2.0, 0.0], [1.0, 0.0, 0.0]]), 2),
    tempered_loss_specification([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]], [[3.0, 2.0, 0.0], [1.0, 0.0, 0.0]], 2),
    within=1e-12,
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · A loop that stays as it was
#
# The training loop `fit`, above, knows nothing of teachers, and need not learn. We wrap the student; the wrapper's
# forward pass is the student's, and in training it also asks the teacher, on the same batch. What the losses need
# is kept until `compute_kd_loss` fetches it. The names are ModelOpt's.

# %%
student = student_of(teacher, "W2A8")
model = DistillationModel(
    student,
    copy.deepcopy(teacher),
    criterion=LogitsDistillationLoss(temperature=4),
    loss_balancer=StaticLossBalancer(0.5),  # half the teacher's, half the labels'
)


def kd_loss_and_own(model, x, y):
    return model.compute_kd_loss(own_loss(model, x, y))  # the line that changes


mq.manual_seed(0)
fit(model, kd_loss_and_own)
converted = mqq.convert(model.student)
print(f"float {accuracy(teacher):.1%}, distilled and converted {accuracy(converted):.1%}")
equal = np.array_equal(model(mq.Tensor(digits.x_test)).data, converted(mq.Tensor(digits.x_test)).data)
print("trained and converted student, all outputs equal:", equal)
assert equal and accuracy(converted) > 0.9

# %% [markdown]
# There is nothing to take off after training: `model.student` is the plain prepared model, at any time. What of
# the teacher? It must stay as it is. So it runs in `eval()`, where dropout is off and batch norms
# do not average on, without gradients, and whatever the training loop does to `model`, it does not do to the
# teacher.

# %%
print("an optimizer gets", len(list(model.parameters())), "tensors; student and teacher have", end=" ")
print(len(list(model.student.parameters())), "and", len(list(model.teacher.parameters())))
print("a file gets", sorted({name.split(".")[0] for name in model.state_dict()}))
model.train()
print("model.train(): student", model.student.training, "· teacher", model.teacher.training)
assert len(list(model.parameters())) == len(list(model.student.parameters())) == 6
assert all(name.startswith("student.") for name in model.state_dict()) and not model.teacher.training
assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
assert all(
    np.array_equal(a.data, b.data) for a, b in zip(model.teacher.parameters(), teacher.parameters(), strict=True)
)

# %% [markdown]
# ### Exercise: keep the teacher out
#
# Somebody has built a wrapper without thinking of all this: `Pair` holds both networks as ordinary children. Save
# what can be saved. Put the pair into training; give back the parameters for an optimizer, and the names of what
# a file has to hold.


# %% tags=["exercise-setup"]
class Pair(nn.Module):
    """A student and a teacher, both children."""

    def __init__(self, tied=False):
        super().__init__()
        self.student, self.teacher = (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)) for _ in "ab")
        if tied:
            self.student[2].weight = self.student[0].weight


def ready_specification(pair):
    """Module by module, parameter by parameter."""
    for module in pair.modules():
        module.training = True
    for module in pair.teacher.modules():
        module.training = False
    parameters, names = [], []
    for parameter in pair.student.parameters():
        if not any(parameter is other for other in parameters):
            parameters.append(parameter)
    for name in pair.student.state_dict():
        names.append(name)
    return parameters, names


def told(ready, pair):
    """What `ready` did and gave back, so that it can be compared."""
    pair.eval()
    parameters, names = ready(pair) or ([], [])
    modes = [f"{name}: {'train' if module.training else 'eval'}" for name, module in pair.named_children()]
    dropout = f"teacher's dropout: {'train' if pair.teacher[1].training else 'eval'}"
    return [*modes, dropout, f"{len(list(parameters))} parameters", *names]


# %% answer="student_state" lines=3
def ready(pair):
    """Student in training, teacher not; the student's parameters, the names of its state. [3 lines]"""
    ### BEGIN SOLUTION
    pair.train()
    pair.teacher.eval()
    return list(pair.student.parameters()), list(pair.student.state_dict())
    ### END SOLUTION


# %% check="student_state" points=2
wanted = told(ready_specification, Pair())
everything = [f"{child}.{name}" for child in ("student", "teacher") for name in Pair().student.state_dict()]
careless = ["student: train", "teacher: train", "teacher's dropout: train"]
check(
    "what ready(pair) does",
    told(ready, Pair())[:3],
    wanted[:3],
    means=[
        (careless, "The teacher is in train(): its dropout draws, and it never gives the same answer twice."),
        (["student: eval", *wanted[1:3]], "The student is in eval(): it does not train."),
        (["student: train", "teacher: eval", careless[2]], "Only the teacher itself was told, not what is in it."),
    ],
)
check(
    "what ready(pair) gives back",
    told(ready, Pair())[3:],
    wanted[3:],
    means=[
        (["8 parameters", *everything], "The teacher is among the parameters, and in the file."),
        (["8 parameters", *wanted[4:]], "The optimizer would train the teacher."),
        (["4 parameters", *everything], "The teacher would be saved, too."),
        (["4 parameters", *everything[:4]], "A plain student could not load these names: they begin with student."),
    ],
)
### BEGIN HIDDEN TESTS
wanted = told(ready_specification, Pair(tied=True))
check(
    "tied weights",
    told(ready, Pair(tied=True)),
    wanted,
    means=[
        (
            [*wanted[:3], "4 parameters", *wanted[4:]],
            "One weight with two names is one parameter: the optimizer would move it twice.",
        ),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · Layers, and a balance
#
# A teacher can also say what it *thinks*: outputs of layers are compared in pairs, by path. Names that do not
# exist and shapes that do not fit are refused, with the paths.

# %%
student = student_of(teacher, "W2A8")
for criterion in ({("modul.2", "module.2"): nn.MSELoss()}, {("module.2", "module.4"): nn.MSELoss()}):
    try:
        model = DistillationModel(student, copy.deepcopy(teacher), criterion)
        model(mq.Tensor(x))
        model.compute_kd_loss()
    except ValueError as error:
        print("ValueError:", error, "\n")
        message = str(error)
assert "'module.2'" in message and "'module.4'" in message and "(128, 10)" in message

# %% [markdown]
# Now three losses: the labels', the logits', and the squared error of the outputs of the second layer. A look at
# what the balancer gets.

# %%
criterion = {("", ""): LogitsDistillationLoss(temperature=4), ("module.2", "module.2"): nn.MSELoss()}


class Aloud(nn.Module):
    """Any module that makes one loss of {name: loss} is a balancer; this one tells what another is given."""

    def __init__(self, balancer):
        super().__init__()
        self.balancer, self.parts = balancer, {}

    def forward(self, losses):
        self.parts = {name: loss.item() for name, loss in losses.items()}
        return self.balancer(losses)


for balancer in (StaticLossBalancer([0.25, 0.25]), MovingAverageLossBalancer([0.25, 0.25])):
    model = DistillationModel(student_of(teacher, "W2A8"), copy.deepcopy(teacher), criterion, Aloud(balancer))
    total = kd_loss_and_own(model.train(), x, y).item()
    parts = model.loss_balancer.parts
    m = balancer.magnitudes.data if hasattr(balancer, "magnitudes") else np.ones(3)
    terms = np.array([0.5, 0.25, 0.25]) * list(parts.values()) * m[0] / m
    print(type(balancer).__name__, {name: f"{part:.3f}" for name, part in parts.items()})
    print("    terms", terms.round(3), f"sum {total:.3f}")
    assert abs(terms.sum() - total) < 1e-5 * total and terms.argmax() == (1 if m[0] == m[1] else 0)
assert np.allclose(terms, parts["student_loss"] * np.array([0.5, 0.25, 0.25]), rtol=1e-5)

# %% [markdown]
# With static weights, ½ for the labels and ¼ for each of the others, the weights are one thing and the shares
# another: the logits' term is the largest, since its numbers are. The second balancer follows the
# magnitude of each loss with a moving average and brings all to that of the first; now a weight is a share.
#
# It is not free of charge. A loss near 0 is magnified the more, the better it is met. ModelOpt has a balancer of
# this kind among its plugins for Megatron, which looks at the present batch alone (our c = 1).

# %% [markdown]
# ## 6 · A grid of your own
#
# ModelOpt's guide says that custom QAT algorithms are possible. Here is one, in ten lines. The weight's range
# usually ends at the largest |w| of a row. On two bits, −2 … 1, that leaves about half of the weights at 0. Ours ends
# at twice the mean |w|, and clips what lies beyond. A config says what may be chosen, a fake quantizer has one
# rule, `grid`: values in, their grid out. Training rounds to it, and converting takes its integers.

# %%


@dataclass(frozen=True)
class ClippedConfig(mqq.FakeQuantizeConfigBase):
    bits: int = 2
    ends: float = 2.0  # in mean magnitudes


@mqq.register_fake_quantizer(ClippedConfig)
class ClippedFakeQuantizer(mqq.FakeQuantizerBase):
    def grid(self, x):
        end = self.config.ends * np.abs(x).mean(axis=1)
        return mqq.choose_qparams(-end, end, mqq.QSpec(self.config.bits, symmetric=True, granularity=mqq.PerChannel(0)))


# %%
LARGEST = mqq.IntxFakeQuantizeConfig("int2", mqq.PerChannel(0))
PER_TOKEN = mqq.IntxFakeQuantizeConfig("int8", mqq.PerToken(), is_symmetric=False)


def with_grid(net, weight_config, train):
    """Accuracy on W2A8 by `quantize_`: rounded only, or trained; and how many weights are 0."""
    model = copy.deepcopy(net.module)
    mqq.quantize_(model, mqq.QATConfig(activation_config=PER_TOKEN, weight_config=weight_config, step="prepare"))
    if train:
        mq.manual_seed(0)
        fit(model, own_loss)
    prepared = accuracy(model.eval())
    mqq.quantize_(model, mqq.QATConfig(step="convert"))
    assert accuracy(model) == prepared
    return prepared, np.mean([np.mean(model[i].weight.int_repr() == 0) for i in (0, 2, 4)])


nets = {0: teacher} | {seed: trained(seed) for seed in (1, 2)}
grids = {}
for name, config in {"up to the largest |w|": LARGEST, "up to 2·mean |w|": ClippedConfig()}.items():
    for train in (False, True):
        found = np.array([with_grid(net, config, train) for net in nets.values()])
        grids[name, train] = found
        what = "trained" if train else "rounded only"
        print(f"{name:22} {what:13} {' '.join(f'{a:6.1%}' for a in found[:, 0])}   zeros {found[:, 1].mean():.0%}")
means = {key: found.mean(axis=0) for key, found in grids.items()}
largest, clipped = "up to the largest |w|", "up to 2·mean |w|"
assert 0.45 < means[largest, False][1] < 0.65 and 0.35 < means[clipped, False][1] < 0.45
assert means[clipped, False][0] > means[largest, False][0] - 0.02
assert abs(means[clipped, True][0] - means[largest, True][0]) < 0.02

# %% [markdown]
# About half of the weights were 0, now four in ten are. Rounded only, the clipped grid is no worse; after training
# the two are within the spread of the seeds: training finds weights for the grid that it is given. And the trained
# and the converted model agree, for a grid that the library has never seen: both ask the one rule.

# %% [markdown]
# ## 7 · Does the teacher help?
#
# Now the experiment. The students start from the float network and train for the same ten epochs, with the same
# batches. They differ in what they are told: the labels alone (QAT), half the labels and half the teacher
# (T = 4), or the teacher alone. That last one never sees a label.
#
# Two controls: the float network with the same ten epochs more, and rounding without training (PTQ).


# %%
def alone(model, x, y):
    model(mq.Tensor(x))
    return model.compute_kd_loss()


def teach(net, scheme, how, seed):
    """One student's accuracy, as integers."""
    student, kd = student_of(net, scheme), LogitsDistillationLoss(temperature=4)
    mq.manual_seed(seed)
    if how == "PTQ":
        with mq.no_grad():
            student(mq.Tensor(digits.x_train[:512]))
    elif how == "labels":
        fit(student, own_loss)
    elif how == "labels, teacher":
        fit(DistillationModel(student, copy.deepcopy(net), kd, StaticLossBalancer(0.5)), kd_loss_and_own)
    else:
        fit(DistillationModel(student, copy.deepcopy(net), kd), alone)
    converted = mqq.convert(student.eval())
    assert np.array_equal(student(mq.Tensor(digits.x_test)).data, converted(mq.Tensor(digits.x_test)).data)
    return accuracy(converted)


def control(net, seed):
    mq.manual_seed(seed)
    return accuracy(fit(copy.deepcopy(net), own_loss))


# %%
HOW = ("PTQ", "labels", "labels, teacher", "teacher")
results = {"float": [accuracy(net) for net in nets.values()]}
results["float control"] = [control(net, seed) for seed, net in nets.items()]
for scheme in SCHEMES:
    for how in HOW:
        results[f"{scheme} {how}"] = [teach(net, scheme, how, seed) for seed, net in nets.items()]
results = {name: 100 * np.array(values) for name, values in results.items()}
print("test digits read, %        seed 0      1      2     mean ± standard deviation")
for name, values in results.items():
    each = "".join(f"{value:7.1f}" for value in values)
    print(f"{name:26}{each}    {values.mean():5.1f} ± {values.std(ddof=1):.1f}")
means = {name: values.mean() for name, values in results.items()}
for how in HOW[2:]:
    assert abs(means[f"W2A8 {how}"] - means["W2A8 labels"]) < 1.5
assert means["W2A2 labels"] - means["W2A2 labels, teacher"] > -2
assert means["W2A2 labels"] - means["W2A2 teacher"] > 2
assert means["W2A8 labels"] - means["W2A8 PTQ"] > 2 and abs(means["W2A8 labels"] - means["float control"]) < 1.5

# %%
figure, axis = plt.subplots(figsize=(8.0, 3.8))
for i, (name, values) in enumerate(results.items()):
    colour = COLOURS["float" if "float" in name else "minquant"]
    axis.plot([i - 0.25, i + 0.25], [means[name]] * 2, color=colour, linewidth=2.5)
    axis.plot([i - 0.1, i, i + 0.1], values, "o", color=colour, alpha=0.6, markersize=6)
names = [name.replace(" ", "\n", 1).replace(", ", ",\n") for name in results]
axis.set_xticks(range(len(names)), names)
axis.set(ylabel="test digits read correctly (%)", ylim=(None, 101))
axis.set_title("What the student is told, on 2-bit weights: three seeds (dots), their mean (lines)")
axis.grid(axis="x", visible=False)
plt.show()

# %% [markdown]
# **W2A8.** Ten epochs of anything win back what rounding has cost. With the teacher, without, with the teacher
# alone: the means lie within a point or so of each other, and so do the seeds. One digit of 360 is 0.3 points. We
# may not say that the teacher has helped.
#
# Yet look at the last of the three. It had *no labels*, and is as good. That is a use: who has a network and heaps
# of unlabelled data can still train for a grid.
#
# **W2A2.** Here the teacher brings no gain, and alone it is a loss of several points in the mean, at equal steps. How
# large a loss depends on the seeds: look at the dots, and run three others before you quote the number. Why a loss
# at all?

# %% [markdown]
# ## 8 · A range that follows runs away
#
# We look at the loss that the last of them minimises. The same student on W2A2, the teacher alone, thirty epochs;
# and once more with its activations' ranges *frozen*, as one pass over 512 digits has found them.


# %%
def curve(freeze):
    """The mean loss of each epoch, where the range of the second layer ends after it, and the accuracy."""
    student, epochs = student_of(teacher, "W2A2"), 30
    with mq.no_grad():
        student(mq.Tensor(digits.x_train[:512]))
    if freeze:
        student.apply(mqq.disable_observer)
    observer, said = student.module[2].activation_post_process.activation_post_process, []

    def loss(model, x, y):
        value = alone(model, x, y)
        said.append((value.item(), float(observer.max_val.data)))
        return value

    mq.manual_seed(0)
    fit(DistillationModel(student, copy.deepcopy(teacher), LogitsDistillationLoss(temperature=4)), loss, epochs)
    losses, ends = np.array(said).reshape(epochs, -1, 2).transpose(2, 0, 1)
    return losses.mean(axis=1), ends[:, -1], accuracy(student)


following, frozen = curve(freeze=False), curve(freeze=True)
for name, (losses, ends, read) in {"following": following, "frozen": frozen}.items():
    print(f"{name:10} loss {losses[0]:.2f}, least {losses.min():.2f}, last {losses[-1]:.2f}; ", end="")
    print(f"the range ends at {ends[0]:.1f}, then {ends[-1]:.1f}; {read:.1%} of the test digits")
assert following[0][-1] > 1.2 * following[0].min() and frozen[0][-1] < 0.7 * following[0][-1]
assert following[1][-1] > 1.5 * frozen[1][-1] and frozen[0][-1] < 1.2 * frozen[0].min()

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4))
for i, label in ((0, "loss of the epoch, KL · T²"), (1, "end of the range (value)")):
    axes[i].plot(np.arange(1, 31), following[i], color=COLOURS["minquant"], label="range follows")
    axes[i].plot(np.arange(1, 31), frozen[i], "--", color=COLOURS["minquant"], label="range frozen")
    axes[i].set(xlabel="epoch", ylabel=label, ylim=(0, None))
axes[0].set_title("Training on a loss that rises")
axes[1].set_title("The second layer's range, W2A2")
axes[1].legend(loc="upper left")
plt.show()

# %% [markdown]
# The loss *rises* while we train on it. The range reaches from the smallest to the largest value so far: it can grow
# and never shrinks. Training pushes activations up, the range follows, and on two bits a step is a third of the
# range: everything is read more coarsely, so they are pushed further. The straight-through gradient (lesson 06)
# sees none of this; for it, rounding does not exist.

# %% [markdown]
# With the range frozen the same loss falls and stays low. It is still far from 0: labels ask only for the right class,
# where the teacher at T = 4 asks for ten logits, and with four values a layer there is not much to answer with.
#
# So much for the custom of ModelOpt's guide to calibrate once and to leave the ranges, its `amax`, alone in
# training. It looks like an omission, and lesson 06 has shown what a range that lags can cost from scratch. On a
# coarse grid, from trained weights, it is a brake. (0.47 can also learn scales, LSQ, for the weights of one format.)

# %% [markdown]
# ## Back to the question
#
# Ten classes: does `reduction="mean"` matter?

# %%
print("guess ", guess)
print(
    f"result: a factor of ten; at equal weights the teacher's part of the gradient is {shares['mean, 10 classes']:.0%}"
)
print(f"        where it should be {shares['batchmean']:.0%}, and with a vocabulary of 128,256 it is nothing")

# %% [markdown]
# **The surprise in a sentence.** On 8-bit activations the teacher's gain is within the spread of the seeds, and a
# student that never saw a label is as good as one that did; on 2-bit activations the teacher alone is a loss, and the
# longer one trains, the larger its loss becomes, until the range is held.

# %% [markdown]
# **What this lesson does not cover.** Teachers of another architecture, and larger ones, for which the loss on
# layers needs a projection (a loss may have parameters: they train along); distilling a language model, for which
# `minquant finetune qad` is the recipe; balances that are learned. Try above what T = 1 does on W2A2.

# %% [markdown]
# ## Sources
#
# - G. Hinton, O. Vinyals, J. Dean, *Distilling the Knowledge in a Neural Network*, 2015,
#   [arXiv:1503.02531](https://arxiv.org/abs/1503.02531): temperature, T², and the limit of matched logits.
# - A. Romero et al., *FitNets*, 2015, [arXiv:1412.6550](https://arxiv.org/abs/1412.6550): hints from layers.
# - NVIDIA ModelOpt 0.33.1, 0.39.0 and 0.47.0, `modelopt.torch.distill`: `LogitsDistillationLoss`,
#   `StaticLossBalancer`, `DistillationModel.compute_kd_loss`; of 0.47.0 also `LogitsAndIntermediatesLossBalancer`
#   and `LSQConfig`.
# - torch 2.13: `torch.nn.functional.kl_div`; torchao 0.18: `FakeQuantizerBase`.
# - Threads: [knowledge-distillation-pytorch#48](https://github.com/haitongli/knowledge-distillation-pytorch/issues/48),
#   [Teacher-free-Knowledge-Distillation#41](https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation/issues/41)
#   (`"mean"`), [transformers#1181](https://github.com/huggingface/transformers/issues/1181) (`"batchmean"` of texts).

# %% [markdown]
# **Left open.** We saved the student, its file holds no teacher; but training lasts, machines stop, and a run wants
# to go on where it was. And all weights so far trained in float32. Lesson 14.
