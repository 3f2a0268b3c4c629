# %% [markdown]
# # 08 One grammar, many dialects
#
# *The int32 sums 1, 3, 5, 7, times ½, plus a zero point of 1: which uint8 does each engine make of them?*
#
# All engines say x ≈ (q − z)·s. In lesson 05 three of them gave three different losses for one network, and
# we put the reasons off. Here they are: where engines must agree, where they may differ, and how to tell from
# the integers which of them was speaking.
#
# We need lessons 01, 03 and 05: a grid, the int32 sum, and the way from it to the next grid.

# %% tags=["exercise-setup"]
import os
import subprocess
import sys
from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np
from lesson_tools import COLOURS, check, compare, quiet_torch, show_versions, torch_or_recorded, use_style

import minquant as mq
from minquant import nn, optim
from minquant import quant as mqq
from minquant.quant.rosetta import requantizations, rosetta

# %%
show_versions()
use_style()
torch = quiet_torch()  # None where torch is not installed

# %% [markdown]
# ## What you will be able to do
#
# After this lesson you can
#
# - turn one int32 sum into uint8 in four dialects, by hand;
# - say from a scale which library chose it: 127, 127.5 or 128 steps;
# - name the four ways to round inside PyTorch, and an input on which each shows;
# - find the bias that one engine loses and the other keeps;
# - compute what a sum becomes on a processor that adds pairs in 16 bits, and say what `reduce_range` is for;
# - read a Rosetta table: one tensor, every dialect, and the rule behind each difference.

# %% [markdown]
# ## Notation
#
# | written | means |
# | --- | --- |
# | `x`, `q` | a real number; its integer |
# | `scale`, s | the step of a grid; sx, sw, so of input, weight, output |
# | `zero_point`, z | the integer that stands for real 0 |
# | `qmin`, `qmax` | the ends of the grid |
# | `acc` | a sum of integer products, int32 |
# | m | the multiplier sx·sw/so |
# | amax | the largest \|x\| of a tensor |
# | f(…), inv | rounded to float32; f(1/s) |
# | fma(a, b, c) | a·b + c, rounded once, at the end |
# | rint | to the nearest integer, a half to the even one |
# | a tie | a number exactly between two integers |

# %% [markdown]
# ## The question
#
# A layer has added up its products and holds the sums 1, 3, 5 and 7. The multiplier to the next grid is ½, the
# next zero point is 1. So we want acc·½ + 1, as uint8: in real numbers 1.5, 2.5, 3.5 and 4.5.

# %% [markdown]
# Every one of them is a tie, and a tie has no nearest integer. Somebody has to choose. Write four integers for
# each engine that you can think of: minquant's reference, PyTorch's x86, qnnpack and onednn, and TFLite, which
# phones and microcontrollers run.

# %%
guess = None  # for example: {"reference": [2, 2, 4, 4], "onednn": [2, 3, 4, 5]}

# %% [markdown]
# ## 1 · One sum, three answers
#
# By hand, then, for acc = 1, 3, 5, 7.
#
# - **Round, then add z.** acc·½ is 0.5, 1.5, 2.5, 3.5; rint gives 0, 2, 2, 4; plus 1: **1, 3, 3, 5**.
# - **Add z, then round.** 1.5, 2.5, 3.5, 4.5; rint gives **2, 2, 4, 4**.
# - **A half always away from zero**, then add z: 1, 2, 3, 4; plus 1: **2, 3, 4, 5**.
#
# The first two use the very same rint. They differ because 1 is odd: adding it turns every even neighbour into
# an odd one, so each tie falls to the other side.

# %% [markdown]
# `requantizations` asks every dialect that minquant knows. It also says which departure from the reference's
# rule explains an answer: it tries them out on these very integers until one fits all four.

# %%
sums = np.array([1, 3, 5, 7], np.int32)
next_grid = mqq.QParams(1.0, 1, mqq.QSpec(signed=False))
answers = {row["dialect"]: row for row in requantizations(sums, 0.5, 1.0, next_grid)}
for name, row in answers.items():
    print(f"{name:17} {row['integers']}  {row['rule']}")
assert answers["reference"]["integers"].tolist() == [1, 3, 3, 5]
assert answers["onednn"]["integers"].tolist() == [2, 2, 4, 4]
assert answers["gemmlowp, TFLite"]["integers"].tolist() == [2, 3, 4, 5]

# %% [markdown]
# Three answers. x86 and qnnpack agree with the reference; onednn adds the zero point first; TFLite, through
# its library gemmlowp, has a third way, which part 7 takes apart. ONNX is a case of its own: its specification
# leaves the precision open, and on these sums its reference implementation and its runtime differ.

# %% [markdown]
# Does PyTorch agree? We let each engine multiply the integers 1, 3, 5, 7 by a weight of 1: then the sums *are*
# 1, 3, 5, 7.

# %%
ENGINES = ("x86", "qnnpack", "onednn")


