# %% [markdown]
# # 03 Integer matmul and the zero-point algebra
#
# *What does NumPy say to int8 [127, 127] @ [127, 127]?*

# %% tags=["exercise-setup"]
import numpy as np
from lesson_tools import COLOURS, check, compare, quiet_torch, show_versions, torch_or_recorded, use_style

# %%
show_versions()
use_style()
torch = quiet_torch()  # None where torch is not installed

# %% [markdown]
# In lesson 01 we put numbers on a grid. A network does not only store numbers, it multiplies them, by the
# million. In this lesson we multiply matrices whose entries are 8-bit integers and get the *exact* answer.
#
# You will be able to
#
# - say how wide an accumulator has to be, and how many products it holds for certain;
# - multiply two quantized matrices without ever subtracting a zero point from an entry;
# - name the two of the four resulting terms that can be computed before any data arrives;
# - read the arithmetic of an engine that multiplies int8 by int8 with a uint8 instruction;
# - explain why a float32 accumulator is not good enough.

# %% [markdown]
# ## Notation
#
# | sign | meaning |
# | --- | --- |
# | `x`, `w` | real values: inputs and weights |
# | `q` (`qx`, `qw`) | the integers that stand for them |
# | `scale` (s) | real distance between neighbouring integers |
# | `zero_point` (z; `zx`, `zw`) | the integer that stands for real 0 |
# | `qmin`, `qmax` | smallest and largest integer of the grid |
# | `acc` | the accumulator: an int32 in which products are added up |
# | M, K, N | `(M, K) @ (K, N) -> (M, N)`; K is the length of the sums |
# | inv, rint, f() | f(1/s); round half to even; round to float32 (not needed today) |

# %% [markdown]
# ## The question
#
# Two vectors of two entries each, all of them 127, the largest int8. Their product is 127·127 + 127·127. We
# ask NumPy, and the arrays are int8.
#
# Write your prediction into the next cell before you read on. A wrong guess is worth more than none.

# %%
guess = None  # what does NumPy say to int8 [127, 127] @ [127, 127]?

# %% [markdown]
# ## 1 A sum that does not fit
#
# We work it out in two steps. One product is 127·127 = 16,129. It does not fit into eight bits, and what
# NumPy keeps is its lowest eight bits, the remainder modulo 256: 16,129 = 63·256 + 1, so 1. Two such products
# make 2.
#
# Or in one step: the true sum is 32,258 = 126·256 + 2.

# %%
a = np.array([[127, 127]], np.int8)
wrapped = a @ a.T
true = sum(int(p) * int(q) for p, q in zip(a[0], a[0], strict=True))
print("NumPy, int8:", wrapped.item(), wrapped.dtype, "  true:", true)
assert (127 * 127, 127 * 127 % 256) == (16129, 1)
assert wrapped.item() == 2 == true - 126 * 256 and true == 32258

# %% [markdown]
# No error and no warning: the result of an int8 product is an int8 in NumPy, whatever has to be thrown away.
# Is that NumPy's own oddity? We ask PyTorch, twice. `a @ b` on int8 tensors is the same question.
# `torch._int_mm` is the operation that torchao calls for its int8 layers: int8 in, int32 out.

# %%
from minquant.kernels import int8_matmul

from_torch = torch_or_recorded(
    lambda torch: np.array(
        [
            (torch.tensor(a) @ torch.tensor(a).T).item(),
            torch._int_mm(torch.tensor(a), torch.tensor(a).T).item(),
        ]
    ),
    recorded=np.array([2, 32258]),
)
ours = np.array([wrapped.item(), int8_matmul(a, a.T).item()])
assert compare("int8 @ int8 kept in int8, and in int32", ours, from_torch)

# %% [markdown]
# So both libraries have both answers, and the second is the useful one. Products of 8-bit integers are added
# up in a wider integer, the **accumulator**. Everybody uses 32 bits. minquant's name for it is `int8_matmul`;
# its plainest version, the specification of all the faster ones, is a single line of NumPy.
#
# Your turn: that line. Mind *when* the entries are widened. Widening the finished product is too late, as the
# low eight bits are all that is left of it.

