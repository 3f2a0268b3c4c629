# %% [markdown]
# # 09 Why do my outputs differ?
#
# *The last layer is off by 33 steps, the one before it by 16: which of them is broken?*
#
# Sooner or later every quantized model is wrong, and all that you see is its output. Somebody ported a layer,
# copied a scale, lost a bias, and the accuracy fell by a little or by a lot. This lesson breaks a model on
# purpose, in seven ways, and finds out each time where it was broken, and how: first with ten lines of our
# own, then with one call of minquant's `compare`.
#
# We need lessons 03 (zero points), 05 (static layers) and 08 (the engines' rules).

# %% tags=["exercise-setup"]
import copy
import math

import matplotlib.pyplot as plt
import numpy as np
from lesson_tools import COLOURS, check, compare, quiet_torch, show_versions, torch_or_recorded, use_style

from minquant import crosscheck, nn
from minquant import quant as mqq

# %%
show_versions()
use_style()
torch = quiet_torch()  # None where torch is not installed

# %% [markdown]
# ## What you will be able to do
#
# After this lesson you can
#
# - find the first broken layer of a model, however loud the layers behind it are;
# - tell from share and size of the differences what kind of mistake it is likely to be;
# - measure an error in decibels, and say what 20 of them mean;
# - make inputs that show what random data hides;
# - name the cause, and prove it: by a recomputation that gives the wrong integers exactly.

# %% [markdown]
# ## Notation
#
# | written | means |
# | --- | --- |
# | `x`, `y` | a real number; a layer's real output |
# | `q`; `qmin`, `qmax` | its integer; the ends of the grid |
# | `scale`, s | the step of the grid |
# | `zero_point`, z | the integer that stands for real 0 |
# | `acc` | a sum of integer products, int32 |
# | own inputs | each model as it runs, from the first layer to the last |
# | same inputs | a layer of the one model, given what the other model's layer got |
# | SQNR | signal-to-quantization-noise ratio, in dB |
# | f(…), inv | rounded to float32; f(1/s) |
# | rint | to the nearest integer, a half to the even one |

# %% [markdown]
# ## The question
#
# Two models should be equal: three quantized layers each, the same weights. Their outputs are not. We look at
# every layer's integers, and at the largest difference:
#
# | layer | largest difference |
# | --- | --- |
# | 1 | 0 steps |
# | 2 | 16 steps |
# | 3 | 33 steps |

# %% [markdown]
# One layer is broken; only one. Which is it, and what do you think was done to it?

# %%
guess = None  # for example: ("layer 3, it is off by most", "its scale is too large")

# %% [markdown]
# ## 1 · A model, and a broken copy
#
# The sound model first: three Linears of 32 inputs and 32 outputs, each with its ReLU fused in, quantized to
# eight bits in minquant's reference dialect, and 2,000 rows of data. All numbers are small multiples of powers
# of two, so that every machine calibrates the same grids. That makes 64,000 integers a layer to compare.

# %%
rng = np.random.RandomState(74)
float_model = nn.QuantWrapper(nn.Sequential(*(mqq.LinearReLU(nn.Linear(32, 32), nn.ReLU()) for _ in range(3))))
for fused in float_model.module:
    fused.layer.weight.data[:] = np.rint(8 * rng.standard_normal((32, 32))) / 32
    fused.layer.bias.data[:] = np.rint(64 * 0.2 * rng.standard_normal(32)) / 64
x = (np.rint(8 * rng.standard_normal((2000, 32))) / 8).astype(np.float32)


def converted(backend):
    prepared = mqq.prepare(float_model, mqq.get_default_qconfig(backend))
    prepared(x)
    return mqq.convert(prepared)


sound = converted("reference")
print(sound)

# %% [markdown]
# Now we break it. The mistake of lesson 03, the most common of all: a layer takes the wrong zero point out of
# its input. By hand, on one row q = [3, 1] with z = 0 and weights [2, −1]: acc = 3·2 + 1·(−1) = **5**. With
# z = 1 it is 2·2 + 0·(−1) = **4**. The difference is −(2 − 1), minus the sum of the weights, whatever q is:
# every output of a channel moves by the same amount.

# %% [markdown]
# To plant such things we write a layer's arithmetic out, with a switch for each rule that we want to break.
# With no switch turned it must be the layer itself; that is worth an assertion.