def torch_requantized(torch, values, sx, so, zo, bias):
    """One input feature, one weight of 1: the integers of the output in each engine."""
    found = []
    for engine in ENGINES:
        torch.backends.quantized.engine = engine
        x = torch.quantize_per_tensor(torch.tensor(values, dtype=torch.float32)[:, None] * sx, sx, 0, torch.quint8)
        weight = torch.quantize_per_tensor(torch.ones(1, 1), 1.0, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(weight, torch.tensor([bias]))
        found.append(torch.ops.quantized.linear(x, packed, so, zo).int_repr().numpy()[:, 0])
    return np.array(found, int)


ours = np.array([answers[name]["integers"] for name in ("fbgemm and x86", "qnnpack", "onednn")], int)
recorded = np.array([[1, 3, 3, 5], [1, 3, 3, 5], [2, 2, 4, 4]])
theirs = torch_or_recorded(lambda torch: torch_requantized(torch, sums, 0.5, 1.0, 1, 0.0), recorded)
assert compare("x86, qnnpack, onednn", ours, theirs)

# %% [markdown]
# ### Exercise: the other order
#
# Write onednn's rule: everything in float32, the zero point added before the rounding.

# %% tags=["exercise-setup"]
odd_sums = np.array([1, 3, 5, 7], np.int32)


def onednn_specification(acc, m, zero_point):
    """One sum at a time; Python's round() sends a half to its even neighbour."""
    integers = []
    for total in acc:
        value = np.float32(total) * np.float32(m) + np.float32(zero_point)
        integers.append(min(max(round(float(value)), 0), 255))
    return integers


# %% answer="onednn" lines=2
def onednn(acc, m, zero_point):
    """int32 sums (N,) -> uint8 integers (N,), the zero point added before the rounding. [2 lines]"""
    ### BEGIN SOLUTION
    real = acc.astype(np.float32) * np.float32(m) + np.float32(zero_point)
    return np.clip(np.rint(real), 0, 255).astype(np.uint8)
    ### END SOLUTION


# %% check="onednn" points=1
check(
    "onednn([1, 3, 5, 7], m=0.5, zero_point=1)",
    onednn(odd_sums, 0.5, 1),
    onednn_specification(odd_sums, 0.5, 1),
    means=[
        ([1, 3, 3, 5], "The zero point was added after the rounding: that is the reference's dialect, and x86's."),
        ([2, 3, 4, 5], "Halves were rounded up: rint sends them to the even neighbour."),
        ([1, 2, 3, 4], "The fraction was cut off instead of rounded."),
    ],
)
### BEGIN HIDDEN TESTS
check(
    "onednn([1, 3, 5, 7], m=0.5, zero_point=2), an even zero point",
    onednn(odd_sums, 0.5, 2),
    onednn_specification(odd_sums, 0.5, 2),
    means=[([3, 4, 5, 6], "Halves were rounded up.")],
)
far = np.array([600, -600, 508, -3], np.int32)
check(
    "onednn([600, -600, 508, -3], m=0.5, zero_point=1), both ends",
    onednn(far, 0.5, 1),
    onednn_specification(far, 0.5, 1),
    means=[([45, 213, 255, 0], "It was made uint8, which wraps around, before it was clipped.")],
)
rng = np.random.default_rng(0)
acc = rng.integers(-60000, 60000, 500).astype(np.int32)
check("500 random sums", onednn(acc, 0.00231, 115), onednn_specification(acc, 0.00231, 115))
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · Where dialects may part
#
# The grammar, x ≈ (q − z)·s, says what an integer *means*. It does not say how to get one. Five questions stay
# open, and every engine answers them for itself:
#
# | question | answers that we shall meet |
# | --- | --- |
# | which range becomes which scale? | amax divided by 127, by 127.5, by 128 |
# | in which order: multiply, add z, round? | round first; add first; both in one fused step |
# | where does a half go? | to the even neighbour; away from zero |
# | what is the bias? | a real number; a whole number of steps sx·sw |
# | how wide is the sum? | 32 bits; for a moment, 16 |

# %% [markdown]
# No answer is wrong. But two engines that answer differently give different integers for one model, and the
# person in between sees "an error of one" and cannot tell a dialect from a bug. (People ask for "the entire
# process (from quantization to dequantization)", as in
# [FBGEMM#328](https://github.com/pytorch/FBGEMM/issues/328), because no formula on a slide settles these five.)
# We take them one at a time.

# %% [markdown]
# ## 3 · Three divisors for one range
#
# A weight tensor reaches from −1 to 0.9, so amax = 1, and we want symmetric int8, −128…127. How long is a step?
#
# - The grid is 255 steps long, half of it is 127.5: **s = 1/127.5**. Then −1 is −127.5 steps, a tie.
# - There are 128 steps below zero and 127 above; take the longer of −min/128 and max/127: **s = 1/128**. Now −1
#   is exactly −128.
# - Leave −128 unused, so that both signs are treated alike: **s = 1/127**, and −1 is exactly −127.

# %% [markdown]
# PyTorch's observers and torchao's `SYMMETRIC` say 127.5. PyTorch's fused fake-quantizer, its default for QAT,
# says 128, and so does torchao's `SYMMETRIC_NO_CLIPPING_ERR`. NVIDIA's ModelOpt says 127, as TFLite does for
# weights. Two of the three live in one library, and one of those trains while the other converts: a first
# reason why PyTorch's QAT model is not its converted self.

# %%
weight = np.array([-1, -0.5, 0.3, 0.9], np.float32)
rows = {row["dialect"]: row for row in rosetta(weight).rows if row["base"] == "reference symmetric"}
for name, row in rows.items():
    print(f"{name:39} 1/s = {1 / row['scale']:6.2f}   {row['integers']}")
assert f"{1 / rows['torch observer qint8']['scale']:.4f}" == "127.5000"
assert f"{1 / rows['torch fused fake-quantizer, symmetric']['scale']:.4f}" == "128.0000"
assert f"{1 / rows['ModelOpt']['scale']:.4f}" == "127.0000"


# %%
def torch_divisors(torch):
    """1/scale for amax = 1: observer, fused fake-quantizer, and torchao's two symmetric mappings."""
    from torchao.quantization import quant_primitives as ao

    x = torch.tensor(weight)
    observer = torch.ao.quantization.MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    observer(x)
    on, scale = torch.tensor([1]), torch.ones(1)
    state = torch.tensor([np.inf]), torch.tensor([-np.inf]), scale, torch.zeros(1, dtype=torch.int32)
    torch.fused_moving_avg_obs_fake_quant(x, on, on, *state, 0.01, -128, 127, -1, False, True)
    scales = [observer.calculate_qparams()[0], scale]
    for mapping in (ao.MappingType.SYMMETRIC, ao.MappingType.SYMMETRIC_NO_CLIPPING_ERR):
        scales.append(ao.choose_qparams_affine(x, mapping, x.shape, torch.int8, -128, 127)[0])
    return np.array([1 / float(s) for s in scales])


divisors = torch_or_recorded(torch_divisors, np.array([127.5, 128, 127.5, 128]))
print("observer, fused, torchao, torchao without clipping:", divisors.round(2))
assert divisors.round(4).tolist() == [127.5, 128, 127.5, 128]

# %% [markdown]
# (With 127.5 the tie is never quite one: 1·inv is 127.49999 in float32, so −1 became −127.) Each choice pays
# somewhere. With 127.5 the largest value may lie half a step beyond the end, and is clipped to 127; lesson 06
# showed what that does to its gradient. With 128 the rule has to look at both ends. With 127 one of 256 codes is
# never used.

# %% [markdown]
# And *between* dialects: on a thousand normal weights, how many integers change?

# %%
normal_weight = -np.random.RandomState(2).standard_normal(1000).astype(np.float32)
changed = {row["dialect"]: row["differing"] for row in rosetta(normal_weight).rows if "symmetric" in row["base"]}
for name, count in changed.items():
    print(f"{name:39} {count:4} of 1000 integers are not the reference's")
assert -normal_weight.min() > normal_weight.max()  # so that −min/128 is the longer of the two steps
assert changed["torch observer qint8"] == 0 and 50 < changed["ModelOpt"] < 200
assert 50 < changed["torch fused fake-quantizer, symmetric"] < 200

# %% [markdown]
# About one in ten, by one step each. The *values* hardly move; it is the comparison of integers that is lost if
# you take one dialect's scale for another's.

# %% [markdown]
# ## 4 · Four ways to round, in one library
#
# Now the scale is agreed: s = 1, z = 1. What is 0.5, 1.5, 2.5 on that grid? PyTorch has four operations that
# quantize, and four rules:
#
# | operation | before clipping |
# | --- | --- |
# | `quantize_per_tensor` | rint(fma(x, inv, z)) |
# | `quantize_per_channel` | rint(f(f(x·inv) + z)) |
# | `fake_quantize`, integer z | rint(f(x·inv)) + z |
# | `fake_quantize_per_channel`, real z | rint(fma(x, inv, z)) |

# %% [markdown]
# The third one rounds first, the others add first; and of those, one rounds the product to float32 before it
# adds, which is one rounding more. By hand: rounding first gives 0, 2, 2. Adding first: 1.5, 2.5, 3.5 become 2,
# 2, 4, which stand for **1, 1, 3**.

# %%
ties = np.array([0.5, 1.5, 2.5], np.float32)


def torch_roundings(torch):
    """The values that each of the four makes of the ties, on the grid s = 1, z = 1."""
    x, one = torch.tensor(ties), torch.ones(1)
    return np.stack([
        torch.quantize_per_tensor(x, 1.0, 1, torch.quint8).dequantize().numpy(),
        torch.quantize_per_channel(x[None], one, one.long(), 0, torch.quint8).dequantize().numpy()[0],
        torch.fake_quantize_per_tensor_affine(x, 1.0, 1, 0, 255).numpy(),
        torch.fake_quantize_per_channel_affine(x[None], one, one, 0, 0, 255).numpy()[0],
    ])  # fmt: skip


roundings = torch_or_recorded(torch_roundings, np.array([[1.0, 1, 3], [1, 1, 3], [0, 2, 2], [1, 1, 3]]))
for name, values in zip(("quantize", "quantize/channel", "fake_quantize", "fake, real z"), roundings, strict=True):
    print(f"{name:17} {values}")
assert roundings.tolist() == [[1, 1, 3], [1, 1, 3], [0, 2, 2], [1, 1, 3]]
assert mqq.fake_quantize(ties, next_grid).tolist() == [0, 2, 2]  # minquant's reference: the third rule, everywhere

# %% [markdown]
# So a PyTorch model can be *trained* with 0, 2, 2 and *deployed* with 1, 1, 3. Is a tie such a rare thing? In
# random floats, yes. In data that comes in steps, no. Take the mean of two neighbouring pixels, both integers in
# −127…128: every second mean ends in ½. With s = 1 and z = 127, odd, *all* of those ties fall to different
# sides.

# %%
pixels = np.random.RandomState(0).randint(-127, 129, (2, 10_000)).astype(np.float32)
pixels[:, :2] = [[-127, 128], [-127, 128]]
means = pixels.mean(axis=0)
kinds = {row["dialect"]: row for row in rosetta(means).rows}
trained, deployed = kinds["torch fused fake-quantizer, affine"], kinds["torch observer quint8"]
share = np.mean(trained["integers"] != deployed["integers"])
print(f"scale {trained['scale']:.4g} and {deployed['scale']:.4g}, zero point {deployed['zero_point']}")
print(f"{share:.1%} of the integers differ between fake_quantize and quantize")
print("the rule that moves them:", deployed["rule"])
assert trained["scale"] == deployed["scale"] == 1 and deployed["zero_point"] == 127
assert share == np.mean(means % 1 == 0.5) and 0.48 < share < 0.52

# %% [markdown]
# Half of all integers, by one step each, from nothing but the order of two operations.

# %% [markdown]
# What of the fused step and the extra rounding? Those part only within a hair of a tie. The picture walks
# along float32 numbers, one at a time, past the tie between 1 and 2 steps on a 3-bit grid with s = 0.07 and z =
# 3, and draws where each rule changes its mind. True division, which ONNX uses, is there too.

# %%
s, inv, z = np.float32(0.07), np.float32(1) / np.float32(0.07), 3
steps_away = np.arange(-5, 6)
tie = np.float32(1.5 * np.float64(s))
x = (tie + steps_away * np.spacing(tie)).astype(np.float32)
rules = {
    "rint(x / s) + z\n(ONNX)": np.rint(x / s) + z,
    "rint(f(x·inv)) + z\n(fake_quantize, minquant)": np.rint(x * inv) + z,
    "rint(fma(x, inv, z))\n(quantize_per_tensor)": np.rint((x.astype(np.float64) * inv + z).astype(np.float32)),
    "rint(f(f(x·inv) + z))\n(quantize_per_channel)": np.rint(x * inv + np.float32(z)),
}


def torch_near_a_tie(torch):
    t, zero = torch.tensor(x), torch.tensor([z])
    return np.stack([
        torch.fake_quantize_per_tensor_affine(t, float(s), z, 0, 7).numpy() / s + z,
        torch.quantize_per_tensor(t, float(s), z, torch.quint8).int_repr().numpy(),
        torch.quantize_per_channel(t[None], torch.tensor([s]), zero, 0, torch.quint8).int_repr().numpy()[0],
    ]).round().astype(int)  # fmt: skip


recorded = np.array([[4] * 5 + [5] * 6, [4] * 7 + [5] * 4, [4] * 8 + [5] * 3])
by_hand = np.array(list(rules.values())[1:], int)
assert compare("near a tie", by_hand, torch_or_recorded(torch_near_a_tie, recorded), columns=("by hand", "torch"))

# %%
fig, ax = plt.subplots(figsize=(7.4, 3.9))
for row, (name, codes) in enumerate(rules.items()):
    colour = COLOURS["minquant"] if "minquant" in name else COLOURS["torch"] if "quantize" in name else "#009e73"
    ax.step(steps_away, row + 0.55 * (codes - 4), where="mid", color=colour)
    ax.plot(steps_away, row + 0.55 * (codes - 4), "o", color=colour, markersize=4)
    ax.text(-6.0, row + 0.1, name, ha="right", va="center", fontsize=9.5)
    ax.text(5.3, row + 0.55, "5", color=colour, va="center")
    ax.text(-5.3, row, "4", color=colour, va="center", ha="right")
ax.axvline(0, color="black", linestyle="--", linewidth=0.8)
ax.text(0.1, 3.85, "1.5 · s", va="center")
ax.set_yticks([])
ax.spines["left"].set_visible(False)
ax.grid(False)
ax.set(xlabel="distance from the tie (neighbouring float32 numbers)", xlim=(-5.8, 5.7), ylim=(-0.35, 4.1))
ax.set_xticks(steps_away)
ax.set_title("Where four rules go from the integer 4 to 5", x=-0.35)
plt.show()
jumps = [int((codes == 4).sum()) for codes in rules.values()]
print("float32 numbers that stay at 4:", jumps)
assert len(set(jumps)) == 4

# %% [markdown]
# Four rules, four different places, all within four float32 numbers of each other. On random data you will
# hardly ever land there; a test that feeds on random data cannot tell these rules apart. A test that means to
# must *aim*: put its inputs beside the ties. That is how minquant's dialects are checked against PyTorch
# (`minquant crosscheck`), and lesson 09 uses it to find faults.

# %% [markdown]
# ## 5 · A bias in whole steps
#
# The sum is counted in steps of sx·sw. What about the bias, a real number? Two answers exist: leave it real and
# add it to the rescaled sum; or round it once to whole steps, an int32, and add it to the sum itself.

# %% [markdown]
# By hand, with sx·sw = 0.125, a bias of 0.06 and an output step so = 0.0625; sums 0, 1, 2, 3; zo = 0. The bias
# is 0.48 steps of the sum, or 0.96 steps of the output.
#
# - **Real bias** (x86, onednn, reference): acc·0.125 + 0.06 is 0.06, 0.185, 0.31, 0.435; divided by 0.0625:
#   0.96, 2.96, 4.96, 6.96; so **1, 3, 5, 7**.
# - **Integer bias** (qnnpack, ONNX, TFLite): 0.48 steps round to 0. The bias is gone: **0, 2, 4, 6**.

# %%
small_sums = np.arange(4, dtype=np.int32)
grid = mqq.QParams(0.0625, 0, mqq.QSpec(signed=False))
with_bias = {r["dialect"]: r for r in requantizations(small_sums, 0.125, 1.0, grid, np.full(4, 0.06, np.float32))}
for name, row in with_bias.items():
    print(f"{name:17} {row['integers']}  {row['rule']}")

ours = np.array([with_bias[name]["integers"] for name in ("fbgemm and x86", "qnnpack", "onednn")], int)
recorded = np.array([[1, 3, 5, 7], [0, 2, 4, 6], [1, 3, 5, 7]])
theirs = torch_or_recorded(lambda torch: torch_requantized(torch, small_sums, 0.125, 0.0625, 0, 0.06), recorded)
assert compare("x86, qnnpack, onednn", ours, theirs) and ours.tolist() == recorded.tolist()

# %% [markdown]
# Usually so is much larger than sx·sw, and half a step of the sum is a small fraction of an output step. It
# is when the *output* grid is finer than the sum's steps, as here, that a lost half step can be seen. An integer
# bias is no blunder, either: a processor without floating point has no other choice.

# %% [markdown]
# ## 6 · A sum that does not fit
#
# So far we could trust the sum. int32 has room for some 65,000 products (lesson 03). But x86 processors from
# before 2019, and many since, have no instruction that adds int8 products in int32. They have `vpmaddubsw`: it
# multiplies uint8 by int8, adds *two neighbouring products*, and stores the result in **int16**. If it does not
# fit, it is clipped to −32,768…32,767. Only then is it widened.

# %% [markdown]
# By hand: 255·127 = 32,385 fits. Two of them are 64,770, which does not: 32,767 is stored, and half of the pair
# is lost. A sum of 64 such products should be 2,072,640; it is 32 pairs of 32,767, that is **1,048,544**. A
# user of PyTorch traced a wrong result to one such pair, 211·71 + 171·107 = 33,278
# ([pytorch#44939](https://github.com/pytorch/pytorch/issues/44939)), and found it "a bit obscure and hard to trace".

# %%
from minquant.kernels.saturating import saturating_matmul

full = np.full((1, 64), 255, np.uint8), np.full((64, 1), 127, np.int8)
pair = np.array([[211, 171]], np.uint8), np.array([[71], [107]], np.int8)
for a, b in (full, pair):
    exact, found = (a.astype(int) @ b.astype(int)).item(), saturating_matmul(a, b).item()
    print(f"K = {a.shape[1]:2}: exact {exact:9,}   in 16-bit pairs {found:9,}")
assert saturating_matmul(*full).item() == 32 * 32767 == 1_048_544
assert saturating_matmul(*pair).item() == 32767 < 211 * 71 + 171 * 107 == 33_278

# %% [markdown]
# Can we see PyTorch do it? Newer processors have an instruction that adds in 32 bits (VNNI), and fbgemm uses it
# where it can. An environment variable tells it not to. It is read once, when the process starts, so we start
# another one. On an output grid of steps of 8192 the exact sum is 253, the clipped one 128.

# %%
SCRIPT = """
import warnings
warnings.filterwarnings("ignore")
import torch
torch.backends.quantized.engine = "fbgemm"
for largest in (255, 127):
    x = torch.quantize_per_tensor(torch.full((1, 64), float(largest)), 1.0, 0, torch.quint8)
    weight = torch.quantize_per_tensor(torch.full((1, 64), 127.0), 1.0, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    print(torch.ops.quantized.linear(x, packed, 8192.0, 0).int_repr().item())
"""


def torch_without_vnni(torch):
    environment = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    return np.array([int(line) for line in done.stdout.split()])


eight_bits, seven_bits = torch_or_recorded(torch_without_vnni, np.array([128, 126]))
print(f"torch without VNNI: 255·127, 64 times: {eight_bits}, exact {2_072_640 / 8192:.0f}")
print(f"                    127·127, 64 times: {seven_bits}, exact {64 * 127 * 127 / 8192:.0f}")
assert (eight_bits, seven_bits) == (128, 126) and eight_bits == round(1_048_544 / 8192)

# %% [markdown]
# The second line is the way out. If the activations stop at 127, the largest pair is 127·127 + 127·127 = 127·254 =
# **32,258**, which fits, and nothing can be lost. That is `reduce_range`: one bit of every activation is given
# up, on every machine, for the sake of those that would clip. It is why x86 had seven bits in lesson 05.

# %%
assert 127 * 254 == 32_258 <= 32_767 and 2 * 127 * 128 == 32_512 <= 32_768  # the negative end fits too

# %% [markdown]
# And what would it do to a whole network if we kept all eight bits? minquant has a dialect for that machine,
# `"fbgemm_avx2"`: fbgemm, but for the sum. We train a small network on the handwritten digits, quantize it with
# and without `reduce_range`, and run it on both kinds of machine.

# %%
from minquant.data import load_digits

digits = load_digits()
mq.manual_seed(0)
layers = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
net = nn.Sequential(nn.QuantStub(), *layers, nn.DeQuantStub())
optimizer = optim.Adam(net.parameters(), lr=1e-2)
for _ in range(100):
    optimizer.zero_grad()
    nn.CrossEntropyLoss()(net(digits.x_train), mq.Tensor(digits.y_train)).backward()
    optimizer.step()
logits = net.eval()(digits.x_test).data


def static(backend, reduce_range):
    """Prepare, calibrate and convert for one kind of machine."""
    activation = mqq.MinMaxObserver.with_args(reduce_range=reduce_range)
    weight = mqq.PerChannelMinMaxObserver.with_args(dtype="qint8", qscheme="per_channel_symmetric")
    prepared = mqq.prepare(net, mqq.QConfig(activation=activation, weight=weight, backend=backend))
    prepared(digits.x_train)
    return mqq.convert(prepared)


# %%
def accuracy(scores):
    return np.mean(scores.argmax(axis=1) == digits.y_test)


print(f"{'float':38} accuracy {accuracy(logits):.1%}")
worst, right = {}, {}
for reduce_range in (False, True):
    for backend, machine in {"fbgemm": "adds in 32 bits", "fbgemm_avx2": "adds pairs in 16 bits"}.items():
        scores = static(backend, reduce_range)(digits.x_test).data
        worst[backend, reduce_range] = float(np.abs(scores - logits).max())
        right[backend, reduce_range] = accuracy(scores)
        bits = "7 bits" if reduce_range else "8 bits"
        print(
            f"{machine:22} activations {bits}  accuracy {accuracy(scores):.1%}"
            f"   farthest from float {worst[backend, reduce_range]:.2f}"
        )
assert worst["fbgemm_avx2", False] > 5 * worst["fbgemm", False]
assert worst["fbgemm_avx2", True] == worst["fbgemm", True] and right["fbgemm_avx2", True] == right["fbgemm", True]

# %% [markdown]
# With seven bits both machines agree to the last bit. With eight, the old one is off by more than two units in a
# score, ten times as far as rounding would explain. Now look at the accuracy: it has hardly moved! The largest
# score is still the largest. Nobody who watches the accuracy alone would notice that something broke. How many
# of the first layer's sums were clipped?

# %%
model = static("fbgemm", reduce_range=False)
raw, w = model[0](digits.x_test).int_repr(), model[1].weight.int_repr()
exact = raw.astype(np.int32) @ w.T.astype(np.int32)
clipped = np.mean(saturating_matmul(raw, w.T) != exact)
print(f"{clipped:.0%} of the first layer's {exact.size:,} sums lost something")
assert 0.3 < clipped < 0.7 and abs(right["fbgemm_avx2", False] - right["fbgemm", False]) < 0.03

# %% [markdown]
# About half of them. Neighbouring pixels are bright together and have similar weights, so neighbouring products are
# large together: the instruction's worst case is a picture's normal case.

# %% [markdown]
# ### Exercise: the sum in pairs
#
# One row times one column, as the old instruction does it. The specification walks along the pairs; yours may
# reshape. If one product is left over, it goes alone.

# %% tags=["exercise-setup"]
bright, heavy = np.full(64, 255, np.uint8), np.full(64, 127, np.int8)


def saturating_dot_specification(a, b):
    """Pairs of products, each pair clipped to int16, then added without limit."""
    total = 0
    for i in range(0, len(a), 2):
        pair = sum(int(x) * int(y) for x, y in zip(a[i : i + 2], b[i : i + 2], strict=True))
        total += min(max(pair, -32768), 32767)
    return total


# %% answer="saturating_dot" lines=3
def saturating_dot(a, b):
    """uint8 (K,) times int8 (K,), neighbouring products added in int16. [3 lines]"""
    ### BEGIN SOLUTION
    products = a.astype(np.int32) * b
    pairs = np.pad(products, (0, len(products) % 2)).reshape(-1, 2).sum(axis=1)
    return int(np.clip(pairs, -32768, 32767).sum())
    ### END SOLUTION


# %% check="saturating_dot" points=2
check(
    "saturating_dot(64 times 255, 64 times 127)",
    saturating_dot(bright, heavy),
    saturating_dot_specification(bright, heavy),
    means=[
        (2_072_640, "Nothing was clipped. One product, 32,385, fits in int16; it is the pair that does not."),
        (32_767, "The whole sum was clipped: only a pair is held in int16, the sum of pairs has 32 bits."),
        (1_048_576, "int16 ends at 32,767, not at 32,768."),
    ],
)
check(
    "saturating_dot([127, 127], [127, 127]), with reduce_range",
    saturating_dot(np.array([127, 127], np.uint8), np.array([127, 127], np.int8)),
    saturating_dot_specification([127, 127], [127, 127]),
    means=[(2, "The products were taken in int8, where 127·127 is 1.")],
)
### BEGIN HIDDEN TESTS
three = np.array([255, 255, 255], np.uint8)
check(
    "saturating_dot([255, 255, 255], [127, 127, 127]), an odd K",
    saturating_dot(three, np.array([127, 127, 127], np.int8)),
    saturating_dot_specification(three, [127, 127, 127]),
    means=[(32_767, "The last product is missing: with an odd K it goes alone.")],
)
check(
    "saturating_dot([255, 255], [-128, -128]), the negative end",
    saturating_dot(three[:2], np.array([-128, -128], np.int8)),
    saturating_dot_specification(three[:2], [-128, -128]),
    means=[(-65_280, "The negative end was not clipped."), (-32_767, "int16 begins at -32,768.")],
)
rng = np.random.default_rng(0)
for k in range(0, 40):
    a, b = rng.integers(0, 256, k).astype(np.uint8), rng.integers(-128, 128, k).astype(np.int8)
    case = f"{k} random numbers"
    check(case, saturating_dot(a, b), saturating_dot_specification(a, b), quiet=True)
### END HIDDEN TESTS

# %% [markdown]
# ## 7 · Rounding twice
#
# Back to the third answer, 2, 3, 4, 5. TFLite was made for processors without floating point, so its multiplier
# m must be made of integers as well: **m = mantissa · 2^(shift − 31)**, with a mantissa between 2³⁰ and 2³¹.
# For m = ½ the mantissa is 2³⁰ and the shift 0; for m = ¼ the shift is −1.

# %% [markdown]
# Two moves, two roundings, two rules for ties:
#
# 1. acc · mantissa / 2³¹, to the nearest integer, *a tie goes up*;
# 2. the rest of the shift, to the right, to the nearest integer, *a tie goes away from zero*.
#
# | acc · m | first move | second move |
# | --- | --- | --- |
# | 5 · ½ | 2.5 → 3 | nothing to shift: **3** |
# | −5 · ½ | −2.5 → −2 | nothing to shift: **−2** |
# | −10 · ¼ | −5, exactly | −2.5 → **−3** |
# | 1 · ¼ | 0.5 → 1 | 0.5 → **1** |

# %% [markdown]
# Look at the two middle rows: both are −2.5, and one becomes −2, the other −3. And in the last row a quarter
# becomes **1**, although 0 is nearer; it was rounded to a half on the way, and then once more.

# %%
from minquant.quant.dialects.fixed_point import multiply_by_quantized_multiplier, quantize_multiplier

found = {}
for acc, m in ((5, 0.5), (-5, 0.5), (-10, 0.25), (1, 0.25)):
    mantissa, shift = quantize_multiplier(m)
    found[acc, m] = int(multiply_by_quantized_multiplier(np.array([acc]), mantissa, shift)[0])
    print(f"{acc:4} · {m:<4}  mantissa 2^{np.log2(float(mantissa)):.0f}, shift {shift:2}   -> {found[acc, m]:2}")
assert list(found.values()) == [3, -2, -3, 1]

# %% [markdown]
# The picture shows what this does to a staircase on three bits (z = 3); the lines are drawn a little apart so
# that all can be seen. On the left m = ½: every odd sum is a tie, and the three dialects part there and only
# there. On the right m = ¼: above z, gemmlowp climbs already at a quarter (acc = 1, 5, 9, 13), one sum before
# there is a tie.

# %%
three_bits = mqq.QSpec(bits=3, signed=False)
looks = {
    "reference": (COLOURS["minquant"], "reference, x86, qnnpack", 0.0),
    "onednn": (COLOURS["torch"], "onednn", 0.09),
    "gemmlowp, TFLite": ("#009e73", "gemmlowp, TFLite", -0.09),
}
fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.9), sharey=True)
for ax, m, acc in zip(axes, (0.5, 0.25), (np.arange(-6, 9), np.arange(-12, 17)), strict=True):
    ax.plot(acc, acc * m + 3, color=COLOURS["float"], linewidth=1, label="acc · m + z")
    rows = requantizations(acc.astype(np.int32), m, 1.0, mqq.QParams(1.0, 3, three_bits))
    stairs = {row["dialect"]: row["integers"].astype(int) for row in rows}
    for name, (colour, label, lift) in looks.items():
        ax.step(acc, stairs[name] + lift, where="mid", color=colour, label=label, linewidth=1.5)
    ax.set(xlabel="acc (steps of sx·sw)", ylim=(-0.5, 8.6))
    ax.set_title("m = ½" if m == 0.5 else "m = ¼")
