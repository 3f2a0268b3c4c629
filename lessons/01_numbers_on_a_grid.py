# %% [markdown]
# # 01 Numbers on a grid
#
# *−1, 0, 0.3 and 2 in two bits each: which scale, which zero point, and what does 0.3 become?*
#
# Quantization replaces real numbers by small integers and remembers how to read them back. Everything in
# this course (integer layers, calibration, training that knows about rounding) stands on the one step of
# this lesson: from a range to a grid, and from a number to the nearest point of it.
#
# We need NumPy and nothing else.

# %% tags=["exercise-setup"]
import matplotlib.pyplot as plt
import numpy as np
from lesson_tools import COLOURS, check, compare, quiet_torch, show_versions, torch_or_recorded, use_style

from minquant.quant import QSpec, choose_qparams, fake_quantize, quantize

# %%
show_versions()
use_style()
torch = quiet_torch()  # None where torch is not installed

# %% [markdown]
# ## What you will be able to do
#
# After this lesson you can
#
# - compute the scale and the zero point of a range, by hand and in NumPy;
# - quantize numbers, ties and outliers included, and bound the error;
# - say why real zero must lie on the grid, and what "symmetric" means (it is not about bit widths);
# - decide where to cut a range off, from a curve instead of a guess;
# - test the three reasons that are usually given for why quantization works at all.

# %% [markdown]
# ## Notation
#
# All lessons write these things the same way.
#
# | written | means |
# | --- | --- |
# | `x` | a real number (float32) |
# | `q` | the integer that stands for it |
# | `scale`, in formulas s | the real distance between neighbouring integers |
# | `zero_point`, z | the integer that stands for real 0 |
# | `qmin`, `qmax` | the smallest and largest integer allowed |
# | `acc` | a sum of integer products, int32 (from lesson 03 on) |
# | f(…) | rounded to float32 |
# | inv | f(1/s) |
# | rint | rounded to the nearest integer, a half to the even neighbour |
# | x̂ | the real number that `q` is read back as |

# %% [markdown]
# ## The question
#
# Four numbers, −1, 0, 0.3 and 2. Two bits a number, so four integers: 0, 1, 2 and 3. The smallest number
# should become 0 and the largest 3.
#
# Write down your guess before you read on: the scale, the zero point, and the number that comes back for
# 0.3. A wrong guess that was written down teaches more than a right one that was not.

# %%
guess = None  # (scale, zero_point, what 0.3 becomes), for example (0.75, 1, 0.25)

# %% [markdown]
# ## 1 · A range becomes a grid
#
# A grid is a ruler: marks at equal distances, and an integer at each mark. Reading an integer back is
#
# $$\hat{x} = (q - z) \cdot s$$
#
# and writing a number down is the same ruler used the other way, with everything beyond the ends moved to
# the ends:
#
# $$q = \mathrm{clip}(\mathrm{rint}(x \cdot \mathrm{inv}) + z,\ q_{min},\ q_{max})$$

# %% [markdown]
# Two numbers fix the ruler. The scale is the length of the range divided by the number of *steps*, which is
# one less than the number of marks. The zero point is the mark at which 0 lies:
#
# $$s = \frac{x_{max} - x_{min}}{q_{max} - q_{min}} \qquad z = q_{min} - \mathrm{rint}(x_{min} / s)$$

# %% [markdown]
# By hand, for our four numbers:
#
# - s = (2 − (−1)) / (3 − 0) = 3/3 = **1**
# - z = 0 − rint(−1/1) = **1**
# - q = rint(−1) + 1, rint(0) + 1, rint(0.3) + 1, rint(2) + 1 = **0, 1, 1, 3**
# - x̂ = (0 − 1)·1, (1 − 1)·1, (1 − 1)·1, (3 − 1)·1 = **−1, 0, 0, 2**
#
# So 0.3 becomes 0. It shares its integer with real zero, and nothing that we do later will tell the two
# apart again. In NumPy it is four lines.

# %%
x = np.array([-1, 0, 0.3, 2], np.float32)
qmin, qmax = 0, 3

scale = (x.max() - x.min()) / np.float32(qmax - qmin)
zero_point = int(qmin - np.rint(x.min() / scale))
q = np.clip(np.rint(x * (1 / scale)) + zero_point, qmin, qmax).astype(np.uint8)
back = (q.astype(np.int32) - zero_point) * scale

print("scale", scale, " zero_point", zero_point, " q", q, " back", back)
assert scale == 1 and zero_point == 1
assert q.tolist() == [0, 1, 1, 3] and back.tolist() == [-1, 0, 0, 2]

# %% [markdown]
# minquant splits the same work in two. A `QSpec` is what a person decides before seeing data: how many
# bits, and whether the integers are signed. `choose_qparams` looks at the range and answers with the scale
# and the zero point; both together are `QParams`. With them, `quantize` makes integers and `dequantize`
# reads them back.

