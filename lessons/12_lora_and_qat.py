# %% [markdown]
# # 12 LoRA and QAT
#
# *An adapter moves weights by less than half a step of the grid, is merged and rounded: what is left of it?*
#
# Fine-tuning a large model moves few things far and most things a little. LoRA, low-rank adaptation, trains only
# a thin correction beside frozen weights, and frozen weights can be kept in four bits. So far, so light. But one
# day somebody wants a single matrix again, in four bits, and the correction has to go through the grid.
#
# We need lessons 06 (straight-through) and 11 (int4 in groups).

# %% tags=["exercise-setup"]
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
from lesson_tools import COLOURS, check, compare, quiet_torch, show_versions, torch_or_recorded, use_style

import minquant as mq
from minquant import nn, optim
from minquant import quant as mqq
from minquant.train.lora import add_lora_, lora_parameters, merge_lora_

# %%
show_versions()
use_style()
torch = quiet_torch()  # None where torch is not installed

# %% [markdown]
# ## What you will be able to do
#
# After this lesson you can
#
# - write a layer with a low-rank adapter, and say why one of its factors starts at 0;
# - say, before merging, which adapters a grid will swallow;
# - choose between the form that is light to train and the form that merges without loss;
# - count the bytes of a training run, and tell a saving from a speed-up.

# %% [markdown]
# ## Notation
#
# | written | means |
# | --- | --- |
# | `x`, `y` | input (M, K), output (M, N) |
# | W, ŵ | a weight (N, K); its nearest values on the grid |
# | `q`; `qmin`, `qmax` | an integer; the ends of the grid |
# | `scale`, s | the step of the grid |
# | A, B | the adapter: (r, K) and (N, r) |
# | r, α | its rank; it counts α/r times |
# | fq(…) | rounded to the grid and read back |
# | G | the gradient of the loss by y, (M, N) |

# %% [markdown]
# ## The question
#
# We train an adapter beside a frozen int4 weight. It learns well. Its entries are about an eighth of a step of
# the grid. Then we merge: ŵ + BA, rounded to the same grid. How much of what it learned is left: all, because the
# roundings average out; a part; or nothing?

# %%
guess = None  # for example: "about an eighth"

# %% [markdown]
# ## 1 · By hand
#
# Three weights on a grid with s = 1: 3, −2, 1. An adapter has learned to add 0.4, −0.4 and 0.3. The sum is 3.4,
# −2.4, 1.3, and it is better than before. On the grid it is **3, −2, 1** again: each change was less than half a
# step, so each is rounded away. They do not average out, since a weight that lies *on* a grid point needs half
# a step to leave it.

# %%
whole_numbers = mqq.QParams(1.0, 0, mqq.QSpec(bits=4))
weights, learned = np.float32([3, -2, 1]), np.float32([0.4, -0.4, 0.3])
merged = mqq.fake_quantize(weights + learned, whole_numbers)
print("aside ", weights + learned)
print("merged", merged)


def torch_merged(torch):
    return torch.fake_quantize_per_tensor_affine(torch.tensor(weights + learned), 1.0, 0, -8, 7).numpy()


assert compare("merged", merged, torch_or_recorded(torch_merged, np.array([3.0, -2.0, 1.0])))
assert merged.tolist() == weights.tolist()

# %% [markdown]
# A weight that has *not* been rounded lies anywhere between two grid points, and needs a nudge of half a step
# only on the average. Keep that in mind for part 4.

# %% [markdown]
# ## 2 · A thin correction
#
# $$y = x W^T + \frac{\alpha}{r}\,(x A^T) B^T$$
#
# A has r rows and B r columns, with r small. Instead of N·K numbers we train r·(N + K). Written the other way, the
# weight became W + (α/r)·BA, a change of rank r at most.

# %% [markdown]
# At the start the adapter must change nothing, so BA must be 0. Both factors 0? Then both gradients are 0 as
# well, for each contains the other factor. So A starts at random and B at 0. In the first step B learns and A
# cannot; from the second step on both do.

# %%
INT4 = mqq.IntxWeightOnlyConfig("int4", mqq.PerChannel(0))  # one scale a row; inputs stay real, to see less at once
mq.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64, bias=False))
x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)