axes[0].set(ylabel="output integer q (3 bits)")
axes[0].set_yticks(range(8))
axes[0].legend(loc="upper left", fontsize=9)
plt.show()
early = stairs["gemmlowp, TFLite"] - stairs["reference"]
assert early[np.isin(acc, (1, 5, 9, 13))].tolist() == [1, 1, 1, 1]

# %% [markdown]
# How far can it go wrong? The first rounding errs by at most ½, which the shift halves at least; the second errs
# by ½. Together at most **¾** of a step, where rounding once errs by ½. We count on a thousand sums and many
# multipliers.

# %%
acc = np.arange(-1000, 1001, dtype=np.int32)
errors, differ = [], []
for m in np.random.RandomState(1).uniform(0.01, 0.5, 200):
    twice = multiply_by_quantized_multiplier(acc, *quantize_multiplier(m))
    errors.append(np.abs(twice - acc * m).max())
    differ.append(np.mean(twice != np.rint(acc * m)))
print(f"largest error {max(errors):.3f} steps; {np.mean(differ):.1%} of the integers are not the nearest")
assert 0.7 < max(errors) <= 0.75 + 1e-6 and 0.02 < np.mean(differ) < 0.2

# %% [markdown]
# ### Exercise: multiply by an integer
#
# Write both moves, for a multiplier below 1. `np.frexp(m)` gives the fraction (from ½ up to 1) and the shift (0
# or negative) with m = fraction · 2^shift. In NumPy, `>> k` is a division by 2^k, rounded down.