# %%
two_bits = QSpec(bits=2, signed=False)
qparams = choose_qparams(x.min(), x.max(), two_bits)
integers = quantize(x, qparams)

print(qparams)
print(integers)
print(integers.dequantize())
assert compare("by hand and by minquant", q, integers, columns=("by hand", "minquant"))
assert integers.dequantize().tolist() == back.tolist()

# %% [markdown]
# And PyTorch? Its `MinMaxObserver` turns a range into a scale and a zero point, and
# `fake_quantize_per_tensor_affine` writes down and reads back in one go. (minquant has both steps as
# `fake_quantize`, too; lesson 06 is about why anyone wants that.) Same numbers in, two columns out.

# %%
recorded = np.array([1.0, 1.0, -1.0, 0.0, 0.0, 2.0])


def torch_grid(torch):
    observer = torch.ao.quantization.MinMaxObserver(quant_min=0, quant_max=3)
    observer(torch.tensor([-1, 0, 0.3, 2]))
    s, z = observer.calculate_qparams()
    fake = torch.fake_quantize_per_tensor_affine(torch.tensor([-1, 0, 0.3, 2]), s.item(), z.item(), 0, 3)
    return np.concatenate([s.numpy(), z.numpy(), fake.numpy()])


theirs = torch_or_recorded(torch_grid, recorded)
ours = np.array([qparams.scale, qparams.zero_point, *fake_quantize(x, qparams)])
assert compare("scale, zero point, four values", ours, theirs)

# %% [markdown]
# Here is the ruler as a picture, for more numbers than four. Each real number on the horizontal axis falls
# to the nearest of the four marks; the lower plot shows what it loses. Inside the range the loss never
# exceeds half a step, s/2. Beyond the ends it grows without limit: that part is called *clipping*.

# %%
line = np.linspace(-2, 3.2, 1041).astype(np.float32)
on_grid = fake_quantize(line, qparams)

figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), height_ratios=[2, 1])
top.plot(line, line, color=COLOURS["float"], linewidth=1, label="float")
top.plot(line, on_grid, color=COLOURS["minquant"], label="on the grid, 2 bits")
top.plot(x, back, "o", color=COLOURS["minquant"], label="−1, 0, 0.3, 2")
for integer in range(4):
    top.annotate(f"q = {integer}", (3.25, integer - 1), va="center", color=COLOURS["minquant"])
top.set(ylabel="read back (value)", yticks=[-1, 0, 1, 2], title="s = 1, z = 1: four integers for a whole line")
top.legend(loc="upper left")
bottom.plot(line, line - on_grid, color=COLOURS["minquant"])
bottom.axhspan(-0.5, 0.5, color=COLOURS["minquant"], alpha=0.1)
bottom.set(xlabel="real number (value)", ylabel="error (steps)", yticks=[-1, -0.5, 0, 0.5, 1])
plt.show()

inside = (line >= -1) & (line <= 2)
assert np.abs(line - on_grid)[inside].max() <= 0.5 < np.abs(line - on_grid).max()

# %% [markdown]
# ## 2 · Ties go to the even neighbour
#
# What is 0.5 on a grid with s = 1? It lies exactly between two marks. School says "up". NumPy, PyTorch and
# the default mode of IEEE 754, and so of processors, say "to the even neighbour":
#
# - 0.5 → 0, 1.5 → 2, 2.5 → 2
#
# The reason is a sum. If every half goes up, then a long sum of rounded numbers drifts up with it. If
# halves take turns, the errors cancel. Ties look rare, but integers are full of them: multiply an integer
# by ½ and every odd one is a tie. Many disagreements between two engines are nothing but this (lesson 08).

# %%
halves = np.arange(10) + 0.5  # 0.5, 1.5, … 9.5
to_even, up = np.rint(halves), np.floor(halves + 0.5)
print("to even", to_even, " sum of errors", (to_even - halves).sum())
print("up     ", up, " sum of errors", (up - halves).sum())
assert (to_even - halves).sum() == 0 and (up - halves).sum() == 5

ties = np.array([0.5, 1.5, 2.5], np.float32)
unit_grid = choose_qparams(0, 3, two_bits)  # s = 1, z = 0
print(quantize(ties, unit_grid))
assert quantize(ties, unit_grid).int_repr().tolist() == [0, 2, 2]

# %% [markdown]
# ### Exercise: `quantize_array`
#
# Write the rule of this lesson for a whole array. The specification below says what is wanted, one number
# at a time (Python's `round` sends halves to the even neighbour, too). Your version is a single line of
# NumPy.
#
# Two things are easy to get wrong: the ties, and the order of clipping and converting. A uint8 has no 256,
# and a number that doesn't fit wraps around without a word.

# %% tags=["exercise-setup"]
one = np.float32(1)