frozen = nn.Sequential(nn.Linear(64, 64, bias=False))
frozen.load_state_dict(model.state_dict())
mqq.quantize_(frozen, INT4)
add_lora_(model, rank=4, alpha=8, form="light", config=INT4)
print(model)
assert (model(x).data == frozen(x).data).all()  # an adapter with B = 0 moves no output, not by a bit

# %%
(model(x) ** 2).mean().backward()
a, b = lora_parameters(model)
print(f"largest gradient of A {np.abs(a.grad.data).max()}, of B {np.abs(b.grad.data).max():.4f}")
assert not a.grad.data.any() and b.grad.data.any()

# %% [markdown]
# ### Exercise: the layer
#
# A linear layer with an adapter, and its starting values' most important property. The specification goes one
# output at a time.

# %% tags=["exercise-setup"]
lora_rng = np.random.default_rng(1)
lora_x, lora_w, lora_a = (lora_rng.integers(-2, 3, shape).astype(float) for shape in ((2, 4), (3, 4), (1, 4)))
lora_b = np.array([[1.0], [-1.0], [2.0]])


def lora_specification(x, w, a, b, alpha):
    """Each output: its own product, and α/r times the way through the r numbers in the middle."""
    rank, y = len(a), []
    for row in x:
        middle = [sum(row[k] * a[i][k] for k in range(len(row))) for i in range(rank)]
        y.append(
            [
                sum(row[k] * w[n][k] for k in range(len(row)))
                + alpha / rank * sum(middle[i] * b[n][i] for i in range(rank))
                for n in range(len(w))
            ]
        )
    return y


# %% answer="lora" lines=2
def lora(x, w, a, b, alpha):
    """x (M, K), w (N, K), a (r, K), b (N, r) -> y (M, N). [2 lines]"""
    ### BEGIN SOLUTION
    middle = x @ a.T
    return x @ w.T + alpha / len(a) * (middle @ b.T)
    ### END SOLUTION