# %% tags=["exercise-setup"]
quarter_sums = np.array([1, 3, 5, 7], np.int64)


def fixed_point_specification(acc, m):
    """Exact fractions, one sum at a time: ties up, then ties away from zero."""
    shift = 0
    while m * 2**shift < 0.5:
        shift += 1
    mantissa = round(m * 2**shift * 2**31)
    integers = []
    for total in acc:
        once = (Fraction(int(total) * mantissa, 2**31) + Fraction(1, 2)).__floor__()
        sign = 1 if once >= 0 else -1
        integers.append(sign * (Fraction(abs(once), 2**shift) + Fraction(1, 2)).__floor__())
    return integers


# %% answer="fixed_point" lines=6
def fixed_point(acc, m):
    """int64 sums (N,) times m, 0 < m < 1, with an integer mantissa and a shift. [6 lines]"""
    ### BEGIN SOLUTION
    fraction, shift = np.frexp(m)
    mantissa, right = round(fraction * 2**31), -int(shift)
    once = (acc * mantissa + 2**30) >> 31
    half = (1 << right) >> 1
    size = (np.abs(once) + half) >> right
    return np.sign(once) * size
    ### END SOLUTION


# %% check="fixed_point" points=3
check(
    "fixed_point([1, 3, 5, 7], 0.5)",
    fixed_point(quarter_sums, 0.5),
    fixed_point_specification(quarter_sums, 0.5),
    means=[
        ([0, 2, 2, 4], "5·½ became 2: rint sends a half to the even neighbour, gemmlowp sends it up."),
        ([0, 1, 2, 3], "Nothing was rounded: add a half before you divide."),
    ],
)
check(
    "fixed_point([1, 3, 5, 7], 0.25)",
    fixed_point(quarter_sums, 0.25),
    fixed_point_specification(quarter_sums, 0.25),
    means=[
        ([0, 1, 1, 2], "1·¼ became 0: it was rounded once. The product is rounded to ½ steps first, and then again."),
        ([0, 1, 2, 2], "The second rounding sends a half to the even neighbour."),
    ],
)
### BEGIN HIDDEN TESTS
negative = np.array([-5, -3, -1], np.int64)
check(
    "fixed_point([-5, -3, -1], 0.5), negative ties in the first move",
    fixed_point(negative, 0.5),
    fixed_point_specification(negative, 0.5),
    means=[([-3, -2, -1], "In the first move a tie goes up, for negative sums too: −2.5 becomes −2.")],
)
check(
    "fixed_point([-10, -6, -2], 0.25), negative ties in the second move",
    fixed_point(2 * negative, 0.25),
    fixed_point_specification(2 * negative, 0.25),
    means=[([-2, -1, 0], "In the second move a tie goes away from zero: −2.5 becomes −3.")],
)
rng = np.random.default_rng(0)
acc = rng.integers(-100_000, 100_000, 400)
for m in (0.00231, 0.3, 0.75, 0.999):
    check(f"400 random sums, m = {m}", fixed_point(acc, m), fixed_point_specification(acc, m), quiet=True)