def quantize_specification(x, scale, zero_point, qmin, qmax):
    """The integers of float32 numbers x, one at a time."""
    inv = one / scale
    integers = []
    for value in x:
        q = round(float(value * inv)) + zero_point
        integers.append(min(max(q, qmin), qmax))
    return integers


def f32(*values):
    """Float32 numbers, as in `f32(0.5, 1.5)`."""
    return np.array(values, np.float32)


# %% answer="quantize_array" lines=1
def quantize_array(x, scale, zero_point, qmin, qmax):
    """The integers, qmin to qmax, of float32 numbers x; scale is a float32, too. [1 line]"""
    ### BEGIN SOLUTION
    return np.clip(np.rint(x * (1 / scale)) + zero_point, qmin, qmax).astype(np.int32)
    ### END SOLUTION


# %% check="quantize_array" points=2
check(
    "quantize_array([0.5, 1.5, 2.5], scale 1, zero_point 0, on 0…3)",
    quantize_array(f32(0.5, 1.5, 2.5), one, 0, 0, 3),
    quantize_specification(f32(0.5, 1.5, 2.5), one, 0, 0, 3),
    means=[([1, 2, 3], "2.5 became 3: halves went up, here they go to the even neighbour.")],
)
check(
    "quantize_array([256, 7], scale 1, zero_point 0, on 0…255)",
    quantize_array(f32(256, 7), one, 0, 0, 255),
    quantize_specification(f32(256, 7), one, 0, 0, 255),
    means=[([0, 7], "256 became 0: it was converted to uint8 first and clipped when it was too late.")],
)
### BEGIN HIDDEN TESTS
check(
    "ties on a grid with an odd zero point: quantize_array([0.5, 1.5, 2.5], scale 1, zero_point 1, on 0…7)",
    quantize_array(f32(0.5, 1.5, 2.5), one, 1, 0, 7),
    quantize_specification(f32(0.5, 1.5, 2.5), one, 1, 0, 7),
    means=[([2, 2, 4], "The zero point was added before rounding, so the ties fell the other way.")],
)
sevens = np.float32(7) / np.float32(127.5)
check(
    "quantize_array([-7], scale 7/127.5, zero_point 0, on -128…127)",
    quantize_array(f32(-7), sevens, 0, -128, 127),
    quantize_specification(f32(-7), sevens, 0, -128, 127),
    means=[([-128], "x was divided by the scale; the rule multiplies by inv = f(1/s).")],
)
for z in (0, 3, 128, 255):
    values = np.linspace(-400, 400, 1601).astype(np.float32)
    spec = quantize_specification(values, one, z, 0, 255)
    check(f"halves and ends, zero_point {z}", quantize_array(values, one, z, 0, 255), spec, quiet=True)
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · Zero must lie on the grid
#
# Now three numbers that are all positive: 4, 5, 6. The range is 4…6, so s = 2/3 should use two bits best.
# Then z = 0 − rint(4 / (2/3)) = −6: real zero would be integer −6, six marks below the first one.

# %% [markdown]
# That does not fit. A zero point is stored as one of the grid's own integers, and more importantly zero is
# the number that neural networks make most of: padding adds zeros around an image, ReLU makes zeros, a
# masked position is a zero. If zero were only nearly on the grid, every one of them would add the same
# small error.
#
# Clip z to 0 and keep s? Then the marks are 0, 2/3, 4/3 and 2, and our three numbers all lie beyond the
# end.

# %%
narrow = f32(4, 5, 6)
s = np.float32(2) / 3
z = np.clip(0 - np.rint(narrow.min() / s), 0, 3)  # -6, moved onto the grid
q = np.clip(np.rint(narrow * (1 / s)) + z, 0, 3)
print("range not extended:", (q - z) * s)
assert ((q - z) * s).tolist() == [2, 2, 2]

extended = choose_qparams(narrow.min(), narrow.max(), two_bits)
print("range extended to 0:", quantize(narrow, extended).dequantize(), extended)
assert quantize(narrow, extended).dequantize().tolist() == [4, 4, 6]

# %% [markdown]
# 2, 2, 2: not one of the three survives. So the rule has one more line, and it comes first:
#
# $$lo = \min(x_{min}, 0) \qquad hi = \max(x_{max}, 0)$$
#
# With it the range is 0…6, s = 2, z = 0, and 4, 5, 6 come back as 4, 4, 6 (5 is a tie: 2.5 steps, to the
# even 2). Coarser marks, but all numbers lie between them. PyTorch's observers learned this in release 1.3,
# after [an issue](https://github.com/pytorch/pytorch/issues/23838) had found them without; people still
# [ask why](https://github.com/pytorch/pytorch/issues/108646) the scale does not fit their data more
# tightly.
#
# A last detail: if everything is 0, the scale would be 0, too, and we could not divide by it. The scale is
# never less than 2⁻²³.

