# %% [markdown]
# # 10 From three loops to the peak
#
# *NumPy multiplies two 512×512 matrices in int8, int32 and float32: which is the fastest, which the slowest?*
#
# Quantized networks are said to be fast because their numbers are small. In this lesson we look for that speed.
# We write a product of integers as three loops in Python, change a few lines at a time, and end close to what the
# processor can do at all. Every step computes the same integers, and we check that before we time it.
#
# We need lesson 03: int8 products, added in int32.

# %% tags=["exercise-setup"]
import numpy as np
from lesson_tools import COLOURS, check, compare, quiet_torch, show_versions, torch_or_recorded, use_style

# %%
show_versions()
use_style()
torch = quiet_torch()  # None where torch is not installed

# %% [markdown]
# ## What you will be able to do
#
# After this lesson you can
#
# - say how many operations and how many bytes a matrix product takes, and which of the two will be the limit;
# - read a roofline: what a processor allows, and what a kernel makes of it;
# - say why the order of two loops can matter more than the language;
# - use the instruction that quantized networks run on, from Python, and lay out the operands for it;
# - say why a tile of the result belongs in registers, and why a single row stays slow all the same;
# - ask the right question when somebody says that lower precision is faster.

# %% [markdown]
# ## Notation
#
# | written | means |
# | --- | --- |
# | M, K, N | `(M, K) @ (K, N) -> (M, N)`; 512³ is M = K = N = 512 |
# | a, b, c | the left operand, the right one (the weights), the result |
# | `q` | an integer; today all of a and b are int8: `qmin` = −128, `qmax` = 127 |
# | `acc` | the sum of a row times a column, int32 |
# | operation | one multiplication or one addition |
# | GOP/s, GB/s | 10⁹ operations, 10⁹ bytes a second |
# | `x`, `scale`, `zero_point`, rint, inv | as in lesson 01; not needed today |

# %% [markdown]
# ## The question
#
# An int8 takes one byte, an int32 and a float32 four. We give NumPy two 512×512 matrices of each and write `a @ b`,
# on one core. Which of the three products is the fastest, which the slowest, and by how much?

# %%
guess = None  # fastest first, and how many times the slowest: ("int8", "int32", "float32", 4)

# %% [markdown]
# ## 1 · Three products in NumPy
#
# First a way to measure. A product of (M, K) and (K, N) has M·N sums of K products: M·K·N multiplications and as
# many additions, 2·M·K·N **operations**. At 512³ that is 268,435,456.
#
# We call the function many times and keep the *shortest* time. Whatever disturbs a call, another program for
# instance, can only make it longer. Everybody gets one core, libraries as well.

# %%
import time

from minquant.bench.threads import limited
from minquant.kernels import int8_matmul


def gops(call, operations):
    """10⁹ operations a second, by the shortest of at least three calls, on one core."""
    with limited(1):
        call()  # the first one may have to compile
        durations, until = [], time.perf_counter() + 0.2
        while len(durations) < 3 or time.perf_counter() < until:
            began = time.perf_counter()
            call()
            durations.append(time.perf_counter() - began)
    return operations / min(durations) / 1e9


M = K = N = 512
WORK = 2 * M * K * N
rng = np.random.default_rng(10)
a, b = rng.integers(-128, 128, (2, 512, 512), np.int8)
true = int8_matmul(a, b, backend="numpy")  # lesson 03's specification: widened to int32, then multiplied
assert WORK == 268_435_456 and true.dtype == np.int32

# %%
pairs = {dtype.__name__: (a.astype(dtype), b.astype(dtype)) for dtype in (np.int8, np.int32, np.float32)}
in_numpy = {name: gops(lambda x=x, y=y: x @ y, WORK) for name, (x, y) in pairs.items()}
right = {name: np.mean(x @ y == true) for name, (x, y) in pairs.items()}
for name, value in in_numpy.items():
    print(f"{name:8} {value:7.1f} GOP/s   {right[name]:4.0%} of the results are right")
print(f"\nfloat32 is {in_numpy['float32'] / min(in_numpy.values()):.0f} times as fast as the slowest")
assert in_numpy["float32"] > 5 * max(in_numpy["int8"], in_numpy["int32"])
assert right["int8"] < 0.01 and right["int32"] == right["float32"] == 1  # K is small: no sum reaches 2^24

# %% [markdown]
# float32 wins by far, with four times the bytes of int8. And hardly any int8 result is right: they wrapped around in
# eight bits (lesson 03).
#
# The reason is dull. For floats NumPy calls a BLAS, a library in which each processor's product has been written by
# hand for decades. A BLAS knows floats only. For integers NumPy has three loops in C
# ([numpy#8428](https://github.com/numpy/numpy/issues/8428),
# [numpy#14556](https://github.com/numpy/numpy/issues/14556)).
#
# So the speed is not in the number format. It is in the code. What is the most that code could reach?

# %% [markdown]
# ## 2 · Two limits
#
# A product cannot take less time than its operations need, nor less than it takes to read its operands. So
#
# $$\text{speed} \;\le\;
# \min\left(\text{peak},\; \text{bandwidth} \times \frac{\text{operations}}{\text{bytes}}\right)$$
#
# - **peak**: operations a second, if all operands were in registers already;
# - **bandwidth**: bytes a second that a core can read;
# - **operations per byte**: a property of the problem, not of the processor.
#
# Drawn over operations per byte it is a slope and then a flat line: the **roofline** (Williams, Waterman and
# Patterson 2009). Left, under the slope, memory is the limit; right, under the flat part, arithmetic is.