### END HIDDEN TESTS

# %% [markdown]
# ## 8 · The Rosetta table
#
# The stone of Rosetta carries one text in three scripts; whoever knows one can read the others. `rosetta` does
# it with a tensor: it lets every dialect read the same numbers, and then turns the reference's reading into each
# of the others, one part at a time: first the scale, then the zero point, then the ends, then the rounding.
# How many integers move at each step is that part's share in the difference.

# %% [markdown]
# Here is a tensor whose affine grid is the whole numbers, s = 1 and z = 1, with our three ties in it. Read the
# rules first: by now you know every one of them.

# %%
tensor = np.array([-1, 0.5, 1.5, 2.5, 254], np.float32)
table = rosetta(tensor)
print(table)

# %% [markdown]
# Nothing in that column is looked up in a list of what a dialect *should* do. A rule is named because it gives
# every integer that was found; where several would, the simplest is named, and where a rule leaves no trace on
# this tensor, the table says so. That is also how to read it: "no difference on this tensor" is no promise
# about the next one, and in TFLite's row for weights two rules move one integer there and back.

# %% [markdown]
# Is the table true? The rows of PyTorch and torchao can be asked of PyTorch and torchao themselves.

# %%
rows = {row["dialect"]: row["integers"].tolist() for row in table.rows}