# %% [markdown]
# ### Exercise: `matmul`
#
# The specification multiplies Python's integers, which never overflow, one pair at a time. Write it in NumPy.
# The operands are int8 or uint8; the result must be exact.

# %% tags=["exercise-setup"]
largest_int8 = np.array([[127, 127]], np.int8)


def matmul_specification(a, b):
    """Exact integers, one product at a time: (M, K) @ (K, N) -> (M, N)."""
    return np.array([[sum(int(p) * int(q) for p, q in zip(row, col, strict=True)) for col in b.T] for row in a])


# %% answer="matmul" lines=1
def matmul(a, b):
    """Exact product of int8 or uint8 matrices (M, K) and (K, N). [1 line]"""
    ### BEGIN SOLUTION
    return a.astype(np.int32) @ b.astype(np.int32)
    ### END SOLUTION


# %% check="matmul" points=1
check(
    "matmul([[127, 127]], [[127], [127]])",
    matmul(largest_int8, largest_int8.T),
    matmul_specification(largest_int8, largest_int8.T),
    means=[([[2]], "2 is 32258 modulo 256: the product was computed in int8.")],
)
a, b = np.array([[200, 100], [0, 255]], np.uint8), np.array([[-128, 5], [127, -1]], np.int8)
check("matmul([[200, 100], [0, 255]], [[-128, 5], [127, -1]])", matmul(a, b), matmul_specification(a, b))
### BEGIN HIDDEN TESTS
a, b = np.full((1, 519), 255, np.uint8), np.full((519, 1), 127, np.int8)
check(
    "519 products of 255 and 127",
    matmul(a, b),
    matmul_specification(a, b),
    means=[
        ([[16807816]], "16807816 is the nearest float32: from 2^24 on, float32 has no odd integers."),
        ([[30599]], "30599 is 16807815 modulo 65536: the product was computed in int16."),
    ],
)
a, b = np.arange(-60, 60, dtype=np.int8).reshape(8, 15)[::-2, ::3], np.arange(10, dtype=np.int8).reshape(2, 5).T
check("a view with negative strides and a transposed one", matmul(a, b), matmul_specification(a, b))
check("K = 0", matmul(a[:, :0], b[:0]), np.zeros((4, 2)))
### END HIDDEN TESTS

# %% [markdown]
# ## 2 Zero points
#
# Our integers stand for real values, x ≈ (qx − zx)·sx and w ≈ (qw − zw)·sw. We multiply the two, sum over k,
# and pull the two scales out in front, since they are the same for every k:
#
# $$\sum_k x_{mk}\, w_{kn} \;\approx\;
# \quad s_x s_w \underbrace{\sum_k (q_{x,mk} - z_x)(q_{w,kn} - z_w)}_{\mathrm{acc}_{mn}}$$
#
# All the work is in the sum, and the sum is over integers. Two float multiplications per *output* put the
# scales back on, and the next lesson does that. Today is about `acc`.

# %% [markdown]
# By hand, on eight numbers. Our x are 3-bit integers with zero point 3, our w are 4-bit integers with zero
# point 1:
#
# | | qx | | qx − 3 | | | qw | | qw − 1 | |
# | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
# | | 5 | 2 | 2 | −1 | | 2 | −1 | 1 | −2 |
# | | 0 | 7 | −3 | 4 | | −3 | 4 | −4 | 3 |
#
# The top left corner is the first row of qx − 3 times the first column of qw − 1: 2·1 + (−1)·(−4) = **6**.
# Work out the other three before you run the cell.

# %%
qx, zx = np.array([[5, 2], [0, 7]], np.uint8), 3
qw, zw = np.array([[2, -1], [-3, 4]], np.int8), 1

direct = (qx.astype(np.int32) - zx) @ (qw.astype(np.int32) - zw)
print(direct)
assert direct.tolist() == [[6, -7], [-19, 18]]
assert direct[0, 0] == 2 * 1 + (-1) * (-4)