# %% [markdown]
# Operations per byte, by hand, for 1024³: 2·1024³ operations. Each entry of a and of b is one byte and is read once,
# each entry of the result is an int32 and is written once: (1 + 1 + 4)·1024² bytes. The quotient is 2·1024/6 =
# **341** operations per byte.
#
# And for a single row, M = 1, with a weight of 4096×4096? There are 2·4096² operations, and the 4096² bytes of the
# weight dwarf the rest. So **2**, whatever the size: each weight is read, multiplied once, added once, and never used
# again.

# %% [markdown]
# ### Exercise: `ops_per_byte`
#
# For any M, K, N, with a and b in int8 and the result in int32, each byte moved once.


# %% tags=["exercise-setup"]
def ops_per_byte_specification(M, K, N):
    """Counts row by row."""
    operations, moved = 0, K * N  # b
    for _ in range(M):
        moved += K  # a row of a
        for _ in range(N):
            operations += 2 * K  # K products, K additions
            moved += 4  # the int32
    return operations / moved


# %% answer="ops_per_byte" lines=2
def ops_per_byte(M, K, N):
    """Operations of (M, K) @ (K, N) per byte of its int8 operands and its int32 result. [2 lines]"""
    ### BEGIN SOLUTION
    moved = M * K + K * N + 4 * M * N
    return 2 * M * K * N / moved
    ### END SOLUTION


# %% check="ops_per_byte" points=1
# A quotient of integers below 2^53 is rounded once, a value below 1024 by less than 1e-12.
check(
    "ops_per_byte(1024, 1024, 1024)",
    ops_per_byte(1024, 1024, 1024),
    ops_per_byte_specification(1024, 1024, 1024),
    means=[
        (2 * 1024 / 3, "683 counts the result as bytes: a sum of int8 products is an int32, four bytes."),
        (1024, "1024 counts the operands alone: the result has to be written too."),
        (1024 / 6, "171 counts multiplications alone: each product is also added."),
    ],
    within=1e-9,
)
### BEGIN HIDDEN TESTS
check(
    "M = 1: ops_per_byte(1, 512, 512)",
    ops_per_byte(1, 512, 512),
    ops_per_byte_specification(1, 512, 512),
    means=[(2 * 512 / 6, "171 is 512³'s: M, K and N may differ.")],
    within=1e-9,
)
check("ops_per_byte(3, 5, 7)", ops_per_byte(3, 5, 7), ops_per_byte_specification(3, 5, 7), within=1e-9)
check("M = 0: nothing to do", ops_per_byte(0, 5, 7), 0.0, within=1e-9)
### END HIDDEN TESTS

# %% [markdown]
# Now *this* processor's two limits. We measure them as we measure everything: the instruction that we are going to
# use, in a loop that touches no memory; and the reading of 64 MB, over and over, more than most caches hold.
#
# Which instruction? minquant knows a handful of processors, and `chosen()` says what yours has. If it says "plain",
# there is none, and some of the cells below will say so and go on.

# %%
from minquant.bench.limits import dot_probe, read_probe
from minquant.kernels.isa import ISAS, chosen

isa = chosen()
NONE_HERE = "This processor has no such instruction that minquant knows (isa 'plain'): nothing to measure here."
dot, reading = dot_probe(isa), read_probe(64 * 2**20)
peak = gops(dot.call, dot.amount) if dot else None
bandwidth = gops(reading.call, reading.amount)  # of bytes, so GB/s

print(f"bandwidth: {bandwidth:.1f} GB/s")
if peak:
    print(f"peak:      {peak:.0f} GOP/s ({isa.name})")
    print(f"the slope meets the flat line at {peak / bandwidth:.1f} operations per byte; 512³ has {2 * 512 / 6:.0f}")
else:
    print(NONE_HERE)

# %% [markdown]
# 512³ lies to the right of the corner: it is arithmetic that limits it, and the peak is what we aim for.

# %% [markdown]
# ## 3 · Three loops
#
# The plainest product there is: for each row m, for each column n, add up over k. We run it on Python's own lists of
# integers, on 64³ only.

# %%
speed = {}  # step -> GOP/s


def three_loops(a, b, c):
    for m in range(len(a)):
        for n in range(len(b[0])):
            for k in range(len(b)):
                c[m][n] += a[m][k] * b[k][n]


SMALL = 64
lists = [x[:SMALL, :SMALL].tolist() for x in (a, b, np.zeros_like(a))]
three_loops(*lists)
assert np.array_equal(lists[2], a[:SMALL, :SMALL].astype(np.int32) @ b[:SMALL, :SMALL].astype(np.int32))

speed["Python"] = gops(lambda: three_loops(*lists), 2 * SMALL**3)
print(f"Python: {speed['Python']:.3f} GOP/s; 512³ would take {WORK / speed['Python'] / 1e9:.0f} s")