def torch_readings(torch):
    observers = (
        torch.ao.quantization.MinMaxObserver(),
        torch.ao.quantization.MinMaxObserver(reduce_range=True),
        torch.ao.quantization.MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric),
    )
    found = []
    for observer in observers:
        observer(torch.tensor(tensor))
        scale, zero_point = observer.calculate_qparams()
        q = torch.quantize_per_tensor(torch.tensor(tensor), float(scale), int(zero_point), observer.dtype)
        found.append(q.int_repr().numpy().astype(int))
    for reduce_range in (True, False):  # as a dynamic layer of x86 and of qnnpack does
        q = torch.quantize_per_tensor_dynamic(torch.tensor(tensor), torch.quint8, reduce_range)
        found.append(q.int_repr().numpy().astype(int))
    return np.array(found)


names = ("quint8", "quint8, reduce_range", "qint8")
names = [*(f"torch observer {name}" for name in names), "fbgemm and x86 at run time", "qnnpack at run time"]
recorded = np.array([[0, 2, 2, 4, 255], [0, 0, 1, 1, 127], [-1, 0, 1, 1, 127], [0, 0, 1, 1, 127], [0, 2, 2, 4, 255]])
assert compare("rows of the table", [rows[name] for name in names], torch_or_recorded(torch_readings, recorded))