# %% [markdown]
# ### Exercise: `affine`
#
# The scale and the zero point of an array, for the integers 0 … 2^bits − 1: extend the range to zero,
# divide by the number of *steps*, keep the scale at 2⁻²³ or more, find the mark of zero. A grid whose zero
# point moves like this is called *affine*.

# %% tags=["exercise-setup"]
smallest_scale = np.float32(2**-23)


def affine_specification(x, bits):
    """(scale, zero_point) of the integers 0 … 2^bits − 1 for the numbers x, one at a time."""
    low = high = np.float32(0)
    for value in x:
        low, high = min(low, value), max(high, value)
    steps = np.float32(2**bits - 1)
    scale = max((high - low) / steps, smallest_scale)
    return scale, round(float(-low / scale))


# %% answer="affine" lines=4
def affine(x, bits):
    """(scale, zero_point) of the integers 0 … 2^bits − 1 for a float32 array x. [4 lines]"""
    ### BEGIN SOLUTION
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = max((high - low) / (2**bits - 1), 2**-23)
    zero_point = int(np.rint(-low / scale))
    return scale, zero_point
    ### END SOLUTION


# %% check="affine" points=2
def check_affine(case, x, bits, means=()):
    """Within a few float32 roundings of the scale: 1e-6 of it. The zero point is an integer: exactly."""
    specification = affine_specification(x, bits)
    check(case, affine(x, bits), specification, means, within=1e-6 * float(specification[0]))


check_affine(
    "affine([-1, 0, 0.3, 2], 2 bits)",
    f32(-1, 0, 0.3, 2),
    2,
    means=[((0.75, 1), "Scale 0.75: divided by 4, the number of marks. Between 4 marks are 3 steps.")],
)
lost = "The range was not extended to 0, so zero is off the grid: 4, 5, 6 would come back as 2, 2, 2."
check_affine("affine([4, 5, 6], 2 bits)", f32(4, 5, 6), 2, means=[((2 / 3, -6), lost), ((2 / 3, 0), lost)])
### BEGIN HIDDEN TESTS
check_affine("affine([-3, -2], 2 bits), all negative", f32(-3, -2), 2)
check_affine("affine([2, 2, 2], 2 bits), a constant", f32(2, 2, 2), 2)
check_affine("affine([-5], 8 bits), one number", f32(-5), 8)
check_affine("affine([0, 0], 8 bits), the scale is 2⁻²³", f32(0, 0), 8)
check_affine("affine([-0.1, 7.3], 4 bits)", f32(-0.1, 7.3), 4)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Symmetric is about the zero point
#
# A grid is *symmetric* if real zero sits in its middle and stays there: with signed integers, z = 0. The
# scale then covers ±max|x|,
#
# $$s = \frac{\max|x|}{(q_{max} - q_{min})/2}$$
#
# and the formula gets simpler: x̂ = q · s. For weights, which lie on both sides of zero, that costs almost
# nothing, and lesson 03 shows what it saves. For numbers that are all positive it costs a whole bit, since
# nobody uses the negative integers. Take the range 0…1 with 8 bits and count the integers that occur.

# %%
from_0_to_1 = np.linspace(0, 1, 100_001).astype(np.float32)

used = {}
for name, spec in {"affine": QSpec(8), "symmetric": QSpec(8, symmetric=True)}.items():
    grid = choose_qparams(0, 1, spec)
    used[name] = len(np.unique(quantize(from_0_to_1, grid).int_repr()))
    print(f"{name:10} {grid}  integers used: {used[name]}")

assert used == {"affine": 256, "symmetric": 128}

# %% [markdown]
# An error to put right. An introduction to large-model quantization that many people start from says:
# symmetric quantization uses *one bit width* for all parameters, asymmetric quantization *several*. It is a
# neat story and it is not so. Both grids above have 8 bits. Using different bit widths in one model exists,
# and is called *mixed precision*; any of the widths can be symmetric or affine.
#
# | | zero point | scale covers | good for |
# | --- | --- | --- | --- |
# | affine | anywhere on the grid | min … max, with 0 | activations, for instance after a ReLU |
# | symmetric | the middle, always | −max\|x\| … max\|x\| | weights |

# %% [markdown]
# ## 5 · Why does it work at all?
#
# Three reasons are often given. Let's not believe them, but try each one out:
#
# 1. inputs are normalized and weights regularized, so **ranges are small**;
# 2. activation functions are smooth, so **small errors stay small**;
# 3. the answer is an **argmax**, which only cares about who is largest.

# %% [markdown]
# For the first we need a ruler for errors that does not depend on units: the signal-to-noise ratio in
# decibels,
#
# $$\mathrm{SQNR} = 10 \log_{10} \frac{\sum x^2}{\sum (x - \hat{x})^2}$$
#
# 10 dB more means that the squared error is ten times smaller; one bit more gives about 6 dB.
#
# Then we take 10,000 numbers from the normal distribution, once as they are and once multiplied by 1000: a
# range that is anything but small.