# %% [markdown]
# Every `*` and `+` looks up what its operands are, makes an object for the result, and counts references. The
# arithmetic itself is a tiny part of it.
#
# [numba](https://numba.pydata.org) compiles the function for the types that it is called with. Not a character of it
# changes. `product` makes the zeros to start from.

# %%
from numba import njit


def product(loops):
    """c = a @ b by these loops."""
    c = np.zeros((M, N), np.int32)
    loops(a, b, c)
    return c


compiled = njit(three_loops)
assert (product(compiled) == true).all()
speed["loops m, n, k"] = gops(lambda: product(compiled), WORK)
print(f"compiled: {speed['loops m, n, k']:.1f} GOP/s, {speed['loops m, n, k'] / speed['Python']:.0f} times Python")
print(f"NumPy's int32: {in_numpy['int32']:.1f} GOP/s")
assert speed["loops m, n, k"] > 5 * speed["Python"]

# %% [markdown]
# So much for the language. The second line is there because NumPy's integers go through three such loops too, written
# in C. Compiled code need not be fast code.

# %% [markdown]
# ## 4 · Two lines swapped
#
# How does the innermost loop walk through memory? b lies row after row, so b[k, n] is at address 512·k + n. While k
# runs, the loop jumps 512 bytes at each step. The processor fetches memory in lines of 64 bytes, and we use one byte
# of each.
#
# With the loops over n and k swapped, n is innermost: b and c are read one entry after the other, and a[m, k] stays
# what it is. The sums are the same, added in the same order.


# %%
def swapped_loops(a, b, c):
    for m in range(len(a)):
        for k in range(len(b)):
            for n in range(len(b[0])):
                c[m][n] += a[m][k] * b[k][n]


swapped = njit(swapped_loops)
assert (product(swapped) == true).all()
speed["loops m, k, n"] = gops(lambda: product(swapped), WORK)
ratio = speed["loops m, k, n"] / speed["loops m, n, k"]
print(f"two lines swapped: {speed['loops m, k, n']:.0f} GOP/s, {ratio:.0f} times as fast")
assert ratio > 5

# %% [markdown]
# Two lines, and not a different operation among them. Two things happened at once: whole cache lines are used, and
# neighbouring entries may be worked on together, so the compiler put several of them into one vector register and
# multiplies them with one instruction.
#
# Yet it is far from the peak. In each step of the inner loop c is loaded, one product is added, and c is stored again.
# The arithmetic waits for the carrying.

# %% [markdown]
# ## 5 · An instruction for sums of products
#
# Many processors since about 2018 have an instruction made for quantized networks. It takes a group of bytes from a
# and a group from b, multiplies them pair by pair, and adds all the products to an int32. In one go, and for a whole
# vector of such sums:
#
# - VNNI (Intel, AMD): `VPDPBUSD`, groups of 4, uint8 times int8 (lesson 03, section 5: the 128 comes out again);
# - Arm: `SDOT`, groups of 4, int8 times int8;
# - AVX2, older: `VPMADDWD`, groups of 2, in int16. The bytes are widened first, and the addition is a second
#   instruction. (Its relative for bytes, `VPMADDUBSW`, saturates: lesson 08.)

# %% [markdown]
# One sum, by hand. A group of four from a: 3, −1, 2, 5. From b: 1, 4, 0, −2. The accumulator holds 10. Afterwards it
# holds 10 + 3·1 + (−1)·4 + 2·0 + 5·(−2) = **−1**.
#
# A vector has `lanes` of these sums side by side, for as many columns of b. The group from a is the same for all of
# them, copied into each lane.

# %%
group_of_a, group_of_b, acc = np.array([3, -1, 2, 5]), np.array([1, 4, 0, -2]), 10
print("acc + Σ a·b =", acc + group_of_a @ group_of_b)
assert acc + group_of_a @ group_of_b == -1

for kind in ISAS[:-1]:
    each = 2 * kind.group * kind.lanes
    print(f"{kind.name:11} group {kind.group} × {kind.lanes:2} lanes: {each:3} operations an instruction")

# %% [markdown]
# ### Packing
#
# The instruction wants a group of k from one column, then the same k from the next column. In b they lie apart: down a
# column. So b is **packed** once, into the order in which the kernel reads it: cut into *panels* as wide as a tile of
# the result, and in each panel group after group.
#
# By hand, with panels of 2 columns and groups of 2. Let the rows of b be 1, 2, 3, 4 and 5, 6, 7, 8. The first panel
# holds the columns 1, 5 and 2, 6, the second 3, 7 and 4, 8. In memory: **1 5 2 6 3 7 4 8**.
#
# For weights that is done once, when the model is loaded.

# %%
import dataclasses

from minquant.kernels.packing import pack

tiny = dataclasses.replace(ISAS[0], group=2, lanes=2, vectors=1)  # an instruction of our own, for small numbers
packed_tiny = pack(np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int8), tiny)
print("panels, steps, columns, group:", packed_tiny.panels.shape)
print("in memory:", packed_tiny.panels.ravel().tolist(), "  sums of columns:", packed_tiny.sums.tolist())
assert packed_tiny.panels.ravel().tolist() == [1, 5, 2, 6, 3, 7, 4, 8]