# %% check="lora" points=2
zero_b, ones_b = np.zeros((3, 1)), np.ones((3, 1))
check(
    "lora(x, w, a, b=0, alpha=1), the start",
    lora(lora_x, lora_w, lora_a, zero_b, 1.0),
    lora_x @ lora_w.T,
    means=[
        (
            lora_x @ lora_w.T + lora_x @ lora_a.T @ ones_b.T,
            "The output moved at step 0: B is 0, so BA must add nothing.",
        ),
        (np.zeros((2, 3)), "The frozen product is missing: the adapter stands beside it."),
    ],
)
check(
    "lora(x, w, a, b, alpha=1)",
    lora(lora_x, lora_w, lora_a, lora_b, 1.0),
    lora_specification(lora_x, lora_w, lora_a, lora_b, 1.0),
    means=[(lora_x @ lora_w.T, "Only the frozen product: the adapter is missing.")],
    within=1e-12,  # small whole numbers: exact but for α/r
)
### BEGIN HIDDEN TESTS
two_a, two_b = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]), np.array([[1.0, 2], [0, 1], [3, 0]])
check(
    "rank 2, alpha=8: the adapter counts four times",
    lora(lora_x, lora_w, two_a, two_b, 8.0),
    lora_specification(lora_x, lora_w, two_a, two_b, 8.0),
    means=[
        (lora_x @ lora_w.T + 8 * lora_x @ two_a.T @ two_b.T, "α, not α/r: more rank would then mean larger changes."),
        (lora_x @ lora_w.T + lora_x @ two_a.T @ two_b.T, "α/r is missing."),
    ],
    within=1e-12,
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Two forms
#
# Where does the rounding go? minquant has both answers, as `add_lora_(model, …, form=…)`.
#
# | form | forward | frozen |
# | --- | --- | --- |
# | `"light"` | `x ŵᵀ + (α/r)(x Aᵀ)Bᵀ` | ŵ, as integers: half a byte a weight |
# | `"merged"` | `x fq(W + (α/r)BA)ᵀ` | W, in float: four bytes a weight |

# %% [markdown]
# The light form never rounds what it trains. The merged form rounds the *sum* at every step, with the
# straight-through gradient of lesson 06, so that the adapter sees what merging will make of it.

# %% [markdown]
# A small task shows the difference. A 64×64 weight is to become another one: its own values plus a change of
# rank 4, which an adapter of rank 4 could learn exactly. Three seeds each. The entries of the change are about
# 0.02; a step of the grid is about 0.034.


# %%
def task(seed, size):
    """A weight, inputs, and the outputs of the weight that it should become."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 0.1, (64, 64)).astype(np.float32)
    change = size / 2 * rng.normal(size=(64, 4)) @ rng.normal(size=(4, 64))  # entries of about that size
    x = rng.normal(size=(512, 64)).astype(np.float32)
    return weight, x, x @ (weight + change.astype(np.float32)).T


def network(weight):
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.data = weight.copy()
    return nn.Sequential(layer)


def error(model, x, y):
    return float(((model.eval()(x).data - y) ** 2).mean())


# %%
def train(model, x, y, steps=300):
    """Adam on the adapters alone, the learning rate falling to 0."""
    optimizer = optim.Adam(lora_parameters(model))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        optimizer.zero_grad()
        nn.MSELoss()(model.train()(x), mq.Tensor(y)).backward()
        optimizer.step()


def adapted(weight, x, y, form):
    mq.manual_seed(0)
    model = network(weight)
    add_lora_(model, rank=4, alpha=4, form=form, config=INT4)
    train(model, x, y)
    return model


# %%
def one_seed(seed, size):
    """Mean squared errors by what was done, the integers that merging moved, and the layers to look at."""
    weight, x, y = task(seed, size)
    base = network(weight)
    mqq.quantize_(base, INT4)
    light, merged = (adapted(weight, x, y, form) for form in ("light", "merged"))
    found = {"int4, no adapter": error(base, x, y), "light, adapter aside": error(light, x, y)}
    change = light[0].adapter().data
    merge_lora_(light)
    found["light, merged"] = error(light, x, y)
    found["merged form, in training"] = error(merged, x, y)
    merge_lora_(merged)
    found["merged form, converted"] = error(merged, x, y)
    before, after = base[0].weight, light[0].weight
    return found, np.mean(before.int_repr() != after.int_repr()), (before, change, after)


# %%
def table(size):
    seeds = [one_seed(seed, size) for seed in range(3)]
    errors = {name: np.array([found[name] for found, _, _ in seeds]) for name in seeds[0][0]}
    for name, values in errors.items():
        print(f"{name:26} {values.mean():.4f} ± {values.std():.4f}")
    moved = np.array([share for _, share, _ in seeds])
    print(f"integers that merging the light form moved: {moved.mean():.1%}")
    return errors, moved, seeds[0][2]


large, large_moved, large_layers = table(0.02)
aside, blind = large["light, adapter aside"], large["light, merged"]
trained, converted = large["merged form, in training"], large["merged form, converted"]
assert (trained == converted).all()  # not nearly: equal
assert (1.2 * aside < trained).all() and (1.3 * trained < blind).all()
assert (1.8 * blind < large["int4, no adapter"]).all()

# %% [markdown]
# Read it from the bottom. The merged form converts to what it was, to the last bit. The light form is the best
# of all *while its adapter stands aside*, because its change was never rounded. Merged, its error about doubles:
# on top of the rounding error of ŵ comes a second one, of the sum. Two roundings, each of variance s²/12.

# %% [markdown]
# ## 4 · Under half a step
#
# That was a change of more than half a step. Now the change of our question, four times smaller: about an eighth
# of a step.

# %%
small, small_moved, small_layers = table(0.005)
aside, blind, base = (small[name] for name in ("light, adapter aside", "light, merged", "int4, no adapter"))
undone = (blind - aside) / (base - aside)
print(f"of what the adapter had gained, merging undid {undone.min():.0%} to {undone.max():.0%}")
assert (small_moved < 0.05).all() and (undone > 0.8).all()
assert small["merged form, converted"].mean() < blind.mean()

# %% [markdown]
# One integer in a hundred moved. The error after merging is nearly that of the model without any adapter: the
# training is gone, and no error was raised. The merged form does a little better, and cannot do much: on a grid this
# coarse, rounding alone costs 64·s²/12 = 0.006, more than the whole change is worth. Small changes need the adapter
# aside, or a finer grid.

# %%
ROW = 2
fig, axes = plt.subplots(1, 2, figsize=(9.0, 4.2), sharey=True)
for ax, (before, change, after), size in zip(axes, (large_layers, small_layers), (0.02, 0.005), strict=True):
    q, new = before.int_repr()[ROW, :24], after.int_repr()[ROW, :24]
    ends, places = q + change[ROW, :24] / before.qparams.scale[ROW], np.arange(24)
    for which, colour in ((new == q, COLOURS["float"]), (new != q, COLOURS["minquant"])):
        ax.vlines(places[which], q[which], ends[which], color=colour, linewidth=2.2)
        ax.plot(places[which], ends[which], "_", color=colour, markersize=7, markeredgewidth=2)
    ax.plot(places, q, ".", color=COLOURS["float"], label="ŵ, on the grid")
    ax.plot(places[new != q], new[new != q], "o", mfc="none", color=COLOURS["minquant"], label="merged: moved")
    ax.set(xlabel=f"weight of row {ROW}", title=f"change of {size}: {(new != q).sum()} of 24 move", ylim=(-8.5, 10))
    ax.set_yticks(range(-8, 8, 2))
axes[0].set_ylabel("value (steps of the grid)")
axes[0].legend(loc="upper left", ncols=2)
fig.suptitle("ŵ → ŵ + BA: bars that cross half a step, and bars that do not")
plt.show()

# %% [markdown]
# Each dot is a weight on its grid point, each bar what the adapter adds. Blue bars are longer than half a step and
# reach another integer, the circle. Grey bars are taken back.

# %% [markdown]
# ### Exercise: merge
#
# The integers of ŵ + Δ on the grid of ŵ, which stays: the scale is that of the base, not that of the sum.

# %% tags=["exercise-setup"]
merge_q = np.array([7, -8, 3, 0], np.int8)


def merge_specification(q, scale, delta, qmin, qmax):
    """Back to real values, add, and to the nearest integer of the same grid, one at a time."""
    merged = []
    for integer, change in zip(q, delta, strict=True):
        nearest = round(float((int(integer) * scale + change) / scale))
        merged.append(min(max(nearest, qmin), qmax))
    return merged


# %% answer="merge" lines=3
def merge(q, scale, delta, qmin, qmax):
    """Integers q on a symmetric grid, and a real change -> integers on the same grid. [3 lines]"""
    ### BEGIN SOLUTION
    total = q * scale + delta
    steps = np.rint(total / scale)
    return np.clip(steps, qmin, qmax).astype(np.int8)
    ### END SOLUTION


# %% check="merge" points=2
change = np.array([-0.7, 0.2, 0.4, 0.8])
check(
    "merge([7, -8, 3, 0], scale=1, [-0.7, 0.2, 0.4, 0.8], -8, 7)",
    merge(merge_q, 1.0, change, -8, 7),
    merge_specification(merge_q, 1.0, change, -8, 7),
    means=[
        ([6, -7, 3, 0], "The sum was truncated: 0.8 is nearer to 1, and −7.8 to −8."),
        ([6, -8, 3, 0], "The sum was cut off downwards: 0.8 is nearer to 1."),
        ([7, -8, 3, 0], "Nothing moved, though −0.7 and 0.8 are more than half a step."),
    ],
)
### BEGIN HIDDEN TESTS
check(
    "merge([5, 4, -2], scale=0.5, nothing learned)",
    merge(np.array([5, 4, -2], np.int8), 0.5, np.zeros(3), -8, 7),
    merge_specification([5, 4, -2], 0.5, np.zeros(3), -8, 7),
    means=[([7, 6, -3], "The scale was seen anew, from the sum: every integer moved, though nothing was learned.")],
)
beyond = merge(merge_q, 0.25, np.array([1.0, -1.0, 0.0, 0.0]), -8, 7)
check(
    "beyond both ends",
    beyond,
    merge_specification(merge_q, 0.25, [1.0, -1.0, 0.0, 0.0], -8, 7),
    means=[([11, -12, 3, 0], "The ends of the grid were forgotten: clip to qmin … qmax.")],
)
### END HIDDEN TESTS

# %% [markdown]
# Why keep the scale? A symmetric scale puts the largest |w| half a step beyond the last integer, amax = 7.5·s, and
# rounding leaves at most 7·s of it (lesson 01). Observed again, the grid shrinks by 7/7.5, and *every* weight falls
# between two points, adapter or not.

# %%
weight, x, y = task(0, 0.005)
twice = network(weight)
mqq.quantize_(twice, INT4)
once = error(twice, x, y)
again = network(twice[0].weight.dequantize())  # no adapter at all
mqq.quantize_(again, INT4)
print(f"rounded once {once:.4f}, observed and rounded once more {error(again, x, y):.4f}")
assert error(again, x, y) > 1.1 * once

# %% [markdown]
# ## 5 · Can rounding the sum save a rounded base?
#
# The light form's base is four bits, the merged form's sum is rounded in training. Why not both: fq(ŵ + BA), light
# *and* ready to merge? We can try: give the merged form a float weight that lies on the grid already.

# %%
both = []
for seed in range(3):
    weight, x, y = task(seed, 0.02)
    on_grid = network(weight)
    mqq.quantize_(on_grid, INT4)
    both.append(error(adapted(on_grid[0].weight.dequantize(), x, y, "merged"), x, y))
both = np.array(both)
print(
    f"fq(ŵ + BA) {both.mean():.4f}; light, merged blindly {large['light, merged'].mean():.4f}; "
    f"fq(W + BA) {trained.mean():.4f}"
)
assert (both > 1.4 * trained).all() and both.mean() > 1.03 * large["light, merged"].mean()

# %% [markdown]
# It is worse than merging blindly. The training did what it could, but weights that start on grid points are the
# hardest to move: nothing happens for half a step, and then everything. The information that W had *between*
# the points, which way each weight leans, was thrown away when it was rounded. So: keep W in float, or do not merge.

# %% [markdown]
# ## 6 · What is saved
#
# The bytes of training one layer with Adam. Full training keeps, for each weight, the weight, its gradient and Adam's
# two averages, in float32: 16 bytes. The light form keeps the integers and their scales, and 16 bytes only for what
# it trains. For 512×512, groups of 32 and r = 8:

# %%
N = K = 512
full = 16 * N * K
base_bytes = N * K // 2 + 4 * N * K // 32  # half a byte a weight, and a float32 scale for every 32
adapter_bytes = 16 * 8 * (N + K)
print(f"full {full:,}; light {base_bytes:,} + {adapter_bytes:,} = {base_bytes + adapter_bytes:,}")
assert (full, base_bytes + adapter_bytes) == (4194304, 294912)

# %% [markdown]
# One fourteenth. Yet published comparisons of QAT with LoRA-QAT speak of 36.1% less memory. Both are right. What a
# training run holds besides, the activations that backward needs, does not shrink with the weights. Let us measure a
# whole step, as the peak of what is allocated, at a small and at a large batch.


# %%
def peak(light, rows):
    """The most bytes that a step takes, model included."""
    mq.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(4)))
    config = mqq.Int8DynamicActivationIntxWeightConfig("int4", mqq.PerGroup(32))
    if light:
        add_lora_(model, rank=8, alpha=16, form="light", config=config)
    else:
        mqq.quantize_(model, mqq.QATConfig(config, step="prepare"))
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad])
    x = np.random.default_rng(0).standard_normal((rows, 512)).astype(np.float32)
    for _ in range(2):  # the first step is where Adam makes its averages
        tracemalloc.reset_peak()
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
    return tracemalloc.get_traced_memory()[1]


# %%
def less_memory(rows):
    peaks = []
    for light in (True, False):
        peak(light, rows)  # whatever is made once and kept, is made
        tracemalloc.start()
        peaks.append(peak(light, rows))
        tracemalloc.stop()
    print(f"{rows:5} rows: light {peaks[0] / 1e6:5.1f} MB, full QAT {peaks[1] / 1e6:5.1f} MB")
    return 1 - peaks[0] / peaks[1]


few, many = less_memory(64), less_memory(4096)
print(f"less memory: {few:.0%} at 64 rows, {many:.0%} at 4096")
assert few > 0.6 and few > many + 0.1

# %% [markdown]
# And the time? Count the products of a step, each of M·N·K multiplications. Full training has three: forward, G W for
# x, and Gᵀx for W. The light form needs no gradient of W, so two, and the adapter's are thin. That gives 3 to 2, at
# most **1.5 ×**. The published comparison says 1.89 ×.

# %% [markdown]
# So 1.89 cannot come from skipped gradients alone. The rest is work that grows with the weights and not with the
# batch: to round every weight at every step, to pack it for the integer kernel, and Adam. With a small batch that
# is much of a step. `python -m minquant.bench.lora` measures it on your machine.

# %% [markdown]
# ### Exercise: bytes of training
#
# The light form's bytes for one layer of N×K: integers of `bits` bits, a float32 scale for each group, a float32 bias
# if there is one (frozen, as W is), and for A and B value, gradient and Adam's two averages.


# %% tags=["exercise-setup"]
def train_bytes_specification(n, k, rank, bits, group, bias):
    """Counted one number at a time."""
    count = 0.0
    for _ in range(n):
        for column in range(k):
            count += bits / 8
            if column % group == 0:
                count += 4
        if bias:
            count += 4
    for _ in range(rank * (n + k)):
        count += 4 + 4 + 4 + 4
    return int(count)


# %% answer="train_bytes" lines=3
def train_bytes(n, k, rank, bits, group, bias):
    """Bytes that the light form keeps for one layer. [3 lines]"""
    ### BEGIN SOLUTION
    base = n * k * bits // 8 + 4 * n * k // group
    adapter = 16 * rank * (n + k)
    return base + 4 * n * bias + adapter
    ### END SOLUTION


# %% check="train_bytes" points=2
check(
    "train_bytes(512, 512, rank=8, bits=4, group=32, bias=False)",
    train_bytes(512, 512, 8, 4, 32, False),
    train_bytes_specification(512, 512, 8, 4, 32, False),
    means=[
        (262144, "The scales are missing: 4 bytes for every 32 weights, a quarter of what the integers take."),
        (4194304 + 294912, "Adam keeps nothing for the base: it is frozen."),
        (196608, "A and B have gradients and Adam's averages too: 16 bytes a number."),
        (4194304, "That is full training."),
    ],
)
### BEGIN HIDDEN TESTS
check(
    "train_bytes(8, 64, rank=2, bits=2, group=16, bias=True)",
    train_bytes(8, 64, 2, 2, 16, True),
    train_bytes_specification(8, 64, 2, 2, 16, True),
    means=[(train_bytes_specification(8, 64, 2, 2, 16, False), "The bias is missing: 4 bytes an output.")],
)
### END HIDDEN TESTS

# %% [markdown]
# ## Back to the question
#
# An adapter whose entries are an eighth of a step, merged and rounded: what was left?

# %%
print("guess ", guess)
print(f"result: merging undid {undone.mean():.0%} of its gain; {small_moved.mean():.1%} of the integers moved")

# %% [markdown]
# **The surprise in a sentence.** Rounding the sum during training does not help a base that was rounded before,
# fq(ŵ + BA) loses to blind merging: keep W in float, or do not merge.

# %% [markdown]
# **What this lesson does not cover.** Which layers deserve an adapter, and of what rank; bases that are chosen so that
# the adapter starts with their rounding error (LoftQ); serving many adapters on one base.

# %% [markdown]
# ## Sources
#
# - E. Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021,
#   [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).
# - T. Dettmers et al., *QLoRA*, 2023, [arXiv:2305.14314](https://arxiv.org/abs/2305.14314): adapters beside 4 bits.
# - torchtune's recipe `qat_lora_finetune_distributed` and its `QATLoRALinear`; the published 1.89 × and 36.1%
#   compare it with full QAT.

# %% [markdown]
# **Left open.** The loss of this lesson knew the right outputs. Where a large float model exists, it can say more than
# the data do: lesson 13.