# %%
normal = np.random.RandomState(0).standard_normal(10_000).astype(np.float32)
int8 = QSpec(8, symmetric=True)


def sqnr_db(x, x_hat):
    error = x.astype(np.float64) - x_hat
    return 10 * np.log10((x.astype(np.float64) ** 2).sum() / (error**2).sum())


def on_integers(x, spec=int8):
    return quantize(x, choose_qparams(x.min(), x.max(), spec))


small, large = on_integers(normal), on_integers(1000 * normal)
print("range ±3.8   ", sqnr_db(normal, small.dequantize()).round(1), "dB")
print("range ±3800  ", sqnr_db(1000 * normal, large.dequantize()).round(1), "dB")
one_bit_less = sqnr_db(normal, on_integers(normal, QSpec(7, symmetric=True)).dequantize())
print("with one bit less", one_bit_less.round(1), "dB")
print("integers that differ:", (small.int_repr() != large.int_repr()).sum(), "of", normal.size)
assert (small.int_repr() == large.int_repr()).all() and round(sqnr_db(normal, small.dequantize()), 1) == 41.2
assert 5.5 < sqnr_db(normal, small.dequantize()) - one_bit_less < 6.5

# %% [markdown]
# Not one integer of the 10,000 differs, and both have 41.2 dB. Of course: the scale grows with the range,
# and the integers are what is left when the unit is gone. "Ranges are small, so it works" is therefore not
# a reason.
#
# What does matter is how *evenly* the range is used. Put a single 100 among the 10,000.

# %%
with_outlier = np.append(normal, np.float32(100))
after = on_integers(with_outlier)

rest = after.dequantize()[:-1]
count = [len(np.unique(t.int_repr()[:10_000])) for t in (small, after)]
print(f"without the outlier: {sqnr_db(normal, small.dequantize()):.1f} dB, {count[0]} integers in use")
print(f"the same 10,000 with it: {sqnr_db(normal, rest):.1f} dB, {count[1]} integers in use")
assert round(sqnr_db(normal, rest), 1) == 12.9 and count == [212, 11]
assert np.unique(after.int_repr()).tolist() == [*range(-5, 6), 127]

# %% [markdown]
# One number in 10,001 took the others from 41.2 to 12.9 dB. They had 212 integers between them; now they
# share 11, from −5 to 5, and those from 6 to 126 wait for numbers that never come. So the first reason,
# mended: it works where ranges are **filled**, not where they are small. Normalizing and regularizing help
# because they leave no outliers, whatever the units. Large language models have such outliers in their
# activations, which is why a good part of the literature since 2022 is about them.
#
# The second reason holds. ReLU never makes a difference larger, and neither do tanh and the sigmoid:

# %%
x_hat = small.dequantize()
half_step = small.qparams.scale / 2
functions = {"relu": lambda v: np.maximum(v, 0), "tanh": np.tanh, "sigmoid": lambda v: 1 / (1 + np.exp(-v))}
print(f"before: largest error {np.abs(normal - x_hat).max():.5f} (half a step: {half_step:.5f})")
for name, function in functions.items():
    largest = np.abs(function(normal) - function(x_hat)).max()
    print(f"after {name:8} {largest:.5f}")
    assert largest <= half_step

# %% [markdown]
# (A layer's weights can still make an error larger: it adds up one error for each input. That is lesson
# 04.)
#
# For the third reason we need a network. We train a small one on handwritten digits, 64 pixels in, 64
# hidden, 10 classes out. How training works is lesson 02 and how `prepare` and `convert` make integer
# layers is lesson 05; today we only watch from outside. W8A8 means 8-bit weights and 8-bit activations,
# W2A8 means 2-bit weights.

# %%
import minquant
from minquant import nn, optim
from minquant.data import batches, load_digits
from minquant.functional import cross_entropy
from minquant.quant import QuantWrapper, convert, get_default_qconfig, prepare


def trained(digits, seed):
    minquant.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        for x, y in batches(digits.x_train, digits.y_train, 64):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def quantized(model, digits, weight_bits):
    prepared = prepare(QuantWrapper(model), get_default_qconfig(weight_bits=weight_bits))
    prepared(digits.x_train)  # lets it see the ranges
    return convert(prepared)


# %%
rows = []
for seed in range(3):
    digits = load_digits(seed)
    float_model = trained(digits, seed)
    models = [float_model, quantized(float_model, digits, 8), quantized(float_model, digits, 2)]
    outputs = [model(digits.x_test).detach().numpy() for model in models]
    accuracy = [100 * np.mean(out.argmax(axis=1) == digits.y_test) for out in outputs]
    changed = [100 * np.mean(out.argmax(axis=1) != outputs[0].argmax(axis=1)) for out in outputs]
    error = [np.abs(out - outputs[0]).mean() for out in outputs]
    rows.append([accuracy, changed, error])
    second, first = np.sort(outputs[0], axis=1)[:, -2:].T
    print(f"seed {seed}: the winning output leads by {(first - second).mean():.1f} on average")
    assert error[1] < 0.1 and 7 < (first - second).mean() < 10 and error[2] > 1