# %% [markdown]
# For a tensor of your own, save it with `numpy.save` and run `minquant rosetta weight.npy`; with `--json` the
# table becomes a file. Try a weight of a model that you know, and a batch of its activations: on the weight you
# will mostly see divisors, on activations after pooling or on pixels you may see ties.

# %% [markdown]
# ## Back to the question
#
# The sums 1, 3, 5, 7, times ½, plus 1.

# %%
print("guess ", guess)
for name, row in answers.items():
    print(f"result {name:17} {row['integers']}")

# %% [markdown]
# **The surprise in a sentence.** gemmlowp turns −2.5 into −2 when the multiplier is ½ and into −3 when it is ¼,
# and a quarter into 1, since it rounds twice; and on a machine that adds pairs in 16 bits half of a layer's sums
# can be wrong while the accuracy stays where it was.

# %% [markdown]
# **What this lesson does not cover.** Convolutions, which have the same dialects (on x86 PyTorch even chooses
# between two of them by the processor); what happens inside int4 groups (lesson 11); and how to find the layer
# in which two models part (09).

# %% [markdown]
# ## Sources
#
# - B. Jacob et al., 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877), section 2.2: the integer
#   multiplier. gemmlowp, `fixedpoint/fixedpoint.h`; TFLite, `kernels/internal/common.h` and
#   `quantization_util.cc`.
# - torch 2.13: `quantize_per_tensor`, `fake_quantize_per_channel_affine`, `fused_moving_avg_obs_fake_quant`,
#   `ops.quantized.linear`; FBGEMM's kernels for uint8 × int8. torchao 0.18: `choose_qparams_affine`. ONNX
#   operators `QuantizeLinear` and `QLinearMatMul`.
# - Threads: [pytorch#44939](https://github.com/pytorch/pytorch/issues/44939) and
#   [#76390](https://github.com/pytorch/pytorch/issues/76390) (sums that saturate),
#   [FBGEMM#328](https://github.com/pytorch/FBGEMM/issues/328),
#   [gemmlowp#144](https://github.com/google/gemmlowp/issues/144) and
#   [lsq-net#31](https://github.com/zhutmost/lsq-net/issues/31) (from the sum to the integer, step by step).

# %% [markdown]
# **Left open.** Now you have two models whose last layers differ by 33 steps. A dialect, or a bug? And in which
# layer did it begin: is the loudest difference the guilty one? Lesson 09 takes a model that is wrong on
# purpose, and finds out.