# %%
def recomputed(layer, zero_point_off=0, whole_bias=False, rounding=np.rint):
    """The layer's forward, written out; each argument breaks one rule."""

    def forward(x):
        step = x.qparams.scale * layer.weight.qparams.scale
        centred = x.int_repr().astype(np.int32) - (x.qparams.zero_point + zero_point_off)
        acc = centred @ layer.weight.int_repr().T.astype(np.int32)  # (N, 32) @ (32, 32)
        bias = np.rint(layer.bias / step) * step if whole_bias else layer.bias
        y = np.maximum(acc.astype(np.float32) * step + bias, np.float32(0))
        q = rounding(y * (np.float32(1) / layer.output.scale)) + layer.output.zero_point
        return mqq.QTensor(np.clip(q, 0, 255).astype(np.uint8), layer.output)

    return forward


def with_fault(fault):
    """A copy of the sound model whose layer 2 is broken."""
    broken = copy.deepcopy(sound)
    fault(broken.module[1])
    return broken


# %%
def integers(model, x):
    """Every layer's integers, as the model runs."""
    found, q = [], model.quant(x)
    for layer in model.module:
        q = layer(q)
        found.append(q.int_repr().astype(int))
    return found


def shares(ours, theirs):
    return [100 * np.mean(a != b) for a, b in zip(ours, theirs, strict=True)]


unbroken = with_fault(lambda layer: setattr(layer, "forward", recomputed(layer)))
assert shares(integers(sound, x), integers(unbroken, x)) == [0, 0, 0]

wrong_zero = with_fault(lambda layer: setattr(layer, "forward", recomputed(layer, zero_point_off=1)))
own = shares(integers(sound, x), integers(wrong_zero, x))
print("input zero point + 1 in layer 2; differing integers: ", "  ".join(f"{share:.1f}%" for share in own))
assert [round(share, 1) for share in own] == [0, 31.7, 29.0]

# %% [markdown]
# 0, 31.7 and 29.0% of the integers differ. Layer 1 is sound, that much is certain. Of layers 2 and 3 we know
# nothing yet: layer 3 may be right and pass on what it was given, or be wrong as well. A layer's output tells
# about everything before it.

# %% [markdown]
# ## 2 · The same inputs
#
# So we take the model apart. Each layer of the broken model gets what the *sound* model's layer got, the very
# same integers, and we compare what comes out. Now nothing piles up. A layer that computes what it should gives
# the same integers; one that doesn't has nobody else to blame.


# %%
def shares_of_same_inputs(right, asked, x):
    found, q = [], right.quant(x)
    for a, b in zip(right.module, asked.module, strict=True):
        found.append(100 * np.mean(a(q).int_repr() != b(q).int_repr()))
        q = a(q)  # the sound model goes on; the other one is asked, never followed
    return found


same = shares_of_same_inputs(sound, wrong_zero, x)
print("own inputs:  ", "  ".join(f"{share:5.1f}%" for share in own))
print("same inputs: ", "  ".join(f"{share:5.1f}%" for share in same))
assert [round(share, 1) for share in same] == [0, 31.7, 0]

# %% [markdown]
# Layer 3 is innocent: 0 of 64,000 differ. In layer 2 the two rows agree, and so they must: up to the first
# broken layer, own and same inputs are the same thing.


# %%
def draw_layers(ax, own, same, title):
    places = np.arange(1, 4)
    ax.bar(places - 0.2, own, 0.38, color=COLOURS["float"], label="own inputs")
    ax.bar(places + 0.2, same, 0.38, color=COLOURS["minquant"], label="same inputs")
    ax.set(xticks=places, xlabel="layer", title=title)


def bias_lost(layer):
    layer.bias = None


no_bias = with_fault(bias_lost)
fig, axes = plt.subplots(1, 2, figsize=(8.0, 3.6), sharey=True)
for ax, model, title in zip(axes, (wrong_zero, no_bias), ("Input zero point + 1", "Bias lost"), strict=True):
    draw_layers(ax, shares(integers(sound, x), integers(model, x)), shares_of_same_inputs(sound, model, x), title)
axes[0].set_ylabel("differing integers (%)")
axes[0].set_ylim(0, 64)
axes[0].legend(loc="upper left")
plt.show()

# %% [markdown]
# Both were broken in layer 2, and both pictures say so in blue. The grey bars alone could not have said it: on
# own inputs nothing that comes after the fault ever looks healthy again.

# %% [markdown]
# The right-hand picture is the model of our question. Its layer 2 lost its bias.

# %%
largest = [int(np.abs(a - b).max()) for a, b in zip(integers(sound, x), integers(no_bias, x), strict=True)]
print("bias lost in layer 2; largest difference in steps:", largest)
assert largest == [0, 16, 33]