table = np.array(rows)  # (seed, what, model)
for i, name in enumerate(["float", "W8A8", "W2A8"]):
    accuracy, changed, error = table[:, :, i].T
    print(f"{name:5}  accuracy {accuracy.round(1)}, mean {accuracy.mean():.1f}%", end=" · ")
    print(f"answers changed {changed.mean():.1f}% · mean error of an output {error.mean():.2f}")
assert (np.abs(table[:, 0, 1] - table[:, 0, 0]) <= 1).all()  # W8A8 within a point of float, each seed
assert (table[:, 0, 0] - table[:, 0, 2] >= 5).all()  # W2A8 at least five points below, each seed
assert (table[:, 1, 1] < 2).all() and len(digits.y_test) == 360

# %% [markdown]
# With 8 bits an output is off by less than 0.1 on average, while the winner leads by 7 to 10, and almost no
# answer is another one. A winner that leads by more than twice the largest error stays the winner. So the
# third reason holds as far as it goes. How far is in the last row: at 2 bits an output is off by more than
# 1 on average, some by far more, and more than five points of accuracy are gone, for each of the three
# seeds. An argmax forgives small errors. It doesn't make large ones small.
#
# (If 8 bits beat float by a tenth, don't read anything into it: with 360 test images, one image is 0.28
# points.)

# %% [markdown]
# ## 6 · Where to cut the range off
#
# If one outlier ruins the grid, then why not cut it off? Choose a clip point c and let the grid cover ±c
# only. Two errors pull in opposite directions:
#
# - **rounding** error, of the numbers inside: grows with c, since the steps grow;
# - **clipping** error, of the numbers outside: shrinks with c.
#
# With 2 bits both are large enough to see. The integers are −2, −1, 0 and 1, the numbers are the 10,000
# normals without any outlier, and we measure the mean squared error.

# %%
int2 = QSpec(2, symmetric=True)


def is_clipped(x, grid):
    wanted = np.rint(x * (1 / grid.scale))  # the integer before clipping
    return (wanted < int2.qmin) | (wanted > int2.qmax)


def two_errors(x, c):
    """The mean squared error for the clip point c: the part from rounding, the part from clipping."""
    grid = choose_qparams(-c, c, int2)
    squared = (x.astype(np.float64) - fake_quantize(x, grid)) ** 2
    outside = is_clipped(x, grid)
    return squared[~outside].sum() / x.size, squared[outside].sum() / x.size


widest = np.abs(normal).max()
clip_points = np.append(np.arange(0.2, widest, 0.01), widest)
rounding, clipping = np.array([two_errors(normal, c) for c in clip_points]).T
total = rounding + clipping
best = total.argmin()
print(f"nothing cut off: c = {widest:.2f}, error {total[-1]:.3f}")
print(f"the best:        c = {clip_points[best]:.2f}, error {total[best]:.3f}", end=", ")
print(f"of which {rounding[best]:.3f} rounding, {clipping[best]:.3f} clipping")

# %%
figure, axes = plt.subplots(figsize=(7, 3.8))
parts = ["#8fbfdc", "#e9b48e"]
axes.stackplot(clip_points, rounding, clipping, colors=parts, labels=["rounding", "clipping"])
axes.plot(clip_points, total, color=COLOURS["minquant"], label="both")
for i, text, align, lift in ((best, "best", "center", 24), (-1, "nothing cut off", "right", 12)):
    axes.plot(clip_points[i], total[i], "o", color=COLOURS["minquant"])
    label = f"{text}: {total[i]:.3f} at ±{clip_points[i]:.2f}"
    axes.annotate(label, (clip_points[i], total[i]), (0, lift), textcoords="offset points", ha=align)
axes.set(xlabel="clip point c (value)", ylabel="mean squared error (value²)", xlim=(0.2, 3.9), ylim=(0, 0.95))
axes.set_title("10,000 normals on 2 bits: the best range is not the whole range")
axes.legend(loc="upper center")
plt.show()

clipped = is_clipped(normal, choose_qparams(-clip_points[best], clip_points[best], int2))
cut_off = 100 * clipped.mean()
print(f"{cut_off:.1f} % of the numbers are clipped at the best clip point")
assert round(widest, 2) == 3.80 and round(total[-1], 3) == 0.500
assert 1.5 < clip_points[best] < 1.6 and round(total[best], 3) == 0.144
assert 0 < best < len(clip_points) - 1 and round(cut_off) == 6
assert (normal[clipped] > 0).mean() > 0.8