# %% [markdown]
# That is the right answer, and no engine computes it this way. Look at the range of qx − zx. A uint8 lies in
# 0…255, and so does its zero point; the difference lies in −255…255, which are 511 values: **nine bits**. The
# fast instructions of a processor take operands of eight. To subtract first would mean 16-bit operands, half
# as many of them in a register, and all of the matrix rewritten in memory.
#
# So we want to multiply qx and qw as they are, and to put the zero points right afterwards. That takes school
# algebra.

# %%
q, z = np.arange(256)[:, np.newaxis], np.arange(256)[np.newaxis]  # every uint8 beside every zero point
differences = np.unique(q - z)
print(differences.min(), "…", differences.max(), ":", len(differences), "values, where eight bits have", 2**8)
assert (differences.min(), differences.max(), len(differences)) == (-255, 255, 511)

# %% [markdown]
# ## 3 Unfolded
#
# We multiply the bracket out and sum each part over k:
#
# $$\mathrm{acc} = \sum_k q_x q_w \;-\; z_x \sum_k q_w \;-\; z_w \sum_k q_x \;+\; K z_x z_w$$
#
# Four terms. The first is an ordinary product of 8-bit matrices. The second needs the sum of each **column**
# of qw, the third the sum of each **row** of qx, and the last is one number. (Jacob et al. 2018, equation 7.)

# %% [markdown]
# The corner once more by hand. Row 0 of qx is 5, 2; column 0 of qw is 2, −3; K = 2.
#
# | term | computed | value |
# | --- | --- | --- |
# | Σ qx·qw | 5·2 + 2·(−3) | 4 |
# | − zx·Σ qw | −3·(2 − 3) | 3 |
# | − zw·Σ qx | −1·(5 + 2) | −7 |
# | K·zx·zw | 2·3·1 | 6 |
# | together | 4 + 3 − 7 + 6 | **6** |

# %%
wide_x, wide_w = qx.astype(np.int32), qw.astype(np.int32)
column_sums = wide_w.sum(axis=0, keepdims=True)  # (1, N)
row_sums = wide_x.sum(axis=1, keepdims=True)  # (M, 1)
K = wide_x.shape[1]
terms = {
    "Σ qx·qw": wide_x @ wide_w,
    "− zx·Σ qw": np.broadcast_to(-zx * column_sums, (2, 2)),
    "− zw·Σ qx": np.broadcast_to(-zw * row_sums, (2, 2)),
    "K·zx·zw": np.full((2, 2), K * zx * zw),
}
print({name: int(term[0, 0]) for name, term in terms.items()})
assert [term[0, 0] for term in terms.values()] == [4, 3, -7, 6]
assert (sum(terms.values()) == direct).all()

# %% [markdown]
# Now the picture: the four terms and their sum, entry by entry. Predict before you look: which of the maps
# have equal columns, which have equal rows, and which is flat?

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 5, figsize=(10, 2.4), sharey=True)
for i, (axis, (name, term)) in enumerate(zip(axes, (terms | {"acc": direct}).items(), strict=True)):
    image = axis.imshow(term, cmap="RdBu_r", vmin=-28, vmax=28)
    for (m, n), value in np.ndenumerate(term):
        shade = "white" if abs(value) > 17 else "black"
        axis.text(n, m, f"{value}".replace("-", "−"), ha="center", va="center", color=shade, fontsize=15)
    axis.set(title=name, xticks=[0, 1], yticks=[0, 1], xlabel="column n")
    axis.title.set(ha="center", position=(0.5, 1))
    axis.grid(False)
    axis.text(1.25, 0.5, ["+", "+", "+", "=", ""][i], transform=axis.transAxes, fontsize=20, ha="center", va="center")
axes[0].set_ylabel("row m")
figure.colorbar(image, ax=axes, label="steps of sx·sw", shrink=0.9, pad=0.02)
figure.get_layout_engine().set(w_pad=0.1)
plt.show()

# %% [markdown]
# The second map depends on the column only: it is made of the sums over qw. The third depends on the row
# only, and here both rows of qx happen to have the sum 7. The fourth is flat. Only the first mixes rows of qx
# with columns of qw, and it alone costs M·N·K multiplications; the corrections are a row, a column and a
# number.
#
# One example proves little. We try random shapes, random zero points, and one zero point per column of w.