# %% [markdown]
# A larger one to look at: 8 × 8, panels of 4 columns, groups of 2. On the left is b, and in each cell the number at
# which the kernel reads that entry. On the right, the addresses that it reads from, one after the other. If b stayed
# as it lies, the kernel would jump to and fro; packed, it reads straight on.

# %%
import matplotlib.pyplot as plt

places = np.arange(64, dtype=np.int8).reshape(8, 8)  # each entry says where it lies in b
four_columns = dataclasses.replace(tiny, lanes=4)
order = pack(places, four_columns).panels.ravel()  # where the kernel's 1st, 2nd, … byte lies

figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.6), width_ratios=[1, 1.3])
wanted = np.empty(64, int)
wanted[order] = np.arange(64)
axes[0].imshow(wanted.reshape(8, 8), cmap="Blues", vmin=-20)
for (k, n), when in np.ndenumerate(wanted.reshape(8, 8)):
    axes[0].text(n, k, when, ha="center", va="center", fontsize=9, color="white" if when > 36 else "black")
axes[0].axvline(3.5, color="black")
axes[0].set(xlabel="column n", ylabel="row k", xticks=range(8), yticks=range(8), title="b, and when each entry is read")
axes[0].grid(False)
axes[1].plot(order, color=COLOURS["float"], marker=".", label="b as it lies")
axes[1].plot(np.arange(64), color=COLOURS["minquant"], label="packed")
axes[1].set(xlabel="number of the read (count)", ylabel="address (bytes)", title="Where it is read from")
axes[1].legend()
plt.show()
assert order[:6].tolist() == [0, 8, 1, 9, 2, 10]

# %% [markdown]
# ### Exercise: `pack_b`
#
# Pack any int8 matrix (K, N): panel after panel of `columns` columns; in a panel, group after group of `group` rows;
# in a group, column after column; in a column, its `group` entries. The kernel always reads whole panels and whole
# groups, so what is missing at the right and at the bottom is **zero**: that adds nothing to any sum.


# %% tags=["exercise-setup"]
def pack_b_specification(b, columns, group):
    """Byte after byte."""
    K, N = b.shape
    memory = []
    for left in range(0, N, columns):
        for top in range(0, K, group):
            for n in range(left, left + columns):
                for k in range(top, top + group):
                    memory.append(int(b[k, n]) if k < K and n < N else 0)
    return memory


two_rows = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int8)
three_rows = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.int8)