# %% [markdown]
# The best clip point is not at the end of the range, it lies well inside: at about ±1.55, where the error
# is 0.144. With nothing cut off, it is 0.500, more than three times as much. To be best we clip about 6 %
# of the numbers, on purpose. (Most of them are positive: there is an integer −2, but no 2, so on the
# negative side the marks reach further.)
#
# Why did nothing like this occur to us at 8 bits? Because the steps are small then, and there is little
# rounding error to trade in. The fewer the bits, the more it matters where the range ends. Choosing it from
# data is called *calibration*, and lesson 05 does it with PyTorch's own observers.

# %% [markdown]
# ## 7 · A surprise: the largest number moves
#
# Symmetric int8, and a tensor whose extremes are −3 and 3. The grid was made for exactly this range. What
# do the extremes come back as? And the same for −1 and 1?

# %%
for amax in (3, 1):
    ends = f32(-amax, amax)
    grid = choose_qparams(-amax, amax, int8)
    t = quantize(ends, grid)
    inv = np.float32(1) / grid.scale
    print(f"±{amax}: x·inv = {ends * inv}, integers {t.int_repr()}, back {t.dequantize().round(4)}")
    expected = {3: ([-128, 127], [-3.0118, 2.9882]), 1: ([-127, 127], [-0.9961, 0.9961])}[amax]
    assert t.int_repr().tolist() == expected[0]
    assert np.abs(t.dequantize() - expected[1]).max() <= 5e-5  # four decimals

# %% [markdown]
# The integers are −128 … 127, so half of the 255 steps is 127.5, and max|x| lies at 127.5 steps: halfway
# between two marks, one of which doesn't exist. For 3 the product 3·inv is exactly 127.5, a tie. It goes to
# the even 128, which is clipped to 127; and −127.5 goes to −128, which exists. So −3 becomes −3.0118 and 3
# becomes 2.9882.
#
# For 1, float32 rounded the scale up a little, so 1·inv = 127.49999. No tie, and ±1 becomes ±0.9961.

# %% [markdown]
# Does it matter whether we multiply by inv or divide by s? It does, if rarely. For ±7 the quotient is 127.5
# and the product 127.49999, and −7 gets two different integers. That is why the rule says "times inv", and
# why two engines that are both right can disagree.

# %%
seven = np.float32(7)
scale_7 = choose_qparams(-7, 7, int8).scale
inv_7 = np.float32(1) / scale_7
print("divided:", np.rint(-seven / scale_7), " multiplied:", np.rint(-seven * inv_7))
assert seven / scale_7 == 127.5 and seven * inv_7 < 127.5
assert np.rint(-seven / scale_7) == -128 and np.rint(-seven * inv_7) == -127

# %% [markdown]
# PyTorch computes this scale in the same way, digit by digit, and on our 10,000 normals it finds the same
# integers.

# %%
recorded = np.array([59, 13, 33, 75, 63, -33, 32, -5])


def torch_int8(torch, values):
    observer = torch.ao.quantization.MinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, reduce_range=False
    )
    observer(torch.tensor(values))
    s, z = observer.calculate_qparams()
    return torch.quantize_per_tensor(torch.tensor(values), s.item(), z.item(), torch.qint8)


theirs = torch_or_recorded(lambda torch: torch_int8(torch, normal).int_repr()[:8], recorded)
assert compare("the first eight of 10,000 normals, int8", small.int_repr()[:8], theirs)

differing = torch_or_recorded(
    lambda torch: (torch_int8(torch, normal).int_repr().numpy() != small.int_repr()).sum(),
    recorded=np.array(0),
)
print("integers that differ, of 10,000:", differing)
ends = [np.array([-128, 127]), np.array([-127, 127])]
for amax, integers in zip((3, 1), ends, strict=True):
    theirs = torch_or_recorded(lambda torch, a=amax: torch_int8(torch, [-a * 1.0, a * 1.0]), integers)
    assert compare(f"±{amax}", on_integers(f32(-amax, amax)), theirs)

# %% [markdown]
# One honest footnote. `torch.quantize_per_tensor` adds the zero point *before* it rounds, and
# `torch.fake_quantize_per_tensor_affine` after, as minquant does. With z = 0 that is the same. With an odd
# z, ties fall to the other side: 0.5 with s = 1, z = 1 is integer 2 for one of torch's functions and 1 for
# the other. The [formula in the documentation](https://github.com/pytorch/pytorch/issues/105085) has
# confused people. There are four such rules within torch alone; lesson 08 collects them.

# %%
shifted = choose_qparams(-1, 254, QSpec(8, signed=False))  # s = 1, z = 1


def torch_tie(torch):
    value = torch.tensor([0.5])
    integer = torch.quantize_per_tensor(value, 1.0, 1, torch.quint8).int_repr()
    fake = torch.fake_quantize_per_tensor_affine(value, 1.0, 1, 0, 255)  # (q - 1) · 1
    return np.array([integer.item(), round(fake.item()) + 1])