# %%
assert (terms["− zw·Σ qx"] == -7).all() and (terms["K·zx·zw"] == 6).all()
assert terms["− zx·Σ qw"].tolist() == [[3, -9], [3, -9]]

rng = np.random.default_rng(3)
for _ in range(200):
    M, K, N = rng.integers(0, 40, 3)
    x, w = rng.integers(0, 256, (M, K)), rng.integers(-128, 128, (K, N))
    some_zx, some_zw = rng.integers(0, 256), rng.integers(-128, 128, N)
    four = x @ w - some_zx * w.sum(axis=0) - some_zw * x.sum(axis=1, keepdims=True) + K * some_zx * some_zw
    assert (four == (x - some_zx) @ (w - some_zw)).all()
print("200 random products: four terms = direct product, every integer")

# %% [markdown]
# In minquant the four terms live in `minquant.quant.integer.accumulate`, which every quantized layer calls. A
# Linear stores its weight as (N, K), one row an output, so `accumulate` takes it that way round, and we hand
# over `qw.T`. What it does inside is what we did: `int8_matmul` on the integers as they are, then the
# corrections.

# %%
from minquant.quant import QParams, QSpec, QTensor
from minquant.quant.integer import accumulate

acc = accumulate(qx, np.int32(zx), qw.T, np.int32(zw))
print(acc, acc.dtype)
assert acc.dtype == np.int32 and (acc == direct).all()

x_tensor = QTensor(qx, QParams(np.float32(0.5), np.int32(zx), QSpec(bits=3, signed=False)))
w_tensor = QTensor(qw, QParams(np.float32(0.25), np.int32(zw), QSpec(bits=4)))
real = x_tensor.dequantize() @ w_tensor.dequantize()
print("real product\n", real, "\nacc · sx · sw\n", acc * np.float32(0.5 * 0.25))
assert (real == acc * np.float32(0.5 * 0.25)).all()  # powers of two: nothing is rounded

# %% [markdown]
# Now PyTorch. Its quantized linear never shows the accumulator: it rescales to 8 bits at once. We can see
# through it, though: with all scales 1 and the output's zero point at 128, what comes out is acc + 128, and
# our accumulators are small enough to fit.

# %%
real_x, real_w = qx.astype(np.float32) - zx, qw.T.astype(np.float32) - zw  # scale 1


def accumulator_of_torch(torch):
    from torch.ao.nn.quantized import functional

    x = torch.quantize_per_tensor(torch.tensor(real_x), 1.0, zx, torch.quint8)
    w = torch.quantize_per_tensor(torch.tensor(real_w), 1.0, zw, torch.qint8)
    assert (x.int_repr().numpy() == qx).all() and (w.int_repr().numpy() == qw.T).all()
    return functional.linear(x, w, None, scale=1.0, zero_point=128).int_repr().numpy().astype(np.int32) - 128


theirs = torch_or_recorded(accumulator_of_torch, recorded=np.array([[6, -7], [-19, 18]]))
assert compare("acc", acc, theirs)

# %% [markdown]
# ### Exercise: `four_terms`
#
# Write the algebra yourself. The specification subtracts first, entry by entry. You must not: `qx` and `qw`
# go into the product as they are, and nothing but row sums and column sums puts the zero points right.
#
# `zx` is one integer; `zw` is one integer or an array of N, one for each column. `qx` is uint8 (M, K), `qw`
# int8 (K, N), and K may be 0.

# %% tags=["exercise-setup"]
example_qx, example_qw = np.array([[5, 2], [0, 7]], np.uint8), np.array([[2, -1], [-3, 4]], np.int8)


def four_terms_specification(qx, zx, qw, zw):
    """acc[m, n] = Σ_k (qx[m, k] - zx)(qw[k, n] - zw[n]), exact, one product at a time."""
    (M, K), N = qx.shape, qw.shape[1]
    zw = [int(z) for z in np.broadcast_to(zw, N)]
    acc = np.zeros((M, N), np.int64)
    for m in range(M):
        for n in range(N):
            acc[m, n] = sum((int(qx[m, k]) - zx) * (int(qw[k, n]) - zw[n]) for k in range(K))
    return acc