# %% [markdown]
# Off by 16 steps where it was broken, and by 33 one layer later. The loudest layer is innocent. Weights of
# layer 3 gather the errors of all 32 channels, and where they have one sign, the errors add up. How loud a
# layer is says how far the fault has travelled, and nothing about where it started.

# %% [markdown]
# ### Exercise: the first layer that differs
#
# Two models as lists of layers; a layer is a function from integers to integers. Return the number of the
# first layer that differs on the same inputs, counted from 1, or None.


# %% tags=["exercise-setup"]
def a_layer(weight, bias=0, low=0):
    """A small integer layer: x @ weight + bias, halved, clipped to low … 255."""
    return lambda q: np.clip((q @ np.array(weight) + bias) // 2, low, 255)


MIX = [[1, 2], [3, -1]]
three_layers = [a_layer(MIX), a_layer([[2, 1], [1, 2]], 3), a_layer([[5, 4], [4, 5]])]
second_broken = [three_layers[0], a_layer([[2, 1], [1, 2]], 7), three_layers[2]]
some_rows = np.array([[4, 2], [9, 1], [3, 3]])


def first_divergent_specification(sound, broken, x):
    """Both layers on the sound model's integers, row by row and number by number."""
    for number in range(1, len(sound) + 1):
        right, asked = sound[number - 1](x), broken[number - 1](x)
        for row in range(len(right)):
            for column in range(len(right[row])):
                if right[row][column] != asked[row][column]:
                    return number
        x = right
    return None


# %% answer="first_divergent" lines=4
def first_divergent(sound, broken, x):
    """Number of the first layer that differs on the same inputs, from 1; None if none does. [4 lines]"""
    ### BEGIN SOLUTION
    for number, (right, asked) in enumerate(zip(sound, broken, strict=True), start=1):
        if not np.array_equal(right(x), asked(x)):
            return number
        x = right(x)
    ### END SOLUTION


# %% check="first_divergent" points=2
loudest = "Layer 3 differs by most, and is innocent: it was given wrong integers. Give it the sound model's."
check(
    "first_divergent of three layers, the second one broken",
    first_divergent(three_layers, second_broken, some_rows),
    first_divergent_specification(three_layers, second_broken, some_rows),
    means=[(3, loudest), (1, "Count from 1, and compare what comes out of a layer, not what goes in.")],
)
### BEGIN HIDDEN TESTS
check(
    "no layer differs",
    first_divergent(three_layers, three_layers, some_rows),
    first_divergent_specification(three_layers, three_layers, some_rows),
)
first_and_last = [a_layer(MIX, 9), three_layers[1], a_layer([[5, 4], [4, 6]])]
check(
    "the first and the third are broken",
    first_divergent(three_layers, first_and_last, some_rows),
    first_divergent_specification(three_layers, first_and_last, some_rows),
    means=[(3, loudest)],
)
last_broken = [*three_layers[:2], a_layer([[5, 4], [4, 6]])]
check(
    "the last is broken",
    first_divergent(three_layers, last_broken, some_rows),
    first_divergent_specification(three_layers, last_broken, some_rows),
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Every fault has a signature
#
# We know *where*. What is left is *what*. Look at how many integers differ on the same inputs, and by how
# much: a mistake in a rule that touches everything looks unlike one in a single number. We plant five faults in
# layer 2, one at a time.


# %%
def scale_off(layer):
    grid = layer.output
    layer.output = mqq.QParams(grid.scale * np.float32(1.01), grid.zero_point, grid.spec)


def weight_off(layer):
    q = layer.weight.int_repr().copy()
    q[0, 0] += 1
    layer.weight = mqq.QTensor(q, layer.weight.qparams)


def half_up(steps):
    return np.floor(steps + np.float32(0.5))


FAULTS = {
    "input zero point + 1": lambda layer: setattr(layer, "forward", recomputed(layer, zero_point_off=1)),
    "output scale 1% off": scale_off,
    "bias lost": bias_lost,
    "one weight of 1,024 + 1": weight_off,
    "bias rounded to an integer": lambda layer: setattr(layer, "forward", recomputed(layer, whole_bias=True)),
}

# %%
broken_models = {name: with_fault(fault) for name, fault in FAULTS.items()}
second_input = sound.module[0](sound.quant(x))
right = sound.module[1](second_input).int_repr().astype(int)
signatures = {}
print(f"{'planted in layer 2':28} {'differ':>7} {'largest':>8}")
for name, model in broken_models.items():
    off = model.module[1](second_input).int_repr().astype(int) - right
    signatures[name] = off
    print(f"{name:28} {np.mean(off != 0):7.2%} {np.abs(off).max():8}")

measured = [(round(100 * np.mean(off != 0), 2), int(np.abs(off).max())) for off in signatures.values()]
assert measured == [(31.73, 4), (16.80, 3), (46.89, 16), (0.11, 1), (0.04, 1)]

# %% [markdown]
# Two families. A rule that touches every output moves a third of them or more. A single weight, or a bias that
# is off by less than half of *its* step, shows in a few outputs out of a thousand, the ones that happened to
# stand beside a boundary, and by a single step.

# %% [markdown]
# Why 0.04% for the integer bias? By hand: it is counted in steps of sx·sw, the accumulator's steps. Rounding it
# moves an output by at most half such a step, a quarter on average, and an output step is some 300 of them
# here. So a boundary is crossed about once in 4·300 = 1,200 times, 0.08%; and the outputs that the ReLU sends to
# 0, more than half of them, do not move at all.

# %%
accumulator_step = float(sound.module[0].output.scale) * sound.module[1].weight.qparams.scale
steps_in_a_step = float(sound.module[1].output.scale) / accumulator_step
print(f"an output step is {steps_in_a_step.min():.0f} to {steps_in_a_step.max():.0f} accumulator steps, by channel")
print(f"{np.mean(right == 0):.0%} of the outputs are 0")
assert 200 < steps_in_a_step.min() and steps_in_a_step.max() < 410 and 0.5 < np.mean(right == 0) < 0.6

# %% [markdown]
# The size of the differences carries a sign as well. A wrong zero point pushes each *channel* one way, by its
# sum of weights. A wrong scale shrinks everything towards 0, large values most. We draw both against the right
# integer.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.0, 3.8), sharey=True)
for ax, name in zip(axes, ("input zero point + 1", "output scale 1% off"), strict=True):
    channels = np.arange(4) * 8
    for place, channel in enumerate(channels):
        moved = signatures[name][:, channel] + 0.12 * (place - 1.5)  # side by side, where they would hide each other
        ax.plot(right[:, channel], moved, ".", markersize=3, label=f"channel {channel}")
    ax.set(xlabel="right integer (steps)", title=name.capitalize())
    ax.axhline(0, color="black", linewidth=0.8)
axes[0].set_ylabel("difference (steps)")
axes[0].set_ylim(-4.8, 6.8)
axes[0].legend(loc="upper right", ncols=2, markerscale=3)
plt.show()

# %% [markdown]
# On the left, a channel stays in its own band, whatever its value: the mark of a constant that was added. On
# the right, all channels share one staircase that falls with the value: the mark of a factor. Such a picture is
# often all it takes. But two of the five faults look alike, a few integers by one step, and a share is no proof.

# %% [markdown]
# ## 4 · Decibels
#
# Shares need integers on both sides. Between a float model and its quantized self *everything* differs a
# little, and the question becomes: how much, for the size of the signal? The usual measure is
#
# $$SQNR = 10 \cdot \log_{10}\frac{\sum x^2}{\sum (x - \hat{x})^2}\ \mathrm{dB}$$
#
# By hand: x = [6, 8], x̂ = [6, 9]. The signal is 36 + 64 = 100, the noise 1, the ratio 100, so **20 dB**.

# %% [markdown]
# Ten decibels are a factor of ten in power. Twenty are a factor of ten in amplitude: at 20 dB the noise is a
# tenth of the signal's size, at 40 dB a hundredth. One more bit halves the step, so the noise falls by 6 dB, the
# one number of this lesson worth knowing by heart.

# %%
signal = np.random.RandomState(0).uniform(-1, 1, 100_000).astype(np.float32)
decibels = {}
for bits in (2, 3, 4, 8):
    spec = mqq.QSpec(bits=bits)
    grid = mqq.choose_qparams(np.float32(-1), np.float32(1), spec)
    noise = signal - mqq.fake_quantize(signal, grid)
    decibels[bits] = 10 * math.log10(np.sum(signal.astype(float) ** 2) / np.sum(noise.astype(float) ** 2))
    print(f"{bits} bits: {decibels[bits]:5.1f} dB")
per_bit = (decibels[8] - decibels[4]) / 4
print(f"{per_bit:.1f} dB a bit from 4 to 8 bits")
assert 5.9 < per_bit < 6.3

# %% [markdown]
# Now the float model and the quantized one, on their own inputs and on the same ones. minquant's `compare` does
# at once what we did above, for every layer, and prints a table. Where one side is float, its values are
# quantized to the other's grid first.

# %%
against_float = crosscheck.compare(float_model, sound, x)
print(against_float)
own_db = [row["sqnr_db"] for row in against_float.layers]
same_db = [row["same_inputs"]["sqnr_db"] for row in against_float.layers]
assert all(b <= a for a, b in zip(own_db, own_db[1:], strict=False)) and min(same_db) > 38
assert "nothing is wrong" in against_float.first_divergent["evidence"]
assert 0.2 < against_float.layers[-1]["differing"] < 0.25 and max(same_db[1:]) < 41.5

# %% [markdown]
# On own inputs the decibels fall from layer to layer: errors pile up. On the same inputs every layer is as good
# as the next, 38 to 41 dB, what eight bits have to give. *That* is the healthy picture of a quantized model. A
# layer that drops out of the row of same inputs is the one to look at.

# %% [markdown]
# A fifth of the last layer's integers differs from float, and nothing is wrong. Do not hunt differences against
# float; hunt layers that differ by more than their grids explain. `compare` says which of the two it is.

# %% [markdown]
# ### Exercise: SQNR
#
# In float64, of two arrays of any shape. Where nothing differs it is infinite.


# %% tags=["exercise-setup"]
def sqnr_db_specification(reference, x):
    """Powers added up, one number at a time."""
    signal = noise = 0.0
    for r, value in zip(np.ravel(reference).tolist(), np.ravel(x).tolist(), strict=True):
        signal += r * r
        noise += (r - value) * (r - value)
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


# %% answer="sqnr_db" lines=2
def sqnr_db(reference, x):
    """10·log10 of signal over noise; inf where nothing differs. [2 lines]"""
    ### BEGIN SOLUTION
    signal, noise = np.sum(np.square(reference)), np.sum(np.square(reference - x))
    return 10 * math.log10(signal / noise) if noise else math.inf
    ### END SOLUTION


# %% check="sqnr_db" points=1
# Sums of small integers are exact; log10 and one product round, each by less than 2⁻⁵² of a number below 64.
reference, rounded = np.array([6.0, 8.0]), np.array([6.0, 9.0])
check(
    "sqnr_db([6, 8], [6, 9])",
    sqnr_db(reference, rounded),
    sqnr_db_specification(reference, rounded),
    within=1e-13,
    means=[
        (40.0, "20·log10 is for a ratio of amplitudes; these are sums of squares, powers: 10·log10."),
        (1.0, "This is the largest error. It says nothing without the size of the signal."),
        (-20.0, "Upside down: signal over noise."),
    ],
)
### BEGIN HIDDEN TESTS
check("no error at all", sqnr_db(reference, reference), math.inf)
table = np.array([[30.0, -40.0], [0.0, 0.0]])
check(
    "sqnr_db of two rows, [[30, -40], [0, 0]] and all + 1",
    sqnr_db(table, table + 1),
    sqnr_db_specification(table, table + 1),
    within=1e-13,
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · What the data does not show
#
# One more fault, the quietest of all. Layer 2 rounds halves *up* instead of to even. Lesson 08 has shown the two
# rules; 2½ is 2 by the one and 3 by the other. We plant it, and compare.

# %%
rounds_up = with_fault(lambda layer: setattr(layer, "forward", recomputed(layer, rounding=half_up)))
differing = [int(np.sum(a != b)) for a, b in zip(integers(sound, x), integers(rounds_up, x), strict=True)]
print("halves rounded up in layer 2; differing integers by layer:", differing, "of", right.size)
assert differing == [0, 0, 0]

# %% [markdown]
# Nothing. 0 of 64,000, in every layer, on own and on same inputs. Is the model sound, then? No: the first tie
# that comes along in production will go the other way, and nobody will find out why.

# %% [markdown]
# Random data has no ties. A tie is a value whose fraction, in float32, is ½ to the last bit. Near 100 the float32
# numbers lie 2⁻¹⁷ apart, so of the places where a value may fall between two integers one in 131,072 is a tie;
# and half of all ties round to the same integer by either rule. We count how close our 64,000 values came.

# %%
acc = second_input.int_repr().astype(np.int32) @ sound.module[1].weight.int_repr().T.astype(np.int32)
real = acc.astype(np.float32) * (second_input.qparams.scale * sound.module[1].weight.qparams.scale)
steps = np.maximum(real + sound.module[1].bias, 0) * (np.float32(1) / sound.module[1].output.scale)
from_a_tie = np.abs(steps - np.floor(steps) - np.float32(0.5))
print(f"exact ties among {steps.size:,} values: {np.sum(from_a_tie == 0)}; nearest {from_a_tie.min():.1e} steps away")
assert second_input.qparams.zero_point == 0 and np.sum(from_a_tie == 0) == 0

# %% [markdown]
# So we must *make* ties. By hand, a layer with one weight 1, no bias and half a step for a step: acc 1, 3, 5,
# 7 lie at ½, 1½, 2½, 3½. To even: 0, 2, 2, 4. Up: 1, 2, 3, 4. Two of four differ, the ones with an odd integer
# above. For a layer with given weights and scales we turn the question round: which sums give a tie, and
# which input gives such a sum?

# %%
layer = mqq.QuantizedLinear(
    mqq.QTensor(
        np.array([[1]], np.int8), mqq.QParams(np.ones(1), np.zeros(1, np.int32), sound.module[1].weight.qparams.spec)
    ),
    np.zeros(1, np.float32),
    mqq.QParams(2.0, 0, sound.module[1].output.spec),
    "reference",
)
ties = mqq.QTensor(np.array([[1], [3], [5], [7]], np.uint8), mqq.QParams(1.0, 0, sound.module[1].output.spec))
to_even, up = layer(ties).int_repr().ravel(), recomputed(layer, rounding=half_up)(ties).int_repr().ravel()
print("acc / 2:        ", ties.dequantize().ravel() / 2)
print("halves to even: ", to_even, "  halves up:", up)
assert to_even.tolist() == [0, 2, 2, 4] and up.tolist() == [1, 2, 3, 4]

# %% [markdown]
# `compare` does this to every pair of integer layers. It makes *probes*: inputs whose sums lie on ties or one
# float32 step beside them, inputs at both ends of the grid, the largest and the smallest sum that the weights
# allow, and zero. What the data does not show, they do.

# %%
probed = crosscheck.compare(sound, rounds_up, x)
print(probed)
assert probed.first_divergent["layer"] == "module.1" and probed.first_divergent["cause"] == "rounding"
assert probed.layers[2]["probes"]["differing"] > 0 == probed.layers[2]["differing"]

# %% [markdown]
# ## 6 · The cause, with proof
#
# Read its last line again: *a recomputation with halves rounded up gives the second model's integers exactly.*
# That is how a cause is proved. First compare the parameters: weights, bias, scales, zero points. If they
# agree, the rule is what differs. So compute the layer yourself, exactly, with one rule changed at a time, until
# every wrong integer comes out, all of them and no others.

# %% [markdown]
# We give it all six faults, and look whether it names each.

# %%
broken_models["halves rounded up"] = rounds_up
causes = {
    "input zero point + 1": "zero_point",
    "output scale 1% off": "scale",
    "bias lost": "bias",
    "one weight of 1,024 + 1": "weight",
    "bias rounded to an integer": "bias",
    "halves rounded up": "rounding",
}
for name, model in broken_models.items():
    found = crosscheck.compare(sound, model, x).first_divergent
    print(f"{name:28} {found['layer']}  {found['cause']}")
    assert (found["layer"], found["cause"]) == ("module.1", causes[name])
print(crosscheck.compare(sound, unbroken, x).first_divergent)

# %% [markdown]
# Six of six, and None for the model whose arithmetic we only wrote out. The two faults of the bias have one name
# and different evidence:

# %%
for name in ("bias lost", "bias rounded to an integer"):
    print(f"{name}: {crosscheck.compare(sound, broken_models[name], x).first_divergent['evidence']}")

# %% [markdown]
# ### Exercise: name the cause
#
# `rules` holds a layer under several rules, each a function from integers to integers; the sound one, "none",
# comes first. `broken` follows one of them, or something else. Which? Use the data *and* the probes. If no rule
# gives every integer, say "several".


# %% tags=["exercise-setup"]
def under(zero_point=10, bias=37, rounding=np.rint, top=255):
    """A small layer with two outputs: (q - z) @ weight + bias, times 1/64, rounded, clipped to 0 … top."""
    weight = np.array([[3, -1], [2, 5], [-1, 4]])
    return lambda q: np.clip(rounding(((q - zero_point) @ weight + bias) / 64), 0, top).astype(int)


RULES = {
    "none": under(),
    "zero_point": under(zero_point=11),
    "bias": under(bias=0),
    "rounding": under(rounding=lambda steps: np.floor(steps + 0.5)),
    "clamp": under(top=4),
}
random_rows = np.random.RandomState(2).randint(0, 100, (40, 3))  # not one tie among them
probes = np.array([[10, 10, 15], [10, 10, 10], [0, 0, 0], [255, 255, 0], [0, 255, 255]])  # a tie, zero, both ends


def cause_specification(broken, rules, x, probes):
    """Each rule on each row, one number at a time."""
    for name in rules:
        fits = True
        for rows in (x, probes):
            for row in rows:
                wanted, got = rules[name](np.array([row]))[0], broken(np.array([row]))[0]
                for a, b in zip(wanted, got, strict=True):
                    fits = fits and a == b
        if fits:
            return name
    return "several"


# %% answer="cause" lines=5
def cause(broken, rules, x, probes):
    """The name of the first rule that gives all of broken's integers, or "several". [5 lines]"""
    ### BEGIN SOLUTION
    inputs = np.concatenate([x, probes])
    for name, rule in rules.items():
        if np.array_equal(rule(inputs), broken(inputs)):
            return name
    return "several"
    ### END SOLUTION


# %% check="cause" points=2
for planted in ("none", "zero_point", "bias", "clamp"):
    check(
        f"a layer with the fault {planted!r}",
        cause(RULES[planted], RULES, random_rows, probes),
        cause_specification(RULES[planted], RULES, random_rows, probes),
        means=[
            ("several", "One rule gives all of its integers: try each of them."),
            ("zero_point", "Many integers differ under each of these faults: a share is no proof."),
        ],
    )
### BEGIN HIDDEN TESTS
check(
    "a layer that rounds halves up",
    cause(RULES["rounding"], RULES, random_rows, probes),
    cause_specification(RULES["rounding"], RULES, random_rows, probes),
    means=[("none", "The data has no ties; the probes have. A rule that nothing tests is not a rule that holds.")],
)
two_faults = under(zero_point=11, bias=0)
check(
    "two faults at once",
    cause(two_faults, RULES, random_rows, probes),
    cause_specification(two_faults, RULES, random_rows, probes),
    means=[
        ("zero_point", "Nearly is not proof: some integers are left over, so it is not this rule alone."),
        ("bias", "Nearly is not proof: some integers are left over, so it is not this rule alone."),
    ],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 7 · Another engine is no fault
#
# Now PyTorch. The same float model, calibrated for `qnnpack`, the engine for phones, with the same integer
# weights on both sides. We run PyTorch's layers beside minquant's in the dialect "qnnpack", and beside minquant
# speaking "fbgemm", the engine for servers, with every parameter unchanged.

# %%
ours = converted("qnnpack")
ours_as_fbgemm = copy.deepcopy(ours)
for module in ours_as_fbgemm.modules():
    if hasattr(module, "backend"):
        module.backend = "fbgemm"


def torch_model(torch):
    """PyTorch's quantized layers, with our integers, scales and zero points."""
    from torch.ao.nn.intrinsic.quantized import LinearReLU
    from torch.ao.nn.quantized import DeQuantize, Quantize
    from torch.ao.quantization import QuantWrapper

    torch.backends.quantized.engine = "qnnpack"
    model = QuantWrapper(torch.nn.Sequential(*(LinearReLU(32, 32) for _ in range(3))))
    grid = ours.quant.qparams
    model.quant, model.dequant = Quantize(float(grid.scale), int(grid.zero_point), torch.quint8), DeQuantize()
    for mine, theirs in zip(ours.module, model.module, strict=True):
        q, scale = torch.tensor(mine.weight.int_repr()), float(mine.weight.qparams.scale)
        theirs.set_weight_bias(torch._make_per_tensor_quantized_tensor(q, scale, 0), torch.tensor(mine.bias))
        theirs.scale, theirs.zero_point = float(mine.output.scale), int(mine.output.zero_point)
    return model


# %%
def differing_from(model, theirs):
    """Integers that differ on the same inputs, layer by layer."""
    rows = crosscheck.compare(model, theirs, x).layers
    return np.array([round(row["same_inputs"]["differing"] * right.size) for row in rows[1:]])


def torch_counts(torch):
    engine, theirs = torch.backends.quantized.engine, torch_model(torch)
    found = np.stack([differing_from(model, theirs) for model in (ours, ours_as_fbgemm)])
    print(crosscheck.compare(ours_as_fbgemm, theirs, x).first_divergent["evidence"])
    torch.backends.quantized.engine = engine
    return found


counts = torch_or_recorded(torch_counts, np.array([[0, 0, 0], [62, 37, 35]]))
minquants_own = np.stack([differing_from(model, ours) for model in (ours, ours_as_fbgemm)])
assert compare("differing integers: beside qnnpack, beside fbgemm", minquants_own, counts)

# %% [markdown]
# In its own dialect: 0 differ, in all three layers. Against fbgemm's rules: 62, 37 and 35 of 64,000, by one
# step, and the cause is the bias. qnnpack rounds it to an integer, fbgemm does not (lesson 08). Somebody met
# exactly this and asked which of the two was wrong
# ([pytorch#44939](https://github.com/pytorch/pytorch/issues/44939)). Neither is: they speak different dialects.

# %% [markdown]
# That is the most common "bug" of all. Before you look for a fault, ask whether both sides were built to agree.
# Prepared and converted models of PyTorch were not, as lesson 06 found, and people go on asking
# ([#108639](https://github.com/pytorch/pytorch/issues/108639)). minquant's were:

# %%
prepared = mqq.prepare_qat(float_model.train(), mqq.get_default_qat_qconfig())
prepared(x)
proof = crosscheck.prove(prepared, x)
print(proof)
assert proof.mismatches == 0 and proof.values == 4 * right.size

# %% [markdown]
# And in PyTorch's x86 dialect, after the same single pass of data, with the reasons switched off one at a time.
# Inputs twice as wide, as when the world has changed since the training:

# %%
torchs_way = mqq.prepare_qat(float_model.train(), mqq.get_default_qat_qconfig("x86"))
torchs_way(x)
proof = crosscheck.prove(torchs_way, [2 * x[:1000], 2 * x[1000:]])
print(proof)
counted = {row["cause"]: row["differing"] / row["values"] for row in proof.causes}
assert counted["none"] > 0.2 and counted["all"] < 0.001
assert counted["observers move in eval"] < counted["clamp"] < counted["none"]

# %% [markdown]
# With PyTorch's habits a good part of the integers differ; with all of them switched off, at most one in a
# thousand does, and what is left is float sums against exact integers. Two habits matter here. Ranges go on
# moving while the prepared model is evaluated, towards the wider inputs. And training clamps at 127 where the
# converted layer clamps at 255. Nothing is a mystery any more: each habit is a line in a table.

# %% [markdown]
# ## From the command line
#
# All of this is one command. The two functions are called without arguments and return models, minquant's or
# PyTorch's; the exit status is 0 if nothing differs, 1 if something does, 2 if it could not find out.
#
# ```sh
# minquant compare net.py:make_float net.py:make_quantized inputs.npy --json out.json --plots plots
# ```

# %% [markdown]
# ## Back to the question
#
# Layer 3 off by 33 steps, layer 2 by 16. Which one is broken?

# %%
print("guess ", guess)
answer = crosscheck.compare(sound, no_bias, x).first_divergent
print(f"result: {answer['layer']} (the second), {answer['cause']}: {answer['evidence']}")

# %% [markdown]
# **The surprise in a sentence.** The loudest layer is innocent; and a layer that rounds all its halves the wrong
# way agrees in 64,000 of 64,000 integers, because random data has no ties.

# %% [markdown]
# **What this lesson does not cover.** Models whose layers were renamed or merged by a compiler (pair them by
# hand), faults that depend on the batch size or the thread count, and the question whether a difference
# *matters*: that is the accuracy's to say.

# %% [markdown]
# ## Sources
#
# - torch 2.13: `torch.ao.nn.intrinsic.quantized.LinearReLU`, `torch.ao.quantization`, engine qnnpack.
# - R. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference*, 2018,
#   [arXiv:1806.08342](https://arxiv.org/abs/1806.08342): where accuracy gets lost.
# - Threads: [pytorch#108639](https://github.com/pytorch/pytorch/issues/108639) and
#   [ao#2060](https://github.com/pytorch/ao/issues/2060) (the model after conversion is another one),
#   [pytorch#180990](https://github.com/pytorch/pytorch/pull/180990) (which scale, 127.5 or not),
#   [pytorch#44939](https://github.com/pytorch/pytorch/issues/44939) (the same model on two engines).

# %% [markdown]
# **Left open.** Every integer is right; is it fast? A product of integers is cheaper than one of floats, and yet
# NumPy takes longer for it: lesson 10.