theirs = torch_or_recorded(torch_tie, recorded=np.array([2, 1]))
print("torch: quantize_per_tensor", theirs[0], "· fake_quantize", theirs[1])
print("minquant:", quantize(f32(0.5), shifted))
assert theirs.tolist() == [2, 1] and quantize(f32(0.5), shifted).int_repr().tolist() == [1]

# %% [markdown]
# ### Exercise: `symmetric_scale`
#
# The scale of a signed symmetric grid that uses all of its integers, −2^(bits−1) … 2^(bits−1) − 1, and is
# never below 2⁻²³. Other libraries have other divisors (there is one that leaves −128 out and divides by
# 127); we divide by half the number of steps.

# %% tags=["exercise-setup"]
smallest_scale = np.float32(2**-23)


def symmetric_scale_specification(x, bits):
    """max|x| over half the steps of the grid, one number at a time."""
    largest = np.float32(0)
    for value in x:
        largest = max(largest, value if value > 0 else -value)
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return max(largest / np.float32((qmax - qmin) / 2), smallest_scale)


# %% answer="symmetric_scale" lines=1
def symmetric_scale(x, bits):
    """The scale of the symmetric grid of all signed integers of so many bits. [1 line]"""
    ### BEGIN SOLUTION
    return max(np.abs(x).max() / ((2**bits - 1) / 2), 2**-23)
    ### END SOLUTION


# %% check="symmetric_scale" points=1
def check_scale(case, x, bits, means=()):
    """Within a few float32 roundings: 1e-6 of the scale."""
    specification = symmetric_scale_specification(x, bits)
    check(case, symmetric_scale(x, bits), specification, means, within=1e-6 * float(specification))


check_scale(
    "symmetric_scale([-3, 1], 8 bits)",
    f32(-3, 1),
    8,
    means=[
        (1 / 127.5, "The scale covers max x = 1, not max|x| = 3: −3 would be clipped to −1.0039."),
        (3 / 127, "Divided by 127, which is another engine's rule: here it is half of the 255 steps."),
        (3 / 128, "Divided by 128, which is another engine's rule: here it is half of the 255 steps."),
    ],
)
### BEGIN HIDDEN TESTS
check_scale(
    "symmetric_scale([-4, -1], 8 bits), all negative",
    f32(-4, -1),
    8,
    means=[(2**-23, "max x is negative here: take the largest |x|.")],
)
check_scale("symmetric_scale([0.5, -0.25], 2 bits)", f32(0.5, -0.25), 2)
check_scale("symmetric_scale([0, 0], 4 bits), the scale is 2⁻²³", f32(0, 0), 4)
### END HIDDEN TESTS

# %% [markdown]
# ## Back to the question
#
# −1, 0, 0.3 and 2 on two bits: your guess, and what came out.

# %%
result = (float(qparams.scale), int(qparams.zero_point), float(fake_quantize(f32(0.3), qparams)[0]))
print("guess ", guess)
print("result", result)
assert result == (1.0, 1, 0.0)

# %% [markdown]
# **The surprise in a sentence.** A symmetric int8 grid made for ±3 gives −3.0118 and 2.9882: the one number
# for which the grid was made is not on it.
#
# **What this lesson does not cover.** Arithmetic with the integers (lesson 03), one scale for each channel
# (07) or group (11), choosing the clip point from data (05), a gradient through rounding (06), and the
# other engines' rules (08). And grids whose marks are not evenly spaced, such as the small float formats:
# this course stays with even ones.

# %% [markdown]
# ## Sources
#
# - B. Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
#   Inference*, 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877), equation 1: the grid, and zero
#   on it.
# - R. Krishnamoorthi, *Quantizing deep convolutional networks for efficient inference*, 2018,
#   [arXiv:1806.08342](https://arxiv.org/abs/1806.08342), section 2: affine and symmetric.
# - T. Dettmers et al., *LLM.int8()*, 2022, [arXiv:2208.07339](https://arxiv.org/abs/2208.07339): outliers.
# - torch 2.13: `torch.ao.quantization.MinMaxObserver`, `torch.quantize_per_tensor`,
#   `torch.fake_quantize_per_tensor_affine`.
# - Threads: pytorch [#23838](https://github.com/pytorch/pytorch/issues/23838) and
#   [#108646](https://github.com/pytorch/pytorch/issues/108646) (zero in the range),
#   [#48473](https://github.com/pytorch/pytorch/issues/48473) (where a symmetric zero point lies),
#   [#105085](https://github.com/pytorch/pytorch/issues/105085) (the rounding formula),
#   [#180990](https://github.com/pytorch/pytorch/pull/180990) (127.5 or not).
#
# **Left open.** We trained a network without looking. Where do its gradients come from, and what is the
# gradient of a function that rounds? Lesson 02 builds the machine that answers the first, and runs into the
# second.