# %% answer="four_terms" lines=4
def four_terms(qx, zx, qw, zw):
    """The accumulator (M, N) from the integers as they are, corrected afterwards. [4 lines]"""
    ### BEGIN SOLUTION
    x, w = qx.astype(np.int32), qw.astype(np.int32)
    row_sums = x.sum(axis=1, keepdims=True)
    column_sums = w.sum(axis=0)
    return x @ w - zx * column_sums - zw * row_sums + x.shape[1] * zx * zw
    ### END SOLUTION


# %% check="four_terms" points=2
qx, qw = example_qx, example_qw
check(
    "four_terms([[5, 2], [0, 7]], 3, [[2, -1], [-3, 4]], 1)",
    four_terms(qx, 3, qw, 1),
    four_terms_specification(qx, 3, qw, 1),
    means=[
        ([[0, -13], [-25, 12]], "Every entry is 6 too small: K·zx·zw is missing."),
        ([[2, -3], [-23, 22]], "The sums run along the wrong axis: k is the columns of qx and the rows of qw."),
        ([[4, 3], [-21, 28]], "This is qx @ qw alone: the zero points are still in it."),
    ],
)
check("zero points 0", four_terms(qx, 0, qw, 0), four_terms_specification(qx, 0, qw, 0))
### BEGIN HIDDEN TESTS
x, w = np.array([[1, 2, 3], [255, 0, 128]], np.uint8), np.array([[1, 0], [-128, 5], [127, -7]], np.int8)
zw = np.array([2, -3])
check("one zero point per column", four_terms(x, 128, w, zw), four_terms_specification(x, 128, w, zw))
long_x, long_w = np.full((1, 600), 255, np.uint8), np.full((600, 1), 127, np.int8)
check("K = 600", four_terms(long_x, 0, long_w, -128), four_terms_specification(long_x, 0, long_w, -128))
check("K = 0", four_terms(x[:, :0], 3, w[:0], zw), np.zeros((2, 2)))
rng = np.random.default_rng(0)
for _ in range(30):
    M, K, N = rng.integers(1, 9, 3)
    x = rng.integers(0, 256, (M, K)).astype(np.uint8)
    w = rng.integers(-128, 128, (K, N)).astype(np.int8)
    zx, zw = int(rng.integers(0, 256)), rng.integers(-128, 128, N)
    check(f"random {(M, K, N)}", four_terms(x, zx, w, zw), four_terms_specification(x, zx, w, zw), quiet=True)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 What can be done before the data arrives
#
# Weights are known long before any input, and so are both zero points in many networks. We sort the terms by
# what they wait for:
#
# | term | waits for x? | work |
# | --- | --- | --- |
# | Σ qx·qw | yes | M·N·K multiplications |
# | − zx·Σ qw | no | N sums, done once |
# | − zw·Σ qx | yes | M sums of K values, at run time |
# | K·zx·zw | no | one number, done once |
#
# The second and the fourth fold into one row of N integers, the **offset**, computed when the model is built.
# An engine often folds the bias into it as well.

# %%
qx, zx, qw, zw, K = example_qx, 3, example_qw, 1, 2  # our eight numbers again
offset = K * zx * zw - zx * column_sums[0]  # (N,): before any x is seen
run_time = wide_x @ wide_w + offset - zw * row_sums
print("offset", offset)
assert offset.tolist() == [9, -3] and (run_time == direct).all()

M = K = N = 512
print(f"at 512 × 512 × 512: {M * N * K:,} multiplications, {M * K:,} additions for the row sums")
assert M * N * K == 134_217_728 and M * K == 262_144 and M * N * K == N * (M * K)

# %% [markdown]
# One run-time term is left beside the product: zw·Σ qx. It costs one addition for every N multiplications,
# one in 512 here, but it means a pass of its own over x. There is a way to be rid of it altogether, and
# lesson 01 had it: a **symmetric** grid of signed integers has zero point 0. With zw = 0 the third and the
# fourth term vanish.
#
# That is why weights are quantized symmetrically nearly everywhere, at the price of a grid that may not fit
# their range as tightly. Some engines leave no choice. We ask one of torch's for our zw = 1:

# %%
symmetric_only = "ONEDNN only supports symmetric quantization of weight, whose zero point must be 0, but got 1"


def onednn_with_a_zero_point(torch):
    engine = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "onednn"
        accumulator_of_torch(torch)
    except RuntimeError as error:
        return np.array([str(error).strip().splitlines()[0].split(": ")[-1]])
    finally:
        torch.backends.quantized.engine = engine
    return np.array(["accepted"])


answer = onednn_with_a_zero_point(torch)[0] if torch else symmetric_only
print(answer)
assert answer == symmetric_only

# %% [markdown]
# ## 5 int8 × int8 on an instruction for uint8 × int8
#
# Intel's dot-product instructions multiply *unsigned* by *signed* bytes. If x is signed too, the engines play
# a trick that we can now read at sight: they add 128 to every entry of a, which makes it a uint8, and take it
# out again.
#
# $$\sum_k a_k b_k = \sum_k (a_k + 128)\, b_k - 128 \sum_k b_k$$
#
# It is the algebra of section 3 with a zero point of 128, and the correction needs b only. By hand: a = −3,
# 100 and b = 5, −2. Then a + 128 = 125, 228; 125·5 − 228·2 = 169; 128·(5 − 2) = 384; 169 − 384 = **−215**.

# %%
a, b = np.array([[-3, 100]], np.int8), np.array([[5], [-2]], np.int8)
shifted = (a.astype(np.int16) + 128).astype(np.uint8)
print(shifted, int8_matmul(shifted, b), 128 * b.sum(axis=0, dtype=np.int32))
assert int8_matmul(shifted, b).item() == 169 and 128 * int(b.sum()) == 384
assert 169 - 384 == -215 == int8_matmul(a, b).item()

rng = np.random.default_rng(5)
a = rng.integers(-128, 128, (64, 100)).astype(np.int8)
b = rng.integers(-128, 128, (100, 32)).astype(np.int8)
shifted = (a.astype(np.int16) + 128).astype(np.uint8)
through_uint8 = int8_matmul(shifted, b) - 128 * b.sum(axis=0, dtype=np.int32)
assert (through_uint8 == int8_matmul(a, b)).all()

# %% [markdown]
# And here it is with torch: 64 × 100 × 32 random int8 values, through our uint8 detour on the left, as an
# int32 product on the right.
#
# A user of FBGEMM, one of torch's engines, asked for every step of the way, from floats to integers and back
# (FBGEMM#328). The first answer explains that A must be uint8 because of the instruction, and that an int8
# matrix can be converted beforehand. The step that takes the 128 out again is the one that is easily lost on
# the way.

# %%
theirs = torch_or_recorded(
    lambda torch: (torch.tensor(a).int() @ torch.tensor(b).int()).numpy(),
    recorded=a.astype(np.int32) @ b.astype(np.int32),  # what it gave: the exact product
)
assert compare("64 × 100 × 32", through_uint8, theirs)

# %% [markdown]
# ## 6 How much room is in 32 bits?
#
# An int32 ends at 2³¹ − 1 = 2,147,483,647. Beyond that it wraps around, as int8 did in section 1, and just as
# silently. So K has a limit. We count with the worst case: every product as large as the types allow, all of
# one sign.
#
# Which product is the largest? For uint8 × int8 it is 255·(−128), and for int8 × int8 it is (−128)·(−128):
# the sign does not matter, and −128 is larger than 127.

# %%
limit = 65_793  # for uint8 × int8: 255 · 128 = 32,640 a product
for K in (limit, limit + 1):
    a, b = np.full((1, K), 255, np.uint8), np.full((K, 1), -128, np.int8)
    in_int32 = (a.astype(np.int32) @ b.astype(np.int32)).item()
    print(f"K = {K:,}: int32 says {in_int32:,}, the truth is {-32_640 * K:,}")
