# %% [markdown]
# # 07 Convolution, batch norm, per-channel weights
#
# *One channel of weights reaches ±1, the next ±0.01; on one int8 scale, how many codes are left for the second?*
#
# Lessons 04 to 06 quantized Linear layers. A network for images adds three things: a window that slides
# over the image, a batch norm behind it, and many small filters whose sizes differ. This lesson puts them on
# integers, one after the other, and ends with a small network that reads digits at eight, four and two bits.
#
# We need lessons 03 (the int32 sum), 05 (calibration, static layers) and 06 (QAT).

# %% tags=["exercise-setup"]
import copy

import matplotlib.pyplot as plt
import numpy as np
from lesson_tools import COLOURS, check, compare, quiet_torch, show_versions, torch_or_recorded, use_style

import minquant as mq
from minquant import functional as F
from minquant import nn, optim
from minquant import quant as mqq
from minquant.data import batches, load_digits

# %%
show_versions()
use_style()
torch = quiet_torch()  # None where torch is not installed

# %% [markdown]
# ## What you will be able to do
#
# After this lesson you can
#
# - say why weights get one scale an output channel, and why never one an input channel;
# - write a convolution of integers as one matrix product, its padding included;
# - fold a batch norm into the layer before it, by hand and in NumPy;
# - say which pooling is exact on integers, and how often the other one is not;
# - train a convolutional network with quantization, freeze its batch norms, and re-estimate them;
# - find out whether a "quantized" network still convolves in float.

# %% [markdown]
# ## Notation
#
# | written | means |
# | --- | --- |
# | `x`, `w`, `b` | real numbers: an activation, a weight, a bias |
# | `q` | an integer |
# | `scale`, s; `zero_point`, z | the step of a grid; the integer that stands for real 0 |
# | `qmin`, `qmax` | the ends of the grid |
# | `acc` | the sum of integer products, int32 |
# | γ, β | the gain and shift that a batch norm learns, one of each a channel |
# | μ, σ², ε | the channel's mean and variance; a small number that keeps 1/√(σ² + ε) finite |
# | amax | the largest \|w\| |
# | (N, C, H, W) | images, channels, rows, columns |
# | rint, inv | to the nearest integer, a half to the even one; 1/s in float32 |

# %% [markdown]
# ## The question
#
# A convolution has one small filter for each of its output channels, and nothing keeps the filters equally
# large. Take two channels. The weights of the first lie between −1 and 1, those of the second between −0.01
# and 0.01. We give both one symmetric int8 scale. Of the 256 codes, how many does the second channel still
# use? And how many dB of signal over error does that leave, where eight bits usually give about 48?

# %%
guess = None  # for example: (25, 20)

# %% [markdown]
# ## 1 · One scale for two channels
#
# By hand. The largest weight is 1, so s = 1/127.5 = 0.00784. The second channel ends at 0.01, that is
# 0.01/0.00784 = 1.275 steps, and rint makes **1** of it. So the second channel has the codes −1, 0 and 1:
# three. Everything smaller than half a step, 0.0039, becomes 0.

# %% [markdown]
# With a scale of its own, s = 0.01/127.5, the second channel has all its codes back. We measure with the
# *signal-to-quantization-noise ratio* of lesson 01, in dB: ten times the logarithm of the signal's square over
# the error's square. The weights here are evenly spread, 1,001 a channel.

# %%
spread = np.linspace(-1, 1, 1001)
w = np.stack([spread, 0.01 * spread]).astype(np.float32)  # (2, 1001): two output channels
one_scale = mqq.QSpec(symmetric=True)
a_channel = mqq.QSpec(symmetric=True, granularity=mqq.PerChannel(0))


def on_its_grid(w, spec):
    """w as integers on the grid that its own range makes."""
    return mqq.quantize(w, mqq.choose_qparams(*spec.granularity.min_max(w), spec))


def sqnr_db(x, y):
    return 10 * np.log10(np.sum(x.astype(np.float64) ** 2) / np.sum((x.astype(np.float64) - y) ** 2))


quality = {}
for name, spec in {"one scale": one_scale, "per channel": a_channel}.items():
    q = on_its_grid(w, spec)
    codes = [len(np.unique(channel)) for channel in q.int_repr()]
    quality[name] = [sqnr_db(before, after) for before, after in zip(w, q.dequantize(), strict=True)]
    print(f"{name:12} codes used {codes}   dB {np.round(quality[name], 1)}")
assert np.unique(on_its_grid(w, one_scale).int_repr()[1]).tolist() == [-1, 0, 1]
assert [f"{db:.1f}" for db in (*quality["one scale"], *quality["per channel"])] == ["48.1", "8.8", "48.1", "48.1"]

# %% [markdown]
# Three codes and 8.8 dB, where the neighbour has 48.1. The second channel has not lost a few bits, it has
# become a sketch of itself. A scale of its own gives all 48.1 back and costs four bytes.

# %% [markdown]
# PyTorch's observers see it the same way. We compare the integers of both grids, for a handful of weights.

# %%
few = np.array([[1, -0.5, 0.25, 0.1], [0.01, -0.005, 0.0025, 0.001]], np.float32)