# %% answer="pack_b" lines=5
def pack_b(b, columns, group):
    """int8 (K, N) -> the packed bytes, one after the other, as an int8 array of one dimension. [5 lines]"""
    ### BEGIN SOLUTION
    K, N = b.shape
    padded = np.zeros((-(-K // group) * group, -(-N // columns) * columns), np.int8)
    padded[:K, :N] = b
    steps = padded.reshape(len(padded) // group, group, -1, columns)  # (step, in the group, panel, column)
    return steps.transpose(2, 0, 3, 1).ravel()
    ### END SOLUTION


# %% check="pack_b" points=2
check(
    "pack_b([[1, 2, 3, 4], [5, 6, 7, 8]], columns=2, group=2)",
    pack_b(two_rows, 2, 2),
    pack_b_specification(two_rows, 2, 2),
    means=[
        ([1, 2, 3, 4, 5, 6, 7, 8], "Row after row: that is b as it lies. The group runs fastest, down a column."),
        (
            [1, 2, 5, 6, 3, 4, 7, 8],
            "In each group the columns run fastest: the instruction wants a column's group together.",
        ),
        ([1, 5, 2, 6, 3, 7, 4, 8][::-1], "Turned round: begin with the first panel and its first group."),
    ],
)
check("the same in panels of 4 columns", pack_b(two_rows, 4, 2), pack_b_specification(two_rows, 4, 2))
### BEGIN HIDDEN TESTS
check(
    "three rows and three columns, columns=2, group=2",
    pack_b(three_rows, 2, 2),
    pack_b_specification(three_rows, 2, 2),
    means=[
        (
            pack_b_specification(np.pad(three_rows, (0, 1), mode="edge"), 2, 2),
            "What is missing was filled with neighbours: they would be multiplied and added. Zeros are wanted.",
        ),
        (pack_b_specification(three_rows[:2, :2], 2, 2), "The last row and the last column are missing."),
    ],
)
wide = np.arange(-60, 60, dtype=np.int8).reshape(15, 8)[::-1, ::3]
check("a view, columns=16, group=4", pack_b(wide, 16, 4), pack_b_specification(wide, 16, 4))
check("its dtype", str(pack_b(three_rows, 2, 2).dtype), "int8")
### END HIDDEN TESTS

# %% [markdown]
# ### The kernel
#
# A kernel needs three things that Python has no words for: vectors loaded, multiplied and added, stored. minquant's
# `simd.py` has them as three functions that numba compiles to the instructions themselves:
#
# - `load_tile(isa, rows, address, row_bytes)`: a *tile* of sums, so many rows high and one panel wide, into registers;
# - `multiply_add(isa, tile, a, row_bytes, b)`: the tile plus one step, a group of each row of a times a group of each
#   column;
# - `store_tile(isa, tile, address, row_bytes)`: out again.
#
# Everything else is Python. Addresses are plain integers, and nobody checks them: a kernel is where you have to be
# careful yourself.

# %%
from minquant.kernels.simd import load_tile, multiply_add, store_tile

PLACE, WIDTH = ISAS.index(isa), 4 * isa.columns  # bytes of a tile's row of sums
A_STEP, B_STEP = isa.group * isa.operand_dtype.itemsize, isa.group * isa.columns


def tile_kernel(rows):
    """The product in tiles of so many rows."""

    @njit
    def kernel(a, panels, start, out):
        a_row, out_row, panel_bytes = a.strides[0], out.strides[0], panels.strides[0]
        for p in range(len(panels)):
            for m in range(0, len(a), rows):
                tile = load_tile(PLACE, rows, start.ctypes.data + p * WIDTH, 0)
                row, panel = a.ctypes.data + m * a_row, panels.ctypes.data + p * panel_bytes
                for step in range(panels.shape[1]):
                    tile = multiply_add(PLACE, tile, row + step * A_STEP, a_row, panel + step * B_STEP)
                store_tile(PLACE, tile, out.ctypes.data + m * out_row + p * WIDTH, out_row)

    return kernel


# %% [markdown]
# The innermost loop is one line, and it neither loads nor stores a sum: the tile stays in registers until K is
# through.
#
# What `enter` does for a is little: whole tiles, whole groups, and the type that the instruction takes (uint8 for
# VNNI, so a + 128; then the sums start at −128·Σb, lesson 03 again). We time the kernel alone.

# %%
from minquant.kernels.packing import enter


def tiled(kernel, a, packed, rows):
    """A call that multiplies by this kernel and returns the product."""
    entered, shift = enter(a, isa, rows)
    start = packed.sums * np.int32(-shift)
    out = np.empty((len(entered), len(packed.sums)), np.int32)

    def call():
        kernel(entered, packed.panels, start, out)
        return out[: len(a), : packed.shape[1]]

    return call


kernels, calls = {}, {}


def climb(rows):
    """Times the kernel of so many rows on 512³, once its integers are right."""
    name = f"tile of {rows} row{'s' if rows > 1 else ''}"
    kernels[rows] = tile_kernel(rows)
    calls[name] = tiled(kernels[rows], a, pack(b, isa), rows)
    assert (calls[name]() == true).all()
    speed[name] = gops(calls[name], WORK)
    print(f"{name}: {speed[name]:.0f} GOP/s, {speed[name] / peak:.0%} of the peak")


# %%
if peak:
    climb(1)
    print(f"{speed['tile of 1 row'] / speed['loops m, k, n']:.1f} times the swapped loops")
    assert speed["tile of 1 row"] > speed["loops m, k, n"]
else:
    print(NONE_HERE)

# %% [markdown]
# What did the compiler make of the one line? We ask it, and look for the shortest piece of machine code that has the
# instruction in it. (Longer pieces do several steps at a time.)

# %%
import re

MNEMONIC = {"avx512vnni": "vpdpbusd", "avxvnni": "vpdpbusd", "avx2": "vpmaddwd", "neon": "sdot"}


def one_step(kernel):
    """The shortest piece of the kernel's machine code, from label to jump, that holds the instruction."""
    (assembly,) = kernel.inspect_asm().values()
    pieces = re.split(r"^\.?LBB\w+:.*$|(?<=\n)(?=\s+jmp)", assembly, flags=re.MULTILINE)
    shortest = min((piece for piece in pieces if MNEMONIC[isa.name] in piece), key=len)
    lines = [line.split("#")[0].split() for line in shortest.splitlines()]
    return [" ".join(words) for words in lines if words and not words[0].startswith(".")]


print("\n".join(one_step(kernels[1])) if peak else NONE_HERE)

# %% [markdown]
# That is all of it. (A `%` or a letter with a number is a register, brackets hold an address.) The columns' groups are
# loaded, some processors do that within the instruction itself; the row's group is copied into all lanes; the products
# are added. The rest is addresses, counting and a jump. No sum is loaded or stored, no object made, no type looked up.

# %% [markdown]
# ## 6 · Two rows, six rows
#
# In the step above, how many loads serve how many dot products? A tile of r rows and v vectors loads v vectors of b
# and r groups of a, and computes r·v dot products. With one row each load of b serves one dot product only. With two
# rows it serves two.
#
# So higher is better, until the registers are full: r·v of them hold sums, and the operands need a few. AVX2 has 16,
# AVX512 and Arm 32.

# %%
print("loads for each dot product (and registers that hold sums)")
print("            vectors      1 row      2 rows      6 rows")
for kind in ISAS[:-1]:
    v = kind.vectors
    print(f"{kind.name:12}   {v}   ", *(f"   {(v + r) / (v * r):.2f} ({v * r:2})" for r in (1, 2, 6)))
assert (2 + 1) / (2 * 1) == 1.5 and (2 + 2) / (2 * 2) == 1 and round((2 + 6) / (2 * 6), 2) == 0.67

# %% [markdown]
# The kernel is the one we have: `rows` is its only parameter.

# %%
if peak:
    climb(2)
    climb(6)
    found = [sum(MNEMONIC[isa.name] in line for line in one_step(kernels[rows])) for rows in (1, 2, 6)]
    print(f"{MNEMONIC[isa.name]} in a step: {found[0]} with one row, {found[1]} with two, {found[2]} with six")
    assert found[0] < found[1] < found[2]
    assert speed["tile of 6 rows"] > 1.5 * speed["loops m, k, n"]
else:
    print(NONE_HERE)

# %% [markdown]
# With six rows the loads are few enough, and what the loop does is nearly nothing but arithmetic. (Others found the
# same size: oneDNN and PyTorch's compiler use 6 × 64 on AVX512,
# [pytorch#166846](https://github.com/pytorch/pytorch/pull/166846).)
#
# What is missing to the peak? The sums come in and go out, once a tile; the last tiles hang over the edge, as 512 is
# no multiple of 6; and the operands come from a cache.

# %% [markdown]
# ### Exercise: `tile`
#
# A product in tiles, and what it loads. Go through the result in tiles of `rows` × `columns`; those at the lower and
# right edge may be smaller. For each, multiply the rows of a that it needs with the columns of b that it needs, in
# int32, and count the values that these are. Return the product and the count.


# %% tags=["exercise-setup"]
def tile_specification(a, b, rows, columns):
    """Number by number."""
    (M, K), N = a.shape, b.shape[1]
    product, loads = [[0] * N for _ in range(M)], 0
    for top in range(0, M, rows):
        for left in range(0, N, columns):
            inside = [range(top, min(top + rows, M)), range(left, min(left + columns, N))]
            loads += K * len(inside[0]) + K * len(inside[1])
            for m in inside[0]:
                for n in inside[1]:
                    product[m][n] = sum(int(a[m, k]) * int(b[k, n]) for k in range(K))
    return product, loads


small_a, small_b = np.array([[1, 2], [3, 4]], np.int8), np.array([[1, 0, 2], [0, 1, 100]], np.int8)


# %% answer="tile" lines=6
def tile(a, b, rows, columns):
    """int8 (M, K) and (K, N) -> the product (M, N), int32, and the number of values loaded. [6 lines]"""
    ### BEGIN SOLUTION
    out, loads = np.zeros((len(a), b.shape[1]), np.int32), 0
    for m in range(0, len(a), rows):
        for n in range(0, b.shape[1], columns):
            high, wide = a[m : m + rows].astype(np.int32), b[:, n : n + columns].astype(np.int32)
            out[m : m + rows, n : n + columns], loads = high @ wide, loads + high.size + wide.size
    return out, loads
    ### END SOLUTION


# %% check="tile" points=2
check(
    "tile([[1, 2], [3, 4]], [[1, 0, 2], [0, 1, 100]], rows=2, columns=2)",
    tile(small_a, small_b, 2, 2),
    tile_specification(small_a, small_b, 2, 2),
    means=[
        (([[1, 2, -54], [3, 4, -106]], 14), "202 and 406 wrapped around: widen before you multiply."),
        (([[1, 2, 0], [3, 4, 0]], 8), "The third column is missing: the tile at the edge is narrower, not absent."),
        (([[1, 2, 202], [3, 4, 406]], 16), "The second tile has one column only: 4 values of a, 2 of b."),
        (([[1, 2, 202], [3, 4, 406]], 10), "Each tile loads its rows of a again: nothing is left in the registers."),
    ],
)
check("the same with rows=1", tile(small_a, small_b, 1, 2), tile_specification(small_a, small_b, 1, 2))
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(7)
seven, right = rng.integers(-9, 10, (7, 2)).astype(np.int8), rng.integers(-9, 10, (2, 3)).astype(np.int8)
expected, loads = tile_specification(seven, right, 6, 2)
dropped = [*expected[:6], [0] * 3]
check(
    "M = 7 in tiles of 6 rows",
    tile(seven, right, 6, 2)[0],
    expected,
    means=[(dropped, "The seventh row is missing: the last tile is smaller, not absent.")],
)
check("M = 7: what it loads", tile(seven, right, 6, 2)[1], loads)
long = np.full((1, 1041), 127, np.int8)
check(
    "1041 products of 127 and 127",
    tile(long, long.T, 6, 16)[0],
    tile_specification(long, long.T, 6, 16)[0],
    means=[([[16790288]], "16790288 is the nearest float32: above 2^24 it has no odd integers (lesson 03).")],
)
check("K = 0", tile(seven[:, :0], right[:0], 6, 2), (np.zeros((7, 3)), 0))
### END HIDDEN TESTS

# %% [markdown]
# ## 7 · The roofline
#
# All steps in one picture, with minquant's own `int8_matmul` as the last. That is the kernel above with everything
# that a library needs: edges of any size, blocks for the second cache, threads.
#
# The last steps are close to each other, and a disturbance could change their order. So we time them, and the peak,
# three times more, in turn, and keep the best.

# %%
from minquant.kernels import pack_weight

packed_b = pack_weight(b)
assert (int8_matmul(a, packed_b) == true).all()
calls["int8_matmul"] = lambda: int8_matmul(a, packed_b)
for _ in range(3):
    peak = max(peak, gops(dot.call, dot.amount)) if dot else None
    for name, call in calls.items():
        speed[name] = max(speed.get(name, 0), gops(call, WORK))

for name, value in speed.items():
    print(f"{name:15} {value:9.3f} GOP/s", f"{value / peak:8.2%} of the peak" if peak else "")
print(f"from the bottom to the top: {max(speed.values()) / speed['Python']:,.0f} times")


# %%
def draw_roof(axis):
    """The two limits, on logarithmic axes with plain numbers."""
    x, flat = np.geomspace(1, 4000, 200), f", then {peak:.0f} GOP/s ({isa.name})" if peak else ""
    limits = np.minimum(peak or np.inf, bandwidth * x)
    axis.loglog(x, limits, color="black", label=f"possible: {bandwidth:.0f} GB/s{flat}")
    axis.set(xlabel="operations per byte", ylabel="GOP/s")
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter("")
    axis.legend(loc="lower right")


def dot_at(axis, x, y, text, offset=(0, -15), ha="center", color=COLOURS["minquant"]):
    axis.plot(x, y, "o", color=color)
    axis.annotate(text, (x, y), offset, textcoords="offset points", ha=ha, color=color)


# %%
figure, (left, beside) = plt.subplots(1, 2, figsize=(9.6, 4.4), width_ratios=[2, 1])
draw_roof(left)
last = {name: speed[name] for name in calls}
for name, value in speed.items():
    if name == "Python":
        dot_at(left, 2 * SMALL / 6, value, "Python (64³)", (9, -4), "left")
    else:
        dot_at(left, 2 * 512 / 6, value, "" if name in last else name)
dot_at(left, 2 * 512 / 6, max(last.values()), "the last steps", (9, -9), "left")
for name, bytes_each in {"int8": 3, "int32": 12, "float32": 12}.items():  # an entry of a, of b, and a result
    side = ((8, -4), "left") if name == "int8" else ((-8, -4), "right")
    dot_at(left, 2 * 512 / bytes_each, in_numpy[name], f"NumPy {name}", *side, COLOURS["float"])
left.set(title="From three loops to the peak")
left.set_ylim(speed["Python"] / 20, 2.5 * max(peak or 0, *speed.values(), *in_numpy.values()))

beside.barh(list(last), list(last.values()), color=COLOURS["minquant"])
if peak:
    beside.axvline(peak, color="black")
beside.invert_yaxis()
beside.set(xlabel="GOP/s", title="The last steps, and the peak" if peak else "The last step")
plt.show()

# %% [markdown]
# A step of the grid on the left is a factor of ten. Our dots stand one above the other, for it is always the same
# product. (Python's, of 64³, has fewer operations per byte. The flat line is int8's; float32 has one of its own.)
# Swapping two lines and using the right instruction are the great steps; the height of the tile, seen on the right,
# earns what is left.

# %% [markdown]
# ## 8 · A single row
#
# A language model that writes one word after the other multiplies a single row by all of its weights: M = 1. Section 2
# says what to expect: 2 operations a byte times the bandwidth, however fast the arithmetic is.
#
# We take a weight of 64 MB, and from 1 to 6 rows: as many as a tile is high, so that one pass over the weight serves
# all of them. With M rows each byte of it takes part in 2·M operations.

# %%
WIDE = 8192
weight = rng.integers(-128, 128, (WIDE, WIDE), np.int8)
by_rows = {}  # M -> GOP/s
packed = pack(weight, isa) if peak else None
for rows in (1, 2, 3, 4, 6) if peak else ():
    x, c = rng.integers(-128, 128, (rows, WIDE), np.int8), np.zeros((rows, WIDE), np.int32)
    swapped(x, weight, c)
    call = tiled(tile_kernel(rows), x, packed, rows)
    assert (call() == c).all()
    by_rows[rows] = gops(call, 2 * rows * WIDE**2)

for rows, value in by_rows.items():
    took, possible = 2 * rows * WIDE**2 / value / 1e6, min(peak, 2 * rows * bandwidth)
    print(f"M = {rows}: {took:5.1f} ms, {value:6.1f} GOP/s of {possible:.0f} possible")
if peak:
    assert by_rows[1] < 0.5 * speed["tile of 6 rows"]  # the same instruction, and not half of its speed
    assert by_rows[4] > 4 / 3 * by_rows[1]  # four rows at once take less than three one after the other
else:
    print(NONE_HERE)

# %%
if peak:
    figure, axis = plt.subplots(figsize=(7.0, 3.8))
    draw_roof(axis)
    for rows, value in by_rows.items():
        dot_at(axis, 2 * rows, value, f"M = {rows}", (7, -9), "left")
    dot_at(axis, 2 * 512 / 6, speed["tile of 6 rows"], "512³")
    axis.set(title="One weight, few rows", yticks=[10, 20, 50, 100, 200, 500, 1000])
    axis.set(xlim=(1, 4000), ylim=(0.9 * bandwidth, 1.6 * peak))
    plt.show()
else:
    print(NONE_HERE)

# %% [markdown]
# The dots climb along the slope, as far as it goes. There a second row is nearly free: the weights have to be read
# anyway. So servers answer several users at once; and for a single user only one thing helps, fewer bytes for each
# weight.

# %% [markdown]
# ## 9 · An error put right: "lower precision is faster"
#
# You will read that everywhere, and people who believed it ask why their quantized model got slower
# ([pytorch#42113](https://github.com/pytorch/pytorch/issues/42113),
# [pytorch#72408](https://github.com/pytorch/pytorch/issues/72408)). We know why NumPy's int8 is slow. PyTorch, then.
# First the integers of `torch._int_mm`, the product that torchao's int8 layers call:

# %%
theirs = torch_or_recorded(
    lambda torch: torch._int_mm(torch.tensor(a), torch.tensor(b)).numpy(),
    recorded=true,  # what it gave: the exact product
)
assert compare("512³", int8_matmul(a, packed_b), theirs)

# %% [markdown]
# The same integers. And now the time, of the same product in several formats and by two routes: `_int_mm`, and
# `quantized::linear`, on which every quantized Linear of torch.ao runs. (It puts out bytes. Without VNNI it adds pairs
# of products in 16 bits, which is quicker and may saturate, as lesson 08 found. Here it is only timed.)


# %%
def torch_calls(torch):
    x, w = torch.tensor(a), torch.tensor(b)
    formats = {str(dtype): (x.to(dtype), w.to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.int32)}
    calls = {f"{name} @": lambda left=left, right=right: left @ right for name, (left, right) in formats.items()}
    q = torch.quantize_per_tensor(x.float(), 1.0, 128, torch.quint8)
    weight = torch.ops.quantized.linear_prepack(torch.quantize_per_tensor(w.T.float(), 1.0, 0, torch.qint8), None)
    calls["int8 _int_mm"] = lambda: torch._int_mm(x, w)
    calls["int8 quantized::linear"] = lambda: torch.ops.quantized.linear(q, weight, 1e4, 128)
    return calls


beside_ours = torch_calls(torch) if torch else {}
beside_ours["minquant int8_matmul"] = calls["int8_matmul"]
rounds = [{name: gops(call, WORK) for name, call in beside_ours.items()} for _ in range(3)]  # in turn
for name in beside_ours:
    print(f"{name:24} {max(measured[name] for measured in rounds):7.1f} GOP/s")
if not torch:
    print("(torch is not installed: nothing else to time)")

# %% [markdown]
# What this table says depends on your processor, and that is the point. On x86 `_int_mm` calls a fast library where
# there is AVX512-VNNI, and elsewhere it is three nested loops
# ([pytorch#121792](https://github.com/pytorch/pytorch/pull/121792),
# [pytorch#136942](https://github.com/pytorch/pytorch/pull/136942)). bfloat16 has half the bytes of float32, and it too
# needs an instruction and a kernel. The same integers, in the same library, by another route, may take a hundredth of
# the time.

# %% [markdown]
# So what is true?
#
# - Fewer bytes help where memory is the limit, as at M = 1.
# - Fewer bits help arithmetic where the processor has an instruction for them, *and* a kernel was written that uses
#   it, *and* your program reaches that kernel.
#
# If your quantized model is slow, don't ask how many bits it has. Ask which kernel runs.

# %% [markdown]
# ## Your guess, and the surprise

# %%
ranking = sorted(in_numpy, key=in_numpy.get, reverse=True)
print("guess: ", guess)
print("result:", ", ".join(f"{name} {in_numpy[name]:.1f} GOP/s" for name in ranking))
assert ranking[0] == "float32"

# %% [markdown]
# The surprise in a sentence: **in NumPy the float32 product, with four times the bytes, leaves int8 and int32 far
# behind, because integers are fast only where somebody wrote a kernel.**
#
# And such a kernel is short. Three loops, two of them swapped, one instruction, a tile that stays in registers.

# %% [markdown]
# ## Not covered
#
# - **Blocks for the caches.** With larger matrices a panel and the rows of a must be kept near: `kernels/cpu.py`.
# - **Threads.** Each takes some of the panels, and the integers stay the same.
# - **What comes after the sum.** Scale, bias, rounding, in the same pass over the result.
# - **Matrix units** (AMX, tensor cores of a GPU): tiles as an instruction. The roofline is the same picture.

# %% [markdown]
# ## Sources
#
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for multicore
#   architectures*, Communications of the ACM 52(4), 2009.
# - K. Goto, R. van de Geijn, *Anatomy of high-performance matrix multiplication*, ACM TOMS 34(3), 2008: packing, and
#   tiles in registers.
# - NumPy threads: [#8428](https://github.com/numpy/numpy/issues/8428),
#   [#14556](https://github.com/numpy/numpy/issues/14556).
# - PyTorch: `torch._int_mm`, `torch.ops.quantized.linear`;
#   [#42113](https://github.com/pytorch/pytorch/issues/42113), [#72408](https://github.com/pytorch/pytorch/issues/72408),
#   [#121792](https://github.com/pytorch/pytorch/pull/121792), [#136942](https://github.com/pytorch/pytorch/pull/136942),
#   [#166846](https://github.com/pytorch/pytorch/pull/166846).
# - minquant: `kernels/isa.py`, `kernels/packing.py`, `kernels/simd.py`, `kernels/cpu.py`; `minquant bench --plots DIR`
#   draws this roofline for more shapes, with the libraries beside it.

# %% [markdown]
# ## The question left open
#
# At M = 1 the time goes with the number of bytes. An int8 weight takes one. With four bits it takes half of one, and a
# language model would write nearly twice as fast. But sixteen values for a weight are few, and one scale for a whole
# row is coarse. How many bits does an "int4" weight really take, and what does the model lose? That is lesson 11.