assert 32_640 * limit == 2_147_483_520 <= 2**31 - 1 < 32_640 * (limit + 1)
assert in_int32 == 2_147_451_136 == -32_640 * (limit + 1) + 2**32

# %% [markdown]
# At K = 65,794 the sum changes its sign. It takes extreme data to get there, and few layers are that wide;
# but a limit that is known can be checked once, when a layer is built, and then nobody has to think about the
# data.
#
# ### Exercise: `max_k`
#
# For operands in a_min … a_max and b_min … b_max: the largest K for which *no* data can make the sum, or any
# part of it, leave −(2³¹ − 1) … 2³¹ − 1. (We give away −2³¹, so that both ends are alike.) The ranges contain
# a number other than 0.

# %% tags=["exercise-setup"]
INT32_MAX = 2_147_483_647


def max_k_specification(a_min, a_max, b_min, b_max):
    """Looks for the largest product among all pairs, then adds it up until there is no room."""
    largest = max(abs(a * b) for a in range(a_min, a_max + 1) for b in range(b_min, b_max + 1))
    total = K = 0
    while total + largest <= INT32_MAX:
        total, K = total + largest, K + 1
    return K


# %% answer="max_k" lines=2
def max_k(a_min, a_max, b_min, b_max):
    """The largest safe K for an int32 accumulator. [2 lines]"""
    ### BEGIN SOLUTION
    largest = max(abs(a) for a in (a_min, a_max)) * max(abs(b) for b in (b_min, b_max))
    return (2**31 - 1) // largest
    ### END SOLUTION