def torch_codes(torch, per_channel):
    from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

    x = torch.tensor(few)
    if not per_channel:
        observer = MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
        observer(x)
        s, z = observer.calculate_qparams()
        return torch.quantize_per_tensor(x, float(s), int(z), torch.qint8).int_repr().numpy()
    observer = PerChannelMinMaxObserver(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    observer(x)
    return torch.quantize_per_channel(x, *observer.calculate_qparams(), 0, torch.qint8).int_repr().numpy()


recorded = {False: [[127, -64, 32, 13], [1, -1, 0, 0]], True: [[127, -64, 32, 13], [127, -64, 32, 13]]}
for per_channel, spec in ((False, one_scale), (True, a_channel)):
    theirs = torch_or_recorded(lambda torch, p=per_channel: torch_codes(torch, p), np.array(recorded[per_channel]))
    assert compare("a scale a channel" if per_channel else "one scale", on_its_grid(few, spec), theirs)

# %% [markdown]
# To *see* it, we take fewer bits and a milder case: three bits, and a second channel seven times narrower than
# the first. Each panel shows one channel on one grid, the horizontal axis cut to that channel's weights. The
# blue lines are points of the grid, and the numbers above them say how many of the 1,000 weights go there.

# %%
rng = np.random.default_rng(7)
shape = np.clip(rng.normal(0, 0.36, (2, 1000)), -1, 1)
channels = (shape / np.abs(shape).max(axis=1, keepdims=True) * [[1], [0.14]]).astype(np.float32)
grids = {"one grid for both": mqq.QSpec(bits=3, symmetric=True)}
grids["two grids"] = mqq.QSpec(bits=3, symmetric=True, granularity=mqq.PerChannel(0))
counts = {}
figure, axes = plt.subplots(2, 2, figsize=(8.6, 5.0), sharex="row", sharey=True)
for column, (name, spec) in zip(axes.T, grids.items(), strict=True):
    quantized = on_its_grid(channels, spec)
    steps = np.broadcast_to(quantized.qparams.scale, 2)
    for i, (axis, step) in enumerate(zip(column, steps, strict=True)):
        axis.hist(channels[i], bins=40, color=COLOURS["float"], alpha=0.55)
        counts[name, i] = {}
        for q in range(-4, 4):
            n = counts[name, i][q] = int((quantized.int_repr()[i] == q).sum())
            if abs(q * step) <= 1.16 * np.abs(channels[i]).max():
                axis.axvline(q * step, ymax=0.86, color=COLOURS["minquant"])
                axis.text(q * step, 108, str(n), ha="center", color=COLOURS["minquant"])
        axis.set(ylim=(0, 119), yticks=[0, 50, 100])
        axis.set_title(f"channel {i + 1}, {name}: step {step:.3f}", fontsize=11)
        axis.grid(axis="x", visible=False)
for axis, reach in zip(axes[:, 0], (1.28, 1.28 * 0.14), strict=True):
    axis.set(xlim=(-reach, reach), ylabel="weights a bin, of 1,000")
for axis in axes[1]:
    axis.set_xlabel("weight (value)")
plt.show()
assert counts["one grid for both", 1][0] == 1000 and counts["two grids", 1][0] < 500

# %% [markdown]
# Below left, the second channel meets a grid whose points are wider apart than all of its weights: every one
# of the 1,000 becomes 0, and the channel is gone. Below right, on a grid of its own, it is as well off as its
# neighbour above. The neighbour itself has lost nothing: its two panels are the same.

# %% [markdown]
# ### Exercise: a scale a channel
#
# The symmetric int8 rule of lesson 01 for each channel: amax/127.5, but never less than 2⁻²³, the smallest
# scale that minquant and PyTorch use. Which axis counts the output channels is an argument: it is 0 for
# `Linear` and `Conv2d`, whose weights are (output, input, …), and 1 for PyTorch's `ConvTranspose2d`, whose
# weights are (input, output, …).

# %% tags=["exercise-setup"]
SMALLEST = np.float32(2**-23)
two_channels = np.array([[[0.5, -1.0]], [[0.01, 0.005]]], np.float32)  # (2 outputs, 1 input, 2)


def channel_scale_specification(w, axis=0):
    """One channel after the other, one weight after the other."""
    scales = []
    for channel in range(w.shape[axis]):
        amax = np.float32(0)
        for weight in np.take(w, channel, axis=axis).ravel():
            amax = max(amax, abs(weight))
        scales.append(max(amax / np.float32(127.5), SMALLEST))
    return scales


# %% answer="channel_scale" lines=1
def channel_scale(w, axis=0):
    """float32 weights -> the scale of each channel along `axis`, (channels,). [1 line]"""
    ### BEGIN SOLUTION
    return np.maximum(np.abs(np.moveaxis(w, axis, 0)).reshape(w.shape[axis], -1).max(axis=1) / 127.5, SMALLEST)
    ### END SOLUTION


# %% check="channel_scale" points=1
# The scales are below 0.008 and two float32 roundings of them below 1e-9.
check(
    "channel_scale of [[0.5, -1]] and [[0.01, 0.005]]",
    channel_scale(two_channels),
    channel_scale_specification(two_channels),
    means=[
        ([1 / 127.5, 1 / 127.5], "One scale for both: the largest weight of *each* channel is wanted."),
        ([0.5 / 127.5, 0.01 / 127.5], "−1 was overlooked: the largest *absolute* value counts."),
        ([1 / 127, 0.01 / 127], "Divided by 127: that is another engine's rule (lesson 08), here it is 127.5."),
    ],
    within=1e-9,
)
### BEGIN HIDDEN TESTS
transposed = np.array([[[[1.0]], [[0.1]], [[0.5]]], [[[-2.0]], [[0.2]], [[0.25]]]], np.float32)  # (2 in, 3 out, 1, 1)
check(
    "the weight of a ConvTranspose2d(2, 3, 1): axis=1",
    channel_scale(transposed, axis=1),
    channel_scale_specification(transposed, axis=1),
    means=[([1 / 127.5, 2 / 127.5], "Two scales for three outputs: these are the input channels' (axis 0).")],
    within=1e-9,
)
pruned = np.array([[0.0, 0.0], [0.3, -0.6]], np.float32)
check(
    "a channel of zeros",
    channel_scale(pruned),
    channel_scale_specification(pruned),
    means=[([0, 0.6 / 127.5], "A scale of 0: quantizing divides by it, and 0/0 is nan. Use at least 2⁻²³.")],
    within=1e-9,
)
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · Which scales may differ
#
# Why one scale an *output* channel? Lesson 03 wrote an output as a sum of integer products. A scale that is the
# same for every term of the sum can leave it:
#
# $$y_m = \sum_k s_x q_{x,k} \cdot s_m q_{m,k} = s_x \, s_m \sum_k q_{x,k} \, q_{m,k}$$
#
# The sum is over inputs k. The scale s_m changes from output to output and stays still inside each sum. It is
# one multiplication afterwards.

# %% [markdown]
# A scale that changes with the input k stays *inside*. By hand: the weight integers are 3 and 4, their scales
# 1 and 0.01. The inputs 4, 0 give the integer sum 12 and mean 4·3 = 12. The inputs 0, 3 give the same sum 12
# and mean 3·0.04 = 0.12. From a 12 nobody can tell which.

# %%
inputs = np.array([[4, 0], [0, 3]])
qw, scales = np.array([3, 4]), np.array([1.0, 0.01])
print("integer sums        ", inputs @ qw)
print("scales by input     ", inputs @ (qw * scales), " no factor makes this of the sums")
print("scales by output    ", (inputs @ qw)[:, None] * scales, " a factor a column")
assert (inputs @ qw).tolist() == [12, 12] and np.allclose(inputs @ (qw * scales), [12, 0.12])

try:
    by_input = on_its_grid(np.array([[[[3]], [[0.04]]]], np.float32), mqq.QSpec(granularity=mqq.PerChannel(1)))
    mqq.QuantizedConv2d(by_input, None, mqq.QParams(1.0, 0, mqq.QSpec(signed=False)), "reference")
except ValueError as refused:
    print("minquant:", refused)
    assert "PerChannel(axis=1)" in str(refused)

# %% [markdown]
# For the same reason an activation has one scale for all its channels: its channels are the inputs of the next
# layer. A channel of activations that is far larger than the others is a real problem, and the remedy is to
# move its size into the weights, beforehand; that is another story.

# %% [markdown]
# ## 3 · A window that slides
#
# A convolution lays a small filter over each place of the image, multiplies, and adds. By hand: the numbers
# 1 to 9 as an image, and the filter [1, 0; 0, −1]. At the upper left place, 1·1 + 5·(−1) = −4. One to the
# right, 2 − 6 = −4. Every diagonal step in this image adds 4, so all four places give **−4**.

# %%
image = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
kernel = np.array([[[[1, 0], [0, -1]]]], np.float32)


def torch_conv(torch):
    return torch.nn.functional.conv2d(torch.tensor(image), torch.tensor(kernel)).numpy()


by_hand = [[np.sum(image[0, 0, i : i + 2, j : j + 2] * kernel) for j in range(2)] for i in range(2)]
ours = F.conv2d(image, kernel)
assert compare("1…9 with [1, 0; 0, −1]", ours, torch_or_recorded(torch_conv, np.full((1, 1, 2, 2), -4.0)))
assert np.array_equal(ours.data[0, 0], by_hand) and np.all(ours.data == -4)

# %% [markdown]
# Each place needs the same thing: a sum of products. So we write the patch under the window as a row, one row a
# place, and the filter as a column. The convolution is then the matrix product of lesson 03. The rearranging
# has a name, *im2col*: image to columns.

# %%
rows = np.stack([image[0, :, i : i + 2, j : j + 2].ravel() for i in range(2) for j in range(2)])
print("rows, one a place:\n", rows.astype(int))
print("filter:", kernel.reshape(1, -1).astype(int), " product:", (rows @ kernel.reshape(1, -1).T).ravel())
assert rows.shape == (4, 4) and np.all(rows @ kernel.reshape(1, -1).T == -4)

# %% [markdown]
# Nothing in lesson 03 has to change: acc is int32, zero points are subtracted or folded away, and each output
# channel is a column of the product with its own scale. The price is memory. A 3×3 window copies nearly every
# pixel nine times, so fast kernels gather rows as they go.

# %% [markdown]
# ## 4 · What lies beyond the border
#
# To keep an image's size, a convolution pads it, and the padding is *real zero*. On integers real zero is z.
# The integer 0 is something else: the smallest number of the grid. Filling memory with zeros is what every
# array library does by default, so this bug is written again and again
# ([tvm#4807](https://github.com/apache/tvm/pull/4807),
# [executorch#13576](https://github.com/pytorch/executorch/pull/13576)).

# %% [markdown]
# By hand, with s = 2/255 and z = 128. The image −1, 0.5; 0.5, 1 has the integers 1, 192; 192, 255. A 3×3 filter
# of ones at the upper left place covers these four and five pixels of padding.
#
# - padded with z: −127 + 64 + 64 + 127 = 128 steps, 128·2/255 = **1.00**;
# - padded with 0: five times −128 more, −512 steps, **−4.02**.
#
# One padding pixel with the integer 0 counts as −128·2/255 = −1.00, as dark as the grid goes.

# %%
uint8 = mqq.QSpec(signed=False)
grid, wide = mqq.QParams(2 / 255, 128, uint8), mqq.QParams(4 / 255, 128, uint8)
corner = np.array([[[[-1, 0.5], [0.5, 1]]]], np.float32)
q = mqq.quantize(corner, grid)
ones = mqq.quantize(np.ones((1, 1, 3, 3), np.float32), mqq.QParams(1.0, 0, one_scale))
layer = mqq.QuantizedConv2d(ones, None, wide, "reference", padding=1)

for name, beyond in (("z = 128", 128), ("integer 0", 0)):
    padded = np.pad(q.int_repr()[0, 0].astype(int), 1, constant_values=beyond)
    acc = (padded[:3, :3] - 128).sum()
    print(f"padded with {name:10} acc {acc:5}   real {acc * 2 / 255:.2f}")
    assert (acc, f"{acc * 2 / 255:.2f}") == ((128, "1.00") if beyond else (-512, "-4.02"))


def torch_padded(torch):
    conv = torch.ao.nn.quantized.Conv2d(1, 1, 3, padding=1, bias=False)
    conv.set_weight_bias(torch.quantize_per_tensor(torch.ones(1, 1, 3, 3), 1.0, 0, torch.qint8), None)
    conv.scale, conv.zero_point = 4 / 255, 128
    return conv(torch.quantize_per_tensor(torch.tensor(corner), 2 / 255, 128, torch.quint8)).int_repr().numpy()


assert compare("padded", layer(q), torch_or_recorded(torch_padded, np.full((1, 1, 2, 2), 192)))
assert np.round(layer(q).dequantize(), 2).tolist() == [[[[1, 1], [1, 1]]]]

# %% [markdown]
# Now a picture. A handwritten 3, dark ink on light paper, its pixels in −1…1, is blurred by a 3×3 filter of ninths
# on four bits: 16 greys, z = 8. Real zero is a middle grey, so padding darkens the rim of the paper a little, in
# float too. The integer 0 is black.

# %%
digits = load_digits()
digit = 1 - 2 * digits.x_train[digits.y_train == 3][0].reshape(8, 8)
digit = np.pad(digit, 2, constant_values=1)[None, None]  # (1, 1, 12, 12): with a margin of paper
four_bits = mqq.QParams(2 / 15, 8, mqq.QSpec(bits=4, signed=False))
ninths = mqq.quantize(np.full((1, 1, 3, 3), 1 / 9, np.float32), mqq.QParams(1 / 9, 0, one_scale))
q = mqq.quantize(digit, four_bits)
framed = mqq.QTensor(np.pad(q.int_repr(), ((0, 0), (0, 0), (1, 1), (1, 1))), four_bits)  # np.pad adds integer 0

blurred = {
    "float": F.conv2d(digit, np.full((1, 1, 3, 3), 1 / 9, np.float32), padding=1).data,
    "4 bits, padded with z": mqq.QuantizedConv2d(ninths, None, four_bits, "reference", padding=1)(q).dequantize(),
    "4 bits, padded with 0": mqq.QuantizedConv2d(ninths, None, four_bits, "reference")(framed).dequantize(),
}
error = {name: np.abs(y - blurred["float"])[0, 0] for name, y in blurred.items()}
right, wrong = error["4 bits, padded with z"], error["4 bits, padded with 0"]
print(f"largest error: {right.max():.2f} padded with z; padded with 0, {wrong.max():.2f} on the border,", end=" ")
print(f"{wrong[1:-1, 1:-1].max():.2f} inside")
assert right.max() <= 2 / 15 and wrong.max() > 0.4 and np.array_equal(wrong[1:-1, 1:-1], right[1:-1, 1:-1])

# %%
figure, axes = plt.subplots(1, 4, figsize=(9.4, 2.6))
for axis, (name, y) in zip(axes, {"the image": digit, **blurred}.items(), strict=True):
    picture = axis.imshow(y[0, 0], cmap="gray", vmin=-1.1, vmax=1.1)
    axis.set(xticks=[], yticks=[])
    axis.set_title(name, fontsize=10.5)
    axis.spines[:].set_visible(True)
    axis.grid(False)
figure.colorbar(picture, ax=axes, label="value", shrink=0.9)
plt.show()

# %% [markdown]
# The wrong one has a frame. Inside, both are equal, so a test that looks at the middle of an image, or at a mean,
# passes. And the bug sleeps: behind a ReLU, z is 0, and the integer 0 *is* real zero. It wakes up with
# the first input that can be negative.

# %% [markdown]
# ### Exercise: im2col
#
# The integers of one image, (channels, rows, columns), become one row a place. A place's row holds its patch,
# channel by channel, line by line: the order in which `weight.reshape(M, -1)` holds a filter. Places go from
# left to right, then down.

# %% tags=["exercise-setup"]
border_image = np.array([[[1, 192], [192, 255]]], np.uint8)  # part 4's, z = 128
ones_filter = np.ones(9, np.int32)


def im2col_specification(q, k, stride, padding, zero_point):
    """Place by place, tap by tap; what lies outside the image is real zero."""
    channels, height, width = q.shape
    rows = []
    for i in range(-padding, height + padding - k + 1, stride):
        for j in range(-padding, width + padding - k + 1, stride):
            row = []
            for c in range(channels):
                for y in range(i, i + k):
                    for x in range(j, j + k):
                        inside = 0 <= y < height and 0 <= x < width
                        row.append(int(q[c, y, x]) if inside else zero_point)
            rows.append(row)
    return rows


# %% answer="im2col" lines=6
def im2col(q, k, stride, padding, zero_point):
    """uint8 (channels, rows, columns) -> (places, channels · k · k), for a window k × k. [6 lines]"""
    ### BEGIN SOLUTION
    border = ((0, 0), (padding, padding), (padding, padding))
    padded = np.pad(q, border, constant_values=zero_point)
    tops = range(0, padded.shape[1] - k + 1, stride)
    lefts = range(0, padded.shape[2] - k + 1, stride)
    patches = [padded[:, i : i + k, j : j + k] for i in tops for j in lefts]
    return np.stack([patch.ravel() for patch in patches])
    ### END SOLUTION


# %% check="im2col" points=3
nine = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
check(
    "im2col(1…9, k=2, stride=1, padding=0, zero_point=128)",
    im2col(nine, 2, 1, 0, 128),
    im2col_specification(nine, 2, 1, 0, 128),
    means=[
        ([[1, 4, 2, 5], [2, 5, 3, 6], [4, 7, 5, 8], [5, 8, 6, 9]], "The patch was read column by column."),
        ([[1, 2, 4, 5], [4, 5, 7, 8], [2, 3, 5, 6], [5, 6, 8, 9]], "Places go from left to right, then down."),
        ([[5, 4, 2, 1], [6, 5, 3, 2], [8, 7, 5, 4], [9, 8, 6, 5]], "The window was turned round."),
        ([[1, 2, 4, 5]], "The last place of each line is missing: the window may touch the border."),
    ],
)
steps = [(np.array(rows, np.int32) - 128) @ ones_filter * 2 / 255 for rows in (
    im2col(border_image, 3, 1, 1, 128), im2col_specification(border_image, 3, 1, 1, 128)
)]  # fmt: skip
check(
    "the sum under a 3×3 window over [1, 192; 192, 255], padding=1, s 2/255, z 128",
    steps[0],
    steps[1],
    means=[([-1024 / 255] * 4, "−4.02 for 1.00: the padding is the integer 0, which is real −1.00 here; pad with z.")],
    within=1e-9,
)
### BEGIN HIDDEN TESTS
two = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
check(
    "two channels, k=2",
    im2col(two, 2, 1, 0, 128),
    im2col_specification(two, 2, 1, 0, 128),
    means=[([[0, 4, 1, 5, 2, 6, 3, 7]], "The channel runs fastest; it must run slowest, as in weight.reshape(M, -1).")],
)
four = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
check(
    "4 × 4, k=3, stride=2, padding=1",
    im2col(four, 3, 2, 1, 7),
    im2col_specification(four, 3, 2, 1, 7),
    means=[(im2col_specification(four, 3, 1, 1, 7), "The window moved by 1 instead of by the stride.")],
)
wide = np.arange(15, dtype=np.uint8).reshape(1, 3, 5)
check("3 × 5, k=2, stride=2: a row is left over", im2col(wide, 2, 2, 0, 0), im2col_specification(wide, 2, 2, 0, 0))
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · Batch norm disappears
#
# A batch norm shifts and stretches each channel. After training its numbers stand still, and then it is only a
# line, drawn through another line:
#
# $$\gamma \, \frac{w x + b - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta = w' x + b'
# \qquad w' = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}} \, w
# \qquad b' = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}} (b - \mu) + \beta$$

# %% [markdown]
# By hand: w 2, b 1, γ 3, β ½, μ 4, σ² 4, ε 0. The gain is 3/√4 = 1½, so w' = **3**, and
# b' = 1½·(1 − 4) + ½ = **−4**. A test with x = 2: the long way, 2·2 + 1 = 5, then 3·(5 − 4)/2 + ½ = 2. The
# short way, 3·2 − 4 = 2.

# %%
bn = nn.BatchNorm1d(1, eps=0.0)
for name, value in {"weight": 3, "bias": 0.5, "running_mean": 4, "running_var": 4}.items():
    getattr(bn, name).data[:] = value
folded = mqq.fold_batch_norm(mq.Tensor([[2.0]]), mq.Tensor([1.0]), bn)


def torch_fold(torch):
    w, b, mean, var, gain, shift = (torch.tensor([v]) for v in (2.0, 1.0, 4.0, 4.0, 3.0, 0.5))
    w, b = torch.nn.utils.fuse_linear_bn_weights(w[:, None], b, mean, var, 0.0, gain, shift)
    return np.array([w.item(), b.item()])


ours = np.array([tensor.item() for tensor in folded])
assert compare("w', b'", ours, torch_or_recorded(torch_fold, np.array([3.0, -4.0]))) and ours.tolist() == [3, -4]

# %% [markdown]
# So the batch norm costs nothing at inference; and quantization *must* fold it, because w' is the weight that
# meets the integers. Three things hide in these two lines.

# %% [markdown]
# **A bias appears.** Convolutions before a batch norm usually have none (μ would remove it). The folded one has
# one.
#
# **ε belongs under the root.** A channel that never fires has σ² = 0. With γ = 3 and ε = 10⁻⁵ its gain is
# 3/√10⁻⁵ = 949. Beside the root it would be 300,000.
#
# **Each channel has its own gain.** Filters of equal size become unequal, and a channel that hardly varies is
# blown up. That is where part 1's channels come from in practice.

# %% [markdown]
# And here two halves of this lesson meet. A gain that multiplies a whole channel also multiplies that
# channel's amax, hence its scale. So with a scale a channel, folding should not change a single integer. We try
# it on gains between 0.01 and 1.

# %%
rng = np.random.default_rng(0)
conv, bn = nn.Conv2d(4, 64, 3, bias=False), nn.BatchNorm2d(64)
conv.weight.data[:] = rng.standard_normal(conv.weight.shape)
bn.weight.data[:] = np.geomspace(0.01, 1, 64)
w_folded, _ = mqq.fold_batch_norm(conv.weight, None, bn)

moved = {}
for name, spec in {"one scale": one_scale, "per channel": a_channel}.items():
    before, after = on_its_grid(conv.weight.data, spec), on_its_grid(w_folded.data, spec)
    differ = before.int_repr() != after.int_repr()
    largest = np.abs(conv.weight.data) == np.abs(conv.weight.data).max(axis=(1, 2, 3), keepdims=True)
    moved[name] = int(differ.sum()), int((differ & ~largest).sum())
    quality = sqnr_db(w_folded.data[:8], after.dequantize()[:8])
    print(
        f"{name:12} {moved[name][0]:5} of {differ.size} integers changed, {moved[name][1]:5} of them not an amax; ",
        end="",
    )
    print(f"the 8 smallest channels {quality:5.1f} dB")
assert moved["per channel"][1] == 0 and moved["one scale"][1] > 1500

# %% [markdown]
# With a scale a channel, folding changes nothing but some of the largest weights themselves. Those lie exactly on
# the boundary at 127.5 steps (lesson 01), where the last bit of a product decides between two codes. With one
# scale, the small channels sink, as in part 1.

# %% [markdown]
# ### Exercise: fold a batch norm
#
# For a weight (outputs, inputs), a bias or None, and the batch norm's arrays, one number an output.

# %% tags=["exercise-setup"]
hand_case = (np.array([[2.0]]), np.array([1.0]), np.array([3.0]), np.array([0.5]), np.array([4.0]), np.array([4.0]))


def fold_bn_specification(w, b, gamma, beta, mean, var, eps):
    """The folded layer's weight and bias, output by output."""
    weights, biases = [], []
    for m in range(len(w)):
        gain = gamma[m] / (var[m] + eps) ** 0.5
        weights.append([gain * weight for weight in w[m]])
        biases.append(gain * ((0.0 if b is None else b[m]) - mean[m]) + beta[m])
    return weights, biases


# %% answer="fold_bn" lines=3
def fold_bn(w, b, gamma, beta, mean, var, eps):
    """(w', b') of a layer w (outputs, inputs), b (outputs,) or None, and the batch norm behind it. [3 lines]"""
    ### BEGIN SOLUTION
    b = np.zeros(len(w)) if b is None else b
    gain = gamma / np.sqrt(var + eps)
    return w * gain[:, None], gain * (b - mean) + beta
    ### END SOLUTION


# %% check="fold_bn" points=2
check(
    "w 2, b 1, γ 3, β 0.5, μ 4, σ² 4, ε 0: w', b'",
    tuple(fold_bn(*hand_case, 0.0)),
    fold_bn_specification(*hand_case, 0.0),
    means=[
        (([[3]], [2]), "b' is 2: μ was not subtracted from the bias."),
        (([[1.5]], [-1.75]), "Divided by the variance 4, not by its root 2."),
        (([[3]], [-3.75]), "β was multiplied by the gain; it is added behind it."),
        (([[3]], [-4.5]), "β is missing."),
    ],
)
### BEGIN HIDDEN TESTS
_, _, *statistics = hand_case
check(
    "the same without a bias",
    tuple(fold_bn(hand_case[0], None, *statistics, 0.0)),
    fold_bn_specification(hand_case[0], None, *statistics, 0.0),
    means=[(([[3]], [0.5]), "Without a bias μ remains: b' = gain·(0 − μ) + β.")],
)
silent = (np.array([[1.0]]), None, np.array([3.0]), np.array([0.0]), np.array([0.0]), np.array([0.0]))
# Gains below 1,000: three float64 roundings of them are far below 1e-9.
check(
    "w 1, γ 3, σ² 0, ε 1e-5: w', b'",
    tuple(fold_bn(*silent, 1e-5)),
    fold_bn_specification(*silent, 1e-5),
    means=[(([[3 / 1e-5]], [0]), "A gain of 300,000 for 949: ε belongs under the root.")],
    within=1e-9,
)
w = np.array([[1.0, 2.0], [3.0, 4.0]])
zero, one, gamma = np.zeros(2), np.ones(2), np.array([1.0, 10.0])
check(
    "w [1, 2; 3, 4], γ 1, 10",
    tuple(fold_bn(w, zero, gamma, zero, zero, one, 0.0)),
    fold_bn_specification(w, zero, gamma, zero, zero, one, 0.0),
    means=[(([[1, 20], [3, 40]], [0, 0]), "The gains went along the inputs: γ belongs to the outputs, the rows of w.")],
)
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · Pooling
#
# Pooling takes a window of values and gives one. Rounding never changes an order: if a ≥ b then q(a) ≥ q(b). So
# the *largest* of the integers is the integer of the largest. A mean is another matter.

# %% [markdown]
# By hand, s = 1, the values 0.4 and 0.9, with the integers 0 and 1:
#
# - max: the largest value 0.9 gives 1; the largest integer is **1**. They agree.
# - mean: 0.65 gives **1**; the mean of the integers, ½, is a tie and goes to the even **0**.

# %%
whole = mqq.QParams(1.0, 0, uint8)


def both_ways(x, pool, grid):
    """Integers of the pooled values, and pooled integers."""
    q = mqq.quantize(x, grid)
    on_integers = pool(q) if isinstance(pool, nn.MaxPool2d) else mqq.BetweenGrids(pool, grid, "reference")(q)
    return mqq.quantize(pool(x).data, grid).int_repr(), on_integers.int_repr()


x = np.array([[[[0.4, 0.9]]]], np.float32)
print("max ", [int(v.item()) for v in both_ways(x, nn.MaxPool2d((1, 2)), whole)])
print("mean", [int(v.item()) for v in both_ways(x, nn.AvgPool2d((1, 2)), whole)])
assert [v.item() for v in both_ways(x, nn.MaxPool2d((1, 2)), whole)] == [1, 1]
assert [v.item() for v in both_ways(x, nn.AvgPool2d((1, 2)), whole)] == [1, 0]

windows = np.random.default_rng(0).uniform(0, 1, (100_000, 1, 2, 2)).astype(np.float32)
grid = mqq.choose_qparams(0, 1, uint8)
for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
    of_values, of_integers = (v.astype(int) for v in both_ways(windows, pool, grid))
    differ = of_values != of_integers
    print(f"{type(pool).__name__}: {differ.mean():.1%} of 100,000 differ, by {np.abs(of_values - of_integers).max()}")
    assert differ.sum() == 0 if isinstance(pool, nn.MaxPool2d) else f"{differ.mean():.1%}" == "14.6%"
assert np.abs(of_values - of_integers).max() == 1

# %% [markdown]
# Of 100,000 windows of 2×2, max pooling differs in none, and mean pooling in 14.6%, by one step. That number can be
# derived. The mean of four integers ends in 0, ¼, ½ or ¾, a quarter of the time each. At ½ it is a tie, and
# half of those fall to the wrong side: 1/8. At ¼ or ¾ four rounding errors must add up to more than one
# step, which has probability 1/24, and half of the windows are such: 1/48. Together 7/48 = **14.58%**.

# %%
p = 1 / 8 + 1 / 48
margin = 4 * np.sqrt(p * (1 - p) / 100_000)  # four standard deviations of a share of 100,000
print(f"derived {p:.2%} ± {margin:.2%}, counted {differ.mean():.2%}")
assert abs(differ.mean() - p) < margin


def torch_pools(torch):
    x = torch.quantize_per_tensor(torch.tensor([[[[0.4, 0.9]]]]), 1.0, 0, torch.quint8)
    pools = (torch.nn.MaxPool2d((1, 2)), torch.nn.AvgPool2d((1, 2)))
    return np.array([pool(x).int_repr().item() for pool in pools])


ours = [both_ways(x, pool((1, 2)), whole)[1].item() for pool in (nn.MaxPool2d, nn.AvgPool2d)]
assert compare("pooled 0.4, 0.9: max, mean", ours, torch_or_recorded(torch_pools, np.array([1, 0])))

# %% [markdown]
# ## 7 · A network for digits
#
# Now all of it together: three times convolution, batch norm, ReLU; then a max pool and a Linear. The images are
# lesson 01's digits, 8×8 pixels; the second convolution has stride 2 and leaves 4×4 of them. minquant's modules
# have PyTorch's names, so one function builds both networks.

# %%
CHANNELS, STRIDES = (1, 8, 16, 32), (1, 2, 1)
FUSED = [[f"conv{i}", f"bn{i}", f"relu{i}"] for i in (1, 2, 3)]


def build(model, nn, stubs):
    model.quant, model.dequant = stubs.QuantStub(), stubs.DeQuantStub()
    for i in (1, 2, 3):
        conv = nn.Conv2d(CHANNELS[i - 1], CHANNELS[i], 3, STRIDES[i - 1], padding=1, bias=False)
        setattr(model, f"conv{i}", conv)
        setattr(model, f"bn{i}", nn.BatchNorm2d(CHANNELS[i]))
        setattr(model, f"relu{i}", nn.ReLU())
    model.pool, model.flatten, model.fc = nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 2 * 2, 10)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        build(self, nn, nn)

    def forward(self, x):
        x = self.quant(x)
        for i in (1, 2, 3):
            x = getattr(self, f"relu{i}")(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        return self.dequant(self.fc(self.flatten(self.pool(x))))


# %%
def draw(seed):
    """The digits of a seed as images (N, 1, 8, 8), and an untrained network."""
    digits = load_digits(seed)
    mq.manual_seed(seed)
    images = digits._replace(x_train=digits.x_train.reshape(-1, 1, 8, 8), x_test=digits.x_test.reshape(-1, 1, 8, 8))
    return images, Net()


def train(model, digits, epochs, lr, freeze_at=None):
    """Adam on batches of 128; from epoch `freeze_at` on in tenths of steps, batch norms standing still (part 8)."""
    model.train()
    optimizer = optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        if epoch == freeze_at:
            model.apply(mqq.freeze_bn_stats)  # does nothing to a float model
            optimizer = optim.Adam(model.parameters(), lr=lr / 10)
        for x, y in batches(digits.x_train, digits.y_train, 128):
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(model(x), mq.Tensor(y)).backward()
            optimizer.step()
    return model.eval()


def accuracy(model, digits):
    with mq.no_grad():
        return np.mean(model(digits.x_test).data.argmax(axis=1) == digits.y_test)


digits, net = draw(seed=0)
train(net, digits, epochs=6, lr=0.01)
float_accuracy = accuracy(net, digits)
print(f"float, 6 epochs: {float_accuracy:.1%} of {len(digits.y_test)} test digits")
assert float_accuracy > 0.95

# %% [markdown]
# `fuse_modules` folds each batch norm and takes the ReLU along (lesson 05). Then as ever: prepare, calibrate,
# convert. In the report every layer should be on integers; what is not says why.

# %%
fused = mqq.fuse_modules(net, FUSED)


def static(model, x, qconfig):
    """Prepare, calibrate, convert."""
    prepared = mqq.prepare(model, qconfig)
    prepared(x)
    return mqq.convert(prepared)


integer_net = static(fused, digits.x_train[:500], mqq.get_default_qconfig())
print(mqq.report(integer_net))
print(f"\nfloat {float_accuracy:.1%}, static int8 {accuracy(integer_net, digits):.1%}")
assert abs(accuracy(integer_net, digits) - float_accuracy) < 0.015

# %% [markdown]
# Is the first convolution really im2col and one integer product? We build it in NumPy for one image, from part
# 3's formula, part 4's padding and part 5's folded bias.

# %%
qx = integer_net.quant(digits.x_test[:1])
conv1 = integer_net.conv1
rows = np.array(im2col_specification(qx.int_repr()[0], 3, 1, 1, int(qx.qparams.zero_point)), np.int32)
acc = (rows - qx.qparams.zero_point) @ conv1.weight.int_repr().reshape(8, -1).T.astype(np.int32)  # (64, 9) @ (9, 8)
y = acc.astype(np.float32) * (qx.qparams.scale * conv1.weight.qparams.scale) + conv1.bias  # (64, 8)
by_hand = mqq.quantize(np.maximum(y, 0), conv1.output).int_repr().T.reshape(1, 8, 8, 8)
assert compare("conv1, one image", by_hand[0, 0], conv1(qx).int_repr()[0, 0], columns=("by hand", "minquant"))
assert np.array_equal(by_hand, conv1(qx).int_repr())

# %% [markdown]
# And PyTorch? It folds, calibrates and converts the same float state. Its float convolutions add in another
# order than ours, so two calibrations could part in the last digit of a scale; we therefore hand our grids to its
# converted layers. The weights and biases it folds and quantizes itself. Which dialect its engines speak
# depends on the processor: older ones add two products in 16 bits (lesson 08), and `dialect_of` asks.

# %%
LAYERS = ("quant", "conv1", "conv2", "conv3", "pool", "fc")


def torch_net(torch):
    class TorchNet(torch.nn.Module):
        forward = Net.forward  # it only calls its parts, so torch can have it too

        def __init__(self):
            super().__init__()
            build(self, torch.nn, torch.ao.quantization)

    model = TorchNet()
    model.load_state_dict({name: torch.tensor(value.data) for name, value in net.state_dict().items()})
    return model.eval()


def torch_static(torch, engine, ours):
    import torch.ao.quantization as tq

    torch.backends.quantized.engine = engine
    model = tq.fuse_modules(torch_net(torch), FUSED)
    model.qconfig = tq.get_default_qconfig(engine)
    prepared = tq.prepare(model)
    prepared(torch.tensor(digits.x_train[:500]))
    converted = tq.convert(prepared)
    for name in ("conv1", "conv2", "conv3", "fc"):
        grid, layer = getattr(ours, name).output, getattr(converted, name)
        layer.scale, layer.zero_point = float(grid.scale), int(grid.zero_point)
    converted.quant.scale.fill_(float(ours.quant.qparams.scale))
    converted.quant.zero_point.fill_(int(ours.quant.qparams.zero_point))
    return converted


def outputs(model, x):
    """What each layer puts out, integers."""
    found = {}
    for name in LAYERS:
        getattr(model, name).register_forward_hook(lambda _, x, y, name=name: found.update({name: y.int_repr()}))
    model(x)
    return {name: np.asarray(q) for name, q in found.items()}


# %%
if torch:
    from minquant.crosscheck.processor import dialect_of

    for engine in ("x86", "qnnpack", "onednn"):
        ours = static(fused, digits.x_train[:500], mqq.get_default_qconfig(dialect_of(engine)))
        theirs = torch_static(torch, engine, ours)
        a, b = outputs(ours, digits.x_test), outputs(theirs, torch.tensor(digits.x_test))
        differ = {name: int((a[name] != b[name]).sum()) for name in LAYERS}
        weights = [np.sum(getattr(ours, n).weight.int_repr() != getattr(theirs, n).weight().int_repr().numpy())
                   for n in ("conv1", "conv2", "conv3", "fc")]  # fmt: skip
        total = sum(q.size for q in a.values())
        print(f"{engine:8} weights that differ {sum(weights)}; outputs by layer {differ}, of {total:,} in all")
        assert not any(differ.values()) and not any(weights) and total > 500_000
else:
    print("(torch is not installed: with torch 2.13.0 all integers of all layers were equal, on three engines)")

# %% [markdown]
# Three engines, six layers, more than half a million integers each: none differs. `minquant crosscheck` does the same
# with other networks, pools and seeds, and after training.

# %% [markdown]
# ## 8 · Batch norm while training
#
# QAT should round the weight that will be deployed, the *folded* one. But in training μ and σ² are those of the
# batch, and not known before the product. The way out (Jacob et al., section 3.2): fold with the running
# statistics, round, multiply; divide the gain out again; then let the batch norm do its work with the batch's.

# %% [markdown]
# So a training batch sees batch statistics and the deployed model sees running ones. In lesson 06 prepared and
# converted were equal; here that holds in `eval()`. We look at one batch in all three lives.

# %%
FOUR = mqq.get_default_qat_qconfig(weight_bits=4)


def qat_of(net, qconfig):
    """A copy of net, batch norms kept, prepared for training."""
    return mqq.prepare_qat(mqq.fuse_modules_qat(copy.deepcopy(net).train(), FUSED), qconfig)


aware = train(qat_of(net, FOUR), digits, epochs=1, lr=0.003)
x = digits.x_train[:128]


def lives(model):
    """Outputs of one batch: in training, in eval, converted."""
    with mq.no_grad():
        return [model.train()(x).data, model.eval()(x).data, mqq.convert(model)(x).data]


equal = {}
for name in ("batch statistics", "frozen"):
    training, evaluated, converted = lives(aware)
    equal[name] = np.array_equal(training, evaluated), np.array_equal(evaluated, converted)
    print(f"{name:17} training = eval: {equal[name][0]!s:5}  eval = converted: {equal[name][1]}")
    aware.apply(mqq.freeze_bn_stats)
assert equal == {"batch statistics": (False, True), "frozen": (True, True)}

# %% [markdown]
# `freeze_bn_stats` lets training use the running statistics from now on, which then stand still: all three are
# the same, bit for bit. The common recipe is to train on batch statistics first, and to freeze them
# for the last part, when they have settled, so that the weights can adapt to the numbers they will be
# deployed with.

# %% [markdown]
# Freezing needs statistics worth keeping. They were averaged over weights that have moved on since. And the
# rounding itself shifts them: on two bits a channel's weights change so much that its outputs no longer have the
# mean that its batch norm was told.

# %% [markdown]
# `reestimate_bn_stats` measures them again, for the weights as they are. It trains nothing; it only lets a few
# batches pass. To see what that alone does, we round our *float* network's weights to two bits, three seeds,
# and touch nothing but μ and σ².

# %%
TWO = mqq.get_default_qat_qconfig(weight_bits=2)
trained = {0: (digits, net)}
for seed in (1, 2):
    trained[seed] = draw(seed)
    train(trained[seed][1], trained[seed][0], epochs=6, lr=0.01)


def reestimated(seed):
    """Accuracy on two bits, no training: with the float network's statistics, and with new ones."""
    digits, net = trained[seed]
    some = [digits.x_train[i : i + 128] for i in range(0, 1280, 128)]
    model = qat_of(net, TWO)
    model.apply(mqq.freeze_bn_stats)  # ranges are watched, statistics stay
    with mq.no_grad():
        for x in some:
            model(x)
    before = accuracy(mqq.convert(model.eval()), digits)
    mqq.reestimate_bn_stats(model, some)
    return before, accuracy(mqq.convert(model), digits)


again = np.array([reestimated(seed) for seed in trained])
for seed, (before, after) in enumerate(again):
    print(f"seed {seed}: two bits, the float network's statistics {before:.1%}, re-estimated {after:.1%}")
print(f"mean    {again.mean(axis=0)[0]:.1%} -> {again.mean(axis=0)[1]:.1%}")
assert again[:, 1].mean() > again[:, 0].mean() + 0.03 and np.all(again[:, 1] > again[:, 0] - 0.01)
assert np.argmin(again[:, 0]) == np.argmax(again[:, 1] - again[:, 0])

# %% [markdown]
# Two bits, no training, and the mean accuracy rises by several points; the seed that had lost most gains most.
# Part of what looked like wrong weights was wrong means, and a mean is cheap to measure.

# %% [markdown]
# ## 9 · Eight, four, two
#
# The whole comparison, three seeds. Everything starts from the same float network. The *float control* trains on
# for three epochs in float, with the batches and learning rates that QAT gets, so that QAT gets no credit for mere
# training. In the last of the three the steps are a tenth as long, and QAT's batch norms stand still.


# %%
def per_tensor(bits):
    """The preset with one scale for the whole weight."""
    end = 2 ** (bits - 1)
    weight = mqq.MinMaxObserver.with_args(
        dtype="qint8", qscheme="per_tensor_symmetric", quant_min=-end, quant_max=end - 1
    )
    return mqq.QConfig(mqq.get_default_qconfig().activation, weight)


def fine_tuned(net, digits, seed, bits=None):
    """Three more epochs: in float, or with weights of so many bits and the batch norms frozen in the last."""
    model = copy.deepcopy(net) if bits is None else qat_of(net, mqq.get_default_qat_qconfig(weight_bits=bits))
    mq.manual_seed(100 + seed)
    train(model, digits, epochs=3, lr=0.003, freeze_at=2)
    return accuracy(model if bits is None else mqq.convert(model), digits)


# %%
def row(seed):
    digits, net = trained[seed]
    fused, x = mqq.fuse_modules(net, FUSED), digits.x_train[:500]
    found = {"float": accuracy(net, digits), "control": fine_tuned(net, digits, seed)}
    for bits in (8, 4, 2):
        found[f"PTQ {bits}"] = accuracy(static(fused, x, mqq.get_default_qconfig(weight_bits=bits)), digits)
    found["PTQ 2, one scale"] = accuracy(static(fused, x, per_tensor(2)), digits)
    for bits in (4, 2):
        found[f"QAT {bits}"] = fine_tuned(net, digits, seed, bits)
    return found


table = [row(seed) for seed in trained]
print(f"{'':18}" + "".join(f"seed {seed}   " for seed in trained) + "mean")
for name in table[0]:
    values = [found[name] for found in table]
    print(f"{name:18}" + "   ".join(f"{value:6.1%}" for value in (*values, np.mean(values))))

# %%
results = {name: np.array([found[name] for found in table]) for name in table[0]} | {"again": again[:, 1]}
means = {name: values.mean() for name, values in results.items()}
assert np.all(np.abs(results["PTQ 8"] - results["float"]) < 0.015)  # eight bits: as good as float
assert means["PTQ 4"] > means["float"] - 0.02 and means["QAT 4"] > means["control"] - 0.03
assert np.ptp(results["PTQ 4"]) > abs(means["QAT 4"] - means["PTQ 4"])
assert means["PTQ 2, one scale"] + 0.05 < means["PTQ 2"] < means["again"] < means["QAT 2"]
assert means["control"] - 0.06 < means["QAT 2"] < means["control"]

# %%
shown = {"PTQ 2, one scale": "PTQ, 2 bits,\none scale", "PTQ 2": "PTQ,\n2 bits"}
shown |= {"again": "2 bits,\nre-estimated", "QAT 2": "QAT,\n2 bits"}
shown |= {"PTQ 4": "PTQ,\n4 bits", "QAT 4": "QAT,\n4 bits", "PTQ 8": "PTQ,\n8 bits", "control": "float\ncontrol"}
figure, axis = plt.subplots(figsize=(8.0, 3.9))
for i, name in enumerate(shown):
    colour = COLOURS["float" if name == "control" else "minquant"]
    axis.plot([i - 0.22, i + 0.22], [100 * means[name]] * 2, color=colour, linewidth=2.5)
    axis.plot([i - 0.09, i, i + 0.09], 100 * results[name], "o", color=colour, alpha=0.6, markersize=6)
axis.set_xticks(range(len(shown)), shown.values())
axis.set(ylabel="test digits read correctly (%)", ylim=(None, 101))
axis.set_title("Bits of the weights, activations on eight: three seeds (dots), their mean (lines)")
axis.grid(axis="x", visible=False)
plt.show()

# %% [markdown]
# **Eight bits** cost nothing that 360 test digits could show (one digit is 0.3 points). **Four bits** cost little,
# trained or not: in the mean both recipes are within a point or two of their float networks, and the seeds lie
# further apart than the recipes. Here QAT proves nothing, and we should not claim that it does.
#
# **Two bits** tell the recipes apart. In the mean, one scale for the whole weight loses most, a scale a channel
# less. Re-estimated statistics, which cost ten batches and no training, win back a good part. QAT wins back more,
# and ends a few points below the float control: four codes a weight are four codes.

# %% [markdown]
# ## 10 · The layer that is passed over
#
# Lesson 04 asked PyTorch's `quantize_dynamic` for Linear *and* Conv2d, and got Linear. We ask again, for this
# network, and count multiplications: where is the work?

# %%
places = {1: 8 * 8, 2: 4 * 4, 3: 4 * 4}
macs = {f"conv{i}": places[i] * 9 * CHANNELS[i - 1] * CHANNELS[i] for i in (1, 2, 3)} | {"fc": 128 * 10}
share = sum(n for name, n in macs.items() if name != "fc") / sum(macs.values())


def torch_kinds(torch):
    wanted = {torch.nn.Linear, torch.nn.Conv2d}
    dynamic = torch.ao.quantization.quantize_dynamic(torch_net(torch), wanted, dtype=torch.qint8)
    return np.array([getattr(dynamic, name)._get_name() for name in macs])


theirs = torch_kinds(torch) if torch else np.array(["Conv2d"] * 3 + ["DynamicQuantizedLinear"])
dynamic = mqq.quantize_dynamic(fused)
print(f"{'layer':8}{'products':>9}   {'torch':26}minquant")
for (name, count), kind in zip(macs.items(), theirs, strict=True):
    print(f"{name:8}{count:9,}   {kind:26}{type(getattr(dynamic, name)).__name__}")
print(f"convolutions do {share:.1%} of the products; accuracy {float_accuracy:.1%} -> {accuracy(dynamic, digits):.1%}")
assert theirs.tolist() == ["Conv2d"] * 3 + ["DynamicQuantizedLinear"] and f"{share:.1%}" == "98.7%"
assert all("DynamicQuantized" in type(getattr(dynamic, name)).__name__ for name in macs)
assert abs(accuracy(dynamic, digits) - float_accuracy) < 0.015

# %% [markdown]
# PyTorch leaves 98.7% of the products in float, and says nothing. A user with a language model built of Conv1d
# layers met the same silence ([tutorials#1401](https://github.com/pytorch/tutorials/issues/1401)): all of them
# "just go UN-Quantized". The reason was a good one: dynamic convolutions had lost accuracy, and were taken out
# of the list ([pytorch#70480](https://github.com/pytorch/pytorch/issues/70480),
# [#71110](https://github.com/pytorch/pytorch/pull/71110)). A request for them should have become an error.

# %% [markdown]
# minquant quantizes them, and its `report` names every layer that stays in float, with the reason.

# %% [markdown]
# ## Back to the question
#
# Channels of ±1 and ±0.01 on one int8 scale: how many codes has the second, and how many dB?

# %%
print("guess ", guess)
print("result: 3 codes, −1, 0 and 1; 8.8 dB, and 48.1 with a scale of its own")

# %% [markdown]
# **The surprise in a sentence.** Padding with the integer 0 pads with −1, and turns 1.00 into −4.02; but behind a
# ReLU, where z is 0, the same bug is invisible.

# %% [markdown]
# And the rest: a scale can leave a sum only if every term shares it. Folding a batch norm makes channels unequal,
# and scales by channel absorb just that. Max pooling is exact; mean pooling is off by one in 7 of 48 windows.

# %% [markdown]
# **What this lesson does not cover.** Depthwise convolutions, whose engines have their own rules (lesson 08);
# evening out channels from layer to layer before quantizing; fast kernels that never write the rows down
# (lesson 10); residual sums, for which `nn.FloatFunctional` marks the place of a grid.

# %% [markdown]
# ## Sources
#
# - B. Jacob et al., 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877), section 3.2: batch norm folded in
#   training.
# - R. Krishnamoorthi, 2018, [arXiv:1806.08342](https://arxiv.org/abs/1806.08342), section 3: scales by channel,
#   freezing batch norms.
# - M. Nagel et al., 2022, [arXiv:2203.11086](https://arxiv.org/abs/2203.11086): batch norm re-estimation.
# - torch 2.13: `torch.ao.quantization.fuse_modules`, `torch.nn.utils.fuse_conv_bn_weights`,
#   `torch.ao.nn.quantized.Conv2d`, `torch.ao.nn.intrinsic.qat.freeze_bn_stats`.
# - Threads: [tutorials#1401](https://github.com/pytorch/tutorials/issues/1401),
#   [tvm#4807](https://github.com/apache/tvm/pull/4807).

# %% [markdown]
# **Left open.** Our integers equalled three engines', but only because we named each one's dialect, and asked the
# processor. What do the engines do differently, and why? Lesson 08.