# %% check="max_k" points=1
check(
    "max_k(0, 255, -128, 127), uint8 by int8",
    max_k(0, 255, -128, 127),
    max_k_specification(0, 255, -128, 127),
    means=[
        (66311, "66311 counts with 255·127: int8 reaches further on its negative side."),
        (65794, "One too many: round the quotient down."),
    ],
)
### BEGIN HIDDEN TESTS
check(
    "max_k(-128, 127, -128, 127), int8 by int8",
    max_k(-128, 127, -128, 127),
    max_k_specification(-128, 127, -128, 127),
    means=[
        (131072, "131072 products of 16384 make 2^31, one more than an int32 holds."),
        (133144, "133144 counts with 127·127: (-128)·(-128) is larger."),
    ],
)
check("max_k(-8, 7, 0, 255), int4 by uint8", max_k(-8, 7, 0, 255), (2**31 - 1) // (8 * 255))
check("max_k(-200, 50, 1, 300)", max_k(-200, 50, 1, 300), max_k_specification(-200, 50, 1, 300))
### END HIDDEN TESTS

# %% [markdown]
# minquant does this check for you. Where the types leave no guarantee it refuses, and says what to do instead
# of handing out a number that may be wrong.

# %%
from minquant import kernels

print({name: kernels.max_k(name) for name in ("uint8", "int8")})
assert (kernels.max_k("uint8"), kernels.max_k("int8")) == (65_793, 131_071)
try:
    int8_matmul(np.zeros((1, 65_794), np.uint8), np.zeros((65_794, 1), np.int8))
except ValueError as refused:
    print(refused)

# %% [markdown]
# ## 7 Why not simply float32?
#
# NumPy multiplies float32 matrices very fast, a float32 has 32 bits as well, and its range is far larger.
# Could it be our accumulator?
#
# A float32 keeps 24 significant bits. Integers up to 2²⁴ = 16,777,216 are all there; from there on only the
# even ones, later only multiples of four. An int32 spends no bits on an exponent and has all of them. We add
# up 255·127 = 32,385, an odd number, and watch when the truth first becomes an odd number above 2²⁴.

# %%
product = 255 * 127


def in_float32(K):
    a, b = np.full((1, K), 255, np.uint8), np.full((K, 1), 127, np.int8)
    return int((a.astype(np.float32) @ b.astype(np.float32)).item())


wrong = [K for K in range(1, 600) if in_float32(K) != product * K]
K = wrong[0]
print(f"first wrong at K = {K}: float32 {in_float32(K):,}, true {32_385 * K:,}, 2^24 = {2**24:,}")
assert K == 519 and in_float32(K) == 16_807_816 and 32_385 * K == 16_807_815
assert 32_385 * (K - 1) < 2**24 < 32_385 * K

# %% [markdown]
# K = 519 is no exotic size: many layers have more inputs. And it does not stop at one unit. We add the
# products one by one and plot how far the running sum is from the truth.

# %%
count = np.arange(1, 1201)
running = np.cumsum(np.full(1200, 32_385, np.float32), dtype=np.float32)
whole = np.cumsum(np.full(1200, 32_385, np.int32), dtype=np.int32)
error, whole_error = running.astype(np.int64) - 32_385 * count, whole - 32_385 * count

figure, axis = plt.subplots()
axis.plot(count, error, color=COLOURS["float"], label="float32")
axis.plot(count, whole_error, color=COLOURS["minquant"], label="int32 (minquant)")
axis.axvline(519, color="black", linewidth=1, linestyle=":")
axis.text(510, -480, "K = 519: the sum\npasses 2²⁴", ha="right")
axis.set(xlabel="K (products of 255·127 added up)", ylabel="sum − true sum (steps)", title="What the accumulator loses")
axis.legend(loc="lower left")
plt.show()
assert not error[:518].any() and error[518] == 1 and not whole_error.any() and error[999] == -480

# %% [markdown]
# After 519 additions float32 is 1 too high, and then it loses one unit with *every* further addition: −480 at
# K = 1000. Between 2²⁴ and 2²⁵ the new sum lies half way between two float32 numbers each time, the tie goes
# to the one that ends in an even bit, and with these numbers that is always the lower one. Rounding errors
# need not cancel.
#
# Engines know it. A user asked oneDNN, Intel's library, what a correction in its convolution kernel was for
# (oneDNN#1024), and the comment beside the line in question says why it stands *before* the conversion to
# float32: for 2²⁴. The answer to the user is the formula of section 3, for zw = 0.

# %% [markdown]
# ## Your guess, and the surprise

# %%
a = np.array([[127, 127]], np.int8)
result, exact = (a @ a.T).item(), int8_matmul(a, a.T).item()
print(f"guess: {guess}    NumPy says: {result}    true: {exact:,}")
assert (result, exact) == (2, 32_258)

# %% [markdown]
# The surprise in a sentence: **float32, with all its range, cannot hold a sum that an int32 holds with ease;
# 519 products are enough.**
#
# And the rest in four: products of bytes are added in int32. Zero points come out of the product by algebra,
# as sums of columns and of rows. What does not need x is computed in advance, and a symmetric weight leaves
# nothing else to do. K has a limit, and it is known.

# %% [markdown]
# ## Not covered
#
# - **Speed.** An int32 product in NumPy is slow; lesson 10 builds the fast one, on the instruction of section
#   5.
# - **Saturation.** Older instructions add two products in 16 bits, and clip: 255·127 twice does not fit.
#   Lesson 08.
# - **Several scales along K** (groups of a row with a scale each): one accumulator a group. Lesson 11.
# - **Convolution.** The same algebra, but at the border the padding has to be a real zero. Lesson 07.

# %% [markdown]
# ## Sources
#
# - B. Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
#   Inference*, CVPR 2018, arXiv:1712.05877: section 2.3, equation 7.
# - PyTorch 2.13: `torch._int_mm`, `torch.ao.nn.quantized.functional.linear`, `torch.quantize_per_tensor`.
# - FBGEMM#328 (the whole way from floats to integers and back, please) and oneDNN#1024 (what is this
#   compensation?).
# - minquant: `minquant/kernels/reference.py` (one line) and `minquant/quant/integer.py` (the four terms).

# %% [markdown]
# ## The question left open
#
# We took qx and zx as given. For a weight that is fair: we have it in front of us. But an input arrives when
# the model is running. Who chooses its grid, when, and how much does the choice cost in accuracy? In a
# published example the loss of a small network goes from 0.0037 to 0.0049 when it is quantized on the fly.
# How much of that do the weights answer for, and how much the inputs? That is lesson 04.
