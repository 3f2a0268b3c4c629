# %% [markdown]
# # 02 A small autograd
#
# *y = (x²)² at x = 3 has the gradient 108: what does `x.grad` hold after a second `backward()`?*
#
# Training needs the gradient of one number, the loss, by millions of others. An *autograd* computes all of
# them at once, for any formula, while you write nothing but the formula. It sounds like magic and is thirty
# lines long. We write them, find a bug that a famous one has had for years, and then read how minquant does
# it.
#
# You need the chain rule, and nothing from lesson 01 until the last section.

# %% tags=["exercise-setup"]
import inspect
import itertools
from collections import Counter
from decimal import Decimal, localcontext

import matplotlib.pyplot as plt
import numpy as np
from lesson_tools import COLOURS, check, compare, quiet_torch, show_versions, torch_or_recorded, use_style

import minquant
from minquant import Tensor, nn, optim
from minquant import functional as F
from minquant.quant import QSpec, choose_qparams, fake_quantize

# %%
show_versions()
use_style()
torch = quiet_torch()  # None where torch is not installed

# %% [markdown]
# ## What you will be able to do
#
# After this lesson you can
#
# - check any gradient without calculus, and choose the step for it;
# - write an operation with its derivative beside it, and a `backward()` that runs through a whole formula;
# - say in which order gradients must travel, and what goes wrong in any other order;
# - undo broadcasting in the backward pass;
# - train a small network with minquant and with PyTorch and get the same loss.

# %% [markdown]
# ## Notation
#
# All lessons share the first part of this table; the second part is new today.
#
# | written | means |
# | --- | --- |
# | `x`, `q` | a real number; the integer that stands for it |
# | `scale` s, `zero_point` z, `qmin`, `qmax` | the grid (lesson 01) |
# | `acc` | a sum of integer products, int32 (lesson 03) |
# | f(…), inv, rint | rounded to float32; f(1/s); rounded half to even |
# | L | the loss, or any other number at the end of a formula |
# | ∂y/∂x | the derivative: how fast y changes with x |
# | gradient of x, `x.grad` | ∂L/∂x |
# | leaf | a number that was not computed from others: an input, a weight |

# %% [markdown]
# ## The question
#
# y = (x²)². At x = 3, y = 81, and since y = x⁴ the gradient is 4·3³ = 108. We call `y.backward()`, and
# `x.grad` is 108, as it should be. Nothing is reset. We call `y.backward()` once more.
#
# What does `x.grad` hold now? And is there more than one possible answer?

# %%
guess = None  # a number

# %% [markdown]
# ## 1 · Gradients without calculus
#
# Before we compute gradients cleverly, we need a way to find out whether they are right. Here is one that
# works for any function and knows nothing about it: go a small step h to both sides and look how much the
# value changes.
#
# $$y'(x) \approx \frac{y(x + h) - y(x - h)}{2h}$$
#
# This is the *central difference*. By hand, for y(x) = (x²)² at 3 with h = 0.5:
#
# - y(3.5) = 12.25² = 150.0625 and y(2.5) = 6.25² = 39.0625;
# - (150.0625 − 39.0625) / 1 = **111**.

# %% [markdown]
# Not bad for such a large step. Multiplied out, the result is 4x³ + 4xh²: the truth, and an error of 12h²
# at x = 3. So with a smaller step, surely, it gets better and better?

# %%
tried = (0.5, 1e-2, 1e-5, 1e-8)


def power_4(x):
    return (x * x) * (x * x)


def central_difference(x, h):
    """In the precision of x: float32 or float64."""
    h = type(x)(h)
    return (power_4(x + h) - power_4(x - h)) / (h + h)


for h in tried:
    wide, narrow = central_difference(np.float64(3), h), central_difference(np.float32(3), h)
    print(f"h {h:<6g}  float64 {wide:<18.12g} error {abs(wide - 108):.1e}", end="    ")
    print(f"float32 {narrow:<9.6g} error {abs(float(narrow) - 108):.1e}")

assert central_difference(np.float64(3), 0.5) == 111
assert abs(central_difference(np.float64(3), 1e-5) - 108) < 1e-8
assert central_difference(np.float32(3), 1e-8) == 0  # 100 % off

# %% [markdown]
# It doesn't. In float32 with h = 10⁻⁸ the answer is 0, since 3 + 10⁻⁸ *is* 3. Two errors work against each
# other. The formula's own error falls with h², but the values of y are rounded, and that rounding is
# divided by 2h: the smaller the step, the larger it gets. You have met this shape in lesson 01, where
# rounding stood against clipping.

# %%
steps = 10.0 ** np.arange(-9, 0.01, 0.125)
figure, axes = plt.subplots()
for kind, colour in ((np.float32, "#cc79a7"), (np.float64, COLOURS["float"])):
    error = [abs(float(central_difference(kind(3), h)) - 108) / 108 for h in steps]
    axes.loglog(steps, np.maximum(error, 1e-15), ".-", color=colour, linewidth=1, label=kind.__name__)
axes.loglog(steps, 12 * steps**2 / 108, "--", color="black", linewidth=1, label="12 h² / 108, the formula's own")
axes.set(xlabel="step h (value)", ylabel="relative error of y ′(3)", ylim=(1e-15, 10))
axes.set_title("too large a step, too small a step")
axes.legend(loc="lower right")
plt.show()

best = {kind: min(abs(float(central_difference(kind(3), h)) - 108) for h in steps) for kind in (np.float32, np.float64)}
assert best[np.float32] > 1e-5 > 1e-7 > best[np.float64]

# %% [markdown]
# Two rules for checking gradients follow: do it in **float64**, and take a step of about **10⁻⁵**.
# (PyTorch's `torch.autograd.gradcheck` wants float64, too, and steps 10⁻⁶ unless told otherwise.) In
# float32 there is no step that is good; a correct gradient would look wrong.
#
# But nobody could train like this: every input costs two evaluations of the whole formula. A million
# weights, two million evaluations, for one step. Autograd needs one way forward and one way back.

# %% [markdown]
# ## 2 · An operation and its derivatives, side by side
#
# Every formula is built of small operations, and each of them knows its own derivatives:
#
# | operation | ∂/∂a | ∂/∂b |
# | --- | --- | --- |
# | a + b | 1 | 1 |
# | a · b | b | a |
#
# So whenever we compute something, let's also write down from *what* it was computed, and the derivative by
# each of those. That is all a `Value` is: a number, its inputs, a slope for each. Forward and backward of
# an operation stand in one line. (The `number` counts how many values were made before this one. We'll need
# it in a minute.)

# %%
clock = itertools.count()


class Value:
    """A number that remembers what it was computed from."""

    def __init__(self, data, inputs=()):
        self.data = data
        self.inputs = inputs  # pairs: (a Value, the derivative of this number by it)
        self.number = next(clock)
        self.grad = 0.0

    def __add__(self, other):
        return Value(self.data + other.data, [(self, 1), (other, 1)])

    def __mul__(self, other):
        return Value(self.data * other.data, [(self, other.data), (other, self.data)])


x = Value(3.0)
u = x * x
y = u * u
print("y =", y.data, " slopes of y by u:", [slope for _, slope in y.inputs])
assert y.data == 81 and [slope for _, slope in y.inputs] == [9, 9]

# %% [markdown]
# Now the chain rule. If L depends on u, and u on x, then x gets from u
#
# $$\frac{\partial L}{\partial x} \mathrel{+}= \frac{\partial L}{\partial u} \cdot \frac{\partial u}{\partial x}$$
#
# with a plus, since x may be used in several places, and every use counts. Start at the end, where ∂y/∂y =
# 1, and let every value hand its gradient on to its inputs. By hand:
#
# - y has 1. It reads u twice, with slope 9: u gets 9 + 9 = **18**.
# - u has 18. It reads x twice, with slope 3: x gets 18·3 + 18·3 = **108**.

# %% [markdown]
# In which order do we visit the values? A value may hand on only when it has received everything. Whoever
# reads it was made later than it. So: **newest first**.

# %%
print("numbers of x, u, y:", x.number, u.number, y.number)


def newest_first(y):
    """All values that y was computed from, and y."""
    found, waiting = {y}, [y]
    while waiting:
        for value, _ in waiting.pop().inputs:
            if value not in found:
                found.add(value)
                waiting.append(value)
    return sorted(found, key=lambda value: -value.number)


def backward(y):
    y.grad = 1.0
    for value in newest_first(y):
        for source, slope in value.inputs:
            source.grad += slope * value.grad


backward(y)
print("u.grad", u.grad, " x.grad", x.grad)
assert u.grad == 18 and x.grad == 108

# %% [markdown]
# That's it. Thirty lines, and they differentiate any formula of sums and products. Other operations are one
# more line each.
#
# Does the order really matter? With x, u and y in a row there is only one way to go. The smallest formula
# in which one can go wrong is a *diamond*, where two ways lead from the end to the same value.

# %% [markdown]
# ## 3 · The diamond
#
# y = x² + x³ at x = 2, computed as a = x·x, b = a·x, y = a + b. The derivative is 2x + 3x² = 4 + 12 =
# **16**.

# %% [markdown]
# The value a is read twice: by y directly, and by b. Watch in which order the gradients arrive:
#
# 1. y hands 1 to a,
# 2. and 1 to b.
# 3. b is newer than a, so it is next: it hands 1·2 = 2 to a,
# 4. and 1·4 = 4 to x.
# 5. Only now a has everything, 1 + 2 = 3. It hands 3·2 = 6 to x,
# 6. and once more 6, since a = x·x reads x twice.
#
# x has 4 + 6 + 6 = 16. Had a gone before b, with only 1 in hand, x would have got 2 + 2 + 4 = 8.

# %%
x = Value(2.0)
a = x * x
b = a * x
y = a + b

names = {x: "x", a: "a", b: "b", y: "y"}
arrivals = []
y.grad = 1.0
for value in newest_first(y):  # as backward does, and notes what it does
    for source, slope in value.inputs:
        source.grad += slope * value.grad
        arrivals.append((names[value], names[source], slope * value.grad))

for number, (giver, taker, amount) in enumerate(arrivals, 1):
    print(f"{number}. {giver} → {taker}: {amount:g}")
print("x.grad", x.grad)
assert [amount for *_, amount in arrivals] == [1, 1, 2, 4, 6, 6] and x.grad == 16 and a.grad == 3

# %%
place = {"x": (0, 0), "a": (2, 1), "b": (3.6, -1), "y": (5.6, 0)}
bends = [0.0, 0.0, 0.0, 0.0, 0.25, -0.25]  # the two arrows from a to x side by side
label_at = [(3.8, 0.72), (4.75, -0.72), (2.97, 0.1), (1.7, -0.72), (0.72, 0.93), (1.3, 0.08)]

figure, axes = plt.subplots(figsize=(7, 3.4))
for number, (giver, taker, amount) in enumerate(arrivals, 1):
    bend = f"arc3,rad={bends[number - 1]}"
    look = {"arrowstyle": "-|>", "color": COLOURS["minquant"], "connectionstyle": bend, "lw": 1.6}
    axes.annotate("", place[taker], place[giver], arrowprops=look | {"shrinkA": 21, "shrinkB": 21})
    text = f"{'①②③④⑤⑥'[number - 1]} {amount:g}"
    axes.annotate(text, label_at[number - 1], ha="center", va="center", color=COLOURS["minquant"])
for value, formula in ((x, "x"), (a, "a = x·x"), (b, "b = a·x"), (y, "y = a + b")):
    name = names[value]
    axes.plot(*place[name], "o", markersize=40, color="white", markeredgecolor=COLOURS["float"])
    axes.annotate(f"{name}\n{value.data:g}", place[name], ha="center", va="center")
    below = (place[name][0], place[name][1] - 0.5)
    axes.annotate(f"{formula}\ngradient {value.grad:g}", below, ha="center", va="top", fontsize=9)
axes.set(xlim=(-0.7, 6.4), ylim=(-2.0, 1.6))
axes.set_title("y = x² + x³ at 2: which gradient arrives when")
axes.axis("off")
plt.show()

# %% [markdown]
# minquant's `Tensor` does the same for arrays. `retain_grad()` asks it to keep the gradient of a value that
# is not a leaf; without it, only x would have a `.grad`. And PyTorch agrees.

# %%
x = Tensor(2.0, requires_grad=True)
a = x * x
b = a * x
y = a + b
a.retain_grad()
y.backward()
print(y, x.grad, a.grad, sep="\n")


def torch_diamond(torch):
    x = torch.tensor(2.0, requires_grad=True)
    a = x * x
    a.retain_grad()
    (a + a * x).backward()
    return torch.stack([x.grad, a.grad])


theirs = torch_or_recorded(torch_diamond, recorded=np.array([16.0, 3.0]))
assert compare("gradients of x and a", [x.grad.item(), a.grad.item()], theirs)
assert x.grad.item() == 16 and a.grad.item() == 3

# %% [markdown]
# You can read minquant's operations as you read ours; each has the same shape. The tensor remembers in
# `grad_fn` which operation made it, so we can ask for its source. Here is the exponential function. `save`
# keeps what the way back will need, `grad` is the gradient that arrives, and `backward` returns what the
# input gets.

# %%
result = F.exp(Tensor(2.0, requires_grad=True))
print(inspect.getsource(type(result.grad_fn)))

# %% [markdown]
# ### Exercise: `toposort`
#
# Our order came from counting. Most libraries find it from the graph alone: a *topological order*, in which
# every node comes after all of its inputs. `backward` then walks it from its end.
#
# Write it recursively: a node that was not seen yet first takes care of its inputs, and then puts itself at
# the end of `order`. A graph is a dictionary here: `inputs["b"]` lists what b was computed from.
#
# The specification doesn't order anything. It takes the chain rule literally, as the sum over *all ways*
# through the graph of the product of the slopes. With 20 values, each the sum of the one before with
# itself, those are 2²⁰ = 1,048,576 ways. Your function should visit each of the 21 nodes once.

# %% tags=["exercise-setup"]
DIAMOND = {"y": [("a", 1), ("b", 1)], "b": [("a", 2), ("x", 4)], "a": [("x", 2), ("x", 2)], "x": []}


def doublings(depth):
    """Node k is node k − 1 plus itself, down to node 0: {node: [(input, slope), …]}."""
    return {k: [(k - 1, 1), (k - 1, 1)] if k else [] for k in range(depth + 1)}


def gradient_specification(node, leaf, graph):
    """d node / d leaf: over all ways from node to leaf, the sum of the products of the slopes."""
    return (node == leaf) + sum(slope * gradient_specification(x, leaf, graph) for x, slope in graph[node])


class Inputs(dict):
    """{node: names of its inputs}, which counts how often each node's inputs are asked for."""

    def __init__(self, graph):
        super().__init__({node: [x for x, _ in sources] for node, sources in graph.items()})
        self.visits = Counter()

    def __getitem__(self, node):
        self.visits[node] += 1
        return super().__getitem__(node)


# %% answer="toposort" lines=6
def toposort(node, inputs, order, seen):
    """Appends node, and before it all that it depends on, to the list `order`; returns it. [6 lines]

    inputs: {node: its inputs}. seen: a set; both it and `order` are empty at first.
    """
    ### BEGIN SOLUTION
    if node not in seen:
        seen.add(node)
        for x in inputs[node]:
            toposort(x, inputs, order, seen)
        order.append(node)
    return order
    ### END SOLUTION


# %% check="toposort" points=2
def gradient_along(order, root, leaf, graph):
    """d root / d leaf, handing gradients on from the end of `order` to its beginning."""
    grad = Counter({root: 1})
    for node in reversed(order or []):
        for x, slope in graph[node]:
            grad[x] += slope * grad[node]
    return grad[leaf]


def check_gradient(case, root, leaf, graph, means=(), quiet=False):
    yours = gradient_along(toposort(root, Inputs(graph), [], set()), root, leaf, graph)
    check(case, yours, gradient_specification(root, leaf, graph), means, quiet=quiet)


inputs = Inputs(doublings(20))
toposort(20, inputs, [], set())
forgot = "Every way through the graph was walked: nothing remembers which nodes were seen."
check("visits of node 0, 20 doublings deep", inputs.visits[0], 1, means=[(2**20, forgot)])
early = "a handed on before b had paid in: a node must come after all of its inputs, not just close to them."
check_gradient("the diamond's gradient along toposort's order", "y", "x", DIAMOND, means=[(8, early)])
### BEGIN HIDDEN TESTS
check_gradient("a single node", "x", "x", {"x": []})
check_gradient("10 doublings", 10, 0, doublings(10))
check("the order of a chain", toposort(2, Inputs(doublings(2)), [], set()), [0, 1, 2])
random = np.random.RandomState(0)
for _ in range(20):
    graph = {k: [(int(i), int(random.randint(1, 4))) for i in random.randint(0, k, 2)] if k else [] for k in range(9)}
    check_gradient(f"the graph {graph}", 8, 0, graph, quiet=True)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · The second backward
#
# Back to (x²)² at 3, with our thirty lines. The first `backward` gives 108. Now the second.

# %%
x = Value(3.0)
u = x * x
y = u * u
backward(y)
print("first :", {"u.grad": u.grad, "x.grad": x.grad})
backward(y)
print("second:", {"u.grad": u.grad, "x.grad": x.grad})
assert u.grad == 36 and x.grad == 324

# %% [markdown]
# The second is 324: not 108, and not twice 108 either. It is three times 108, and no derivative of anything.
#
# Look at u. After the first pass it still held 18. The second pass added its 18 to that and handed on 36,
# so x got 108 + 216. The gradient in the *middle* was never reset.
#
# Our code is nearly that of micrograd, a small autograd that very many people learned from, and it does the
# same. Its readers [keep](https://github.com/karpathy/micrograd/issues/25)
# [asking](https://github.com/karpathy/micrograd/issues/53) about it, and a
# [fix](https://github.com/karpathy/micrograd/pull/102) has been proposed. In an ordinary training loop
# nothing happens, as every step builds its values anew. It bites whoever keeps a graph.

# %% [markdown]
# What *should* happen? Adding up in the leaves is useful: run two batches one after the other, and x.grad
# holds the gradient of the sum of their losses. That is why every training loop begins with `zero_grad()`.
# But what travels through the middle belongs to one pass only. So we keep it in a dictionary that is thrown
# away, and let only leaves hold on to a `.grad`.

# %%
x = Value(3.0)
u = x * x
y = u * u


def backward(y):
    passing = {y: 1.0}  # gradients of this pass, gone when it ends
    for value in newest_first(y):
        if not value.inputs:  # a leaf
            value.grad += passing[value]
        for source, slope in value.inputs:
            passing[source] = passing.get(source, 0.0) + slope * passing[value]


for _ in range(2):
    backward(y)
    print("x.grad", x.grad)
assert x.grad == 216

# %% [markdown]
# 216, which is 2 · 108, the gradient of y + y. minquant and PyTorch work like this, and both go one step
# further. Operations save arrays for their backward pass, and saved arrays cost memory, so the first
# `backward` frees them. A second one is *refused*, unless you have asked for it with `retain_graph=True`.

# %%
x = Tensor(3.0, requires_grad=True)
y = (x * x) * (x * x)
y.backward()
try:
    y.backward()
except RuntimeError as error:
    print("RuntimeError:", error)
assert x.grad.item() == 108  # the refused pass has changed nothing


# %%
def two_passes(tensor):
    """x.grad after one and two passes of (x²)² at 3."""
    x = tensor(3.0, requires_grad=True)
    u = x * x
    y = u * u
    y.backward(retain_graph=True)
    once = x.grad.item()
    y.backward()
    return np.array([once, x.grad.item()])


ours = two_passes(Tensor)
theirs = torch_or_recorded(lambda torch: two_passes(torch.tensor), recorded=np.array([108.0, 216.0]))
assert compare("x.grad after one and two passes", ours, theirs)
assert ours.tolist() == [108, 216]

# %% [markdown]
# ## 5 · Arrays, and undoing a broadcast
#
# Everything so far was about single numbers. With arrays, one operation handles a million of them, and
# nothing changes except for one thing: *broadcasting*. When NumPy multiplies shapes (3, 1) and (1, 4), it
# stretches both to (3, 4), as if it had copied them. Every copy is a use, and by the chain rule uses **add
# up**. So where forward copied, backward sums, over exactly those axes along which it had copied.
#
# By hand, with ones everywhere and L the sum of the 12 products: each of the three left numbers is used 4
# times, so its gradient is 4; each of the four right numbers is used 3 times, so it's 3.

# %%
shapes = (3, 1), (1, 4)


def broadcast_gradients(tensor):
    left, right = (tensor(np.ones(shape, np.float32), requires_grad=True) for shape in shapes)
    (left * right).sum().backward()
    return left.grad, right.grad


left, right = broadcast_gradients(Tensor)
print("left ", left.shape, left.tolist(), "\nright", right.shape, right.tolist())
assert left.tolist() == [[4], [4], [4]] and right.tolist() == [[3, 3, 3, 3]]

theirs = torch_or_recorded(
    lambda torch: torch.cat([g.flatten() for g in broadcast_gradients(torch.tensor)]),
    recorded=np.array([4.0, 4, 4, 3, 3, 3, 3]),
)
assert compare("both gradients, flattened", [*left.data.ravel(), *right.data.ravel()], theirs)

# %% [markdown]
# ### Exercise: `unbroadcast`
#
# Given a gradient of the stretched shape, bring it back to the shape that was stretched. There are two
# kinds of stretching: NumPy puts missing axes **in front**, and repeats axes of size **1**. Sum over both;
# an axis of size 1 must come out as size 1, not vanish.
#
# The specification asks of each stretched element where it was copied from, and adds the gradient there.

# %% tags=["exercise-setup"]
rng = np.random.RandomState(1)  # small integers, whose sums are exact in any order


def unbroadcast_specification(grad, shape):
    """Adds each gradient to the element from which its place was copied."""
    out = np.zeros(shape)
    origin = np.broadcast_to(np.arange(out.size).reshape(shape), grad.shape)
    for place in np.ndindex(grad.shape):
        out.flat[origin[place]] += grad[place]
    return out


# %% answer="unbroadcast" lines=4
def unbroadcast(grad, shape):
    """Sums `grad` over the axes along which an array of this shape was stretched to it. [4 lines]"""
    ### BEGIN SOLUTION
    while grad.ndim > len(shape):
        grad = grad.sum(axis=0)
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return grad.sum(axis=stretched, keepdims=True)
    ### END SOLUTION


# %% check="unbroadcast" points=2
def check_unbroadcast(grad, shape, means=()):
    case = f"unbroadcast(a gradient of shape {grad.shape}, {shape})"
    check(case, unbroadcast(grad, shape), unbroadcast_specification(grad, shape), means)


check_unbroadcast(
    np.ones((3, 4)),
    (3, 1),
    means=[
        (12, "All axes were summed: only those along which it was stretched have copies."),
        (np.full((3, 4), 1), "Nothing was summed: four copies of each number were used, and uses add up."),
        ([4, 4, 4], "The shape is (3,) instead of (3, 1): the axis of size 1 has vanished."),
    ],
)
check_unbroadcast(np.ones((3, 4)), (4,), means=[(np.full((1, 4), 3), "An axis is left that NumPy had put in front.")])
### BEGIN HIDDEN TESTS
for stretched, shape in (
    ((2, 3), ()),
    ((), ()),
    ((3, 4), (3, 4)),
    ((3, 1), (3, 1)),
    ((5, 3, 4), (3, 1)),
    ((2, 5, 3, 4), (1, 3, 1)),
    ((0, 3), (3,)),
):
    check_unbroadcast(rng.randint(-9, 10, stretched) * 1.0, shape)
### END HIDDEN TESTS

# %% [markdown]
# ## 6 · Are minquant's gradients right?
#
# We have a test that knows no calculus; let's use it on the operations of `minquant.functional`. For each
# one we take float64 inputs away from kinks and poles, multiply the output by weights that all differ (so
# that errors can't cancel) and sum it up. Then every single element of every input has to satisfy
#
# $$|\text{backward} - \text{central difference}| \le 10^{-8} + 10^{-6} \cdot |\text{central difference}|$$
#
# The table prints the worst element of each operation as a share of what is allowed.

# %%
step = 1e-5


def numeric_gradient(loss, x):
    """The central difference for each element of a float64 array."""
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        out[i] = (loss(up) - loss(down)) / (up[i] - down[i])
    return out


def worst(operation, arrays):
    """The largest error of a gradient, as a share of what is allowed."""
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    out = operation(*tensors)
    weights = np.linspace(0.5, 1.5, out.numel()).reshape(out.shape)
    out.backward(weights)
    shares = []
    for i, t in enumerate(tensors):
        others = lambda a, i=i: [Tensor(a if j == i else b) for j, b in enumerate(arrays)]  # noqa: E731
        numeric = numeric_gradient(lambda a, o=others: float((operation(*o(a)).data * weights).sum()), arrays[i])
        shares.append(np.max(np.abs(t.grad.data - numeric) / (1e-8 + 1e-6 * np.abs(numeric))))
    return max(shares)


# %%
rng = np.random.RandomState(0)
m, n = rng.uniform(0.5, 2, (2, 3)), rng.uniform(0.5, 2, (2, 3))
column, wide = rng.uniform(0.5, 2, (2, 1)), rng.uniform(0.5, 2, (3, 4))
signed = np.array([[-1.5, -0.4, 0.3], [0.9, 2.0, -0.7]])

operations = {
    "add, broadcast": (F.add, [m, column]),
    "sub": (F.sub, [m, n]),
    "mul, broadcast": (F.mul, [m, column]),
    "div": (F.div, [m, n]),
    "pow": (F.pow, [m, n]),
    "matmul": (F.matmul, [m, wide]),
    "exp": (F.exp, [signed]),
    "log": (F.log, [m]),
    "tanh": (F.tanh, [signed]),
    "sigmoid": (F.sigmoid, [signed]),
    "relu": (F.relu, [signed]),
    "gelu": (F.gelu, [signed]),
    "mean": (F.mean, [signed]),
    "softmax": (lambda t: F.softmax(t, dim=1), [signed]),
    "log_softmax": (lambda t: F.log_softmax(t, dim=1), [signed]),
    "linear": (F.linear, [m, wide.T, np.array([0.1, -0.2, 0.3, 0.4])]),
    "mse_loss": (F.mse_loss, [m, n]),
    "cross_entropy": (lambda t: F.cross_entropy(t, np.array([2, 0])), [signed]),
}

# %%
shares = {name: worst(*case) for name, case in operations.items()}
for name, share in shares.items():
    print(f"{name:15} {share:7.2%} of what is allowed")
assert max(shares.values()) <= 1

# %% [markdown]
# ## 7 · The last layer of a classifier
#
# One operation deserves a closer look, as it ends nearly every classifier. From outputs x₁ … xₙ, the
# *softmax* makes probabilities, and the loss needs their logarithms:
#
# $$p_i = \frac{e^{x_i}}{\sum_j e^{x_j}} \qquad y_i = \ln p_i = x_i - \ln \sum_j e^{x_j}$$
#
# By hand for x = (0, ln 3): the exponentials are 1 and 3, the probabilities ¼ and ¾, and y = (ln ¼, ln ¾).
#
# The derivative is short. Raising xₖ raises yₖ directly, and through the sum it lowers *all* yᵢ by pₖ:
#
# $$\frac{\partial L}{\partial x_k} = g_k - p_k \sum_i g_i$$
#
# where gᵢ are the gradients that arrive. For g = (1, 1): 1 − ¼·2 = ½ and 1 − ¾·2 = −½.

# %%
x = Tensor(np.array([0, np.log(3)]), requires_grad=True)
y = F.log_softmax(x, dim=0)
y.backward(np.array([1.0, 1.0]))
print("p", np.exp(y.detach().numpy()), " gradient", x.grad.numpy())
assert np.abs(np.exp(y.detach().numpy()) - [0.25, 0.75]).max() < 1e-15
assert np.abs(x.grad.numpy() - [0.5, -0.5]).max() < 1e-15

# %% [markdown]
# The formula is right, and typed in as it stands it breaks. e¹⁰⁰⁰ doesn't fit into a float64, and ∞/∞ is
# not a number. But probabilities don't change when all outputs move together. So first subtract the largest
# one: then the largest exponent is 0, nothing overflows, and the sum is at least 1.

# %%
x = np.array([1000.0, 0.0])
with np.errstate(all="ignore"):
    as_written = np.log(np.exp(x) / np.exp(x).sum())
print("as written:", as_written, "  minquant:", F.log_softmax(Tensor(x), dim=0).numpy())
assert np.isnan(as_written[0]) and as_written[1] == -np.inf
assert F.log_softmax(Tensor(x), dim=0).tolist() == [0, -1000]

# %% [markdown]
# ### Exercise: `log_softmax`
#
# Forward and backward side by side, for a vector. Return both: y, and the gradient by x. Subtract the
# largest output first, and work with logarithms to the end (ln 0 must not happen).
#
# The specification computes with 50 decimal digits, where nothing overflows, and it spells the chain rule
# out as a double loop. You may differ from it by 10⁻¹²: each result goes through a handful of roundings of
# numbers up to some 1000, and each of them is off by at most 1000·2⁻⁵³ ≈ 1.1·10⁻¹³.

# %% tags=["exercise-setup"]
LN_3 = float(np.log(3))


def log_softmax_specification(x, grad):
    """(y, dL/dx), with 50 digits."""
    with localcontext(prec=50):
        powers = [Decimal(float(v)).exp() for v in x]
        p = [power / sum(powers) for power in powers]
        by_x = [sum(Decimal(float(g)) * ((i == k) - p[k]) for i, g in enumerate(grad)) for k in range(len(x))]
        return [float(v.ln()) for v in p], [float(v) + 0.0 for v in by_x]


# %% answer="log_softmax" lines=3
def log_softmax(x, grad):
    """(y, dL/dx) for float64 vectors x and grad = dL/dy. [3 lines]"""
    ### BEGIN SOLUTION
    shifted = x - x.max()
    y = shifted - np.log(np.exp(shifted).sum())
    return y, grad - np.exp(y) * grad.sum()
    ### END SOLUTION


# %% check="log_softmax" points=2
def check_log_softmax(case, x, grad, means=()):
    x, grad = np.array(x, float), np.array(grad, float)
    check(case, log_softmax(x, grad), log_softmax_specification(x, grad), means, within=1e-12)


quarters = np.log([0.25, 0.75])
check_log_softmax(
    "log_softmax([0, ln 3], grad [1, 1])",
    [0, LN_3],
    [1, 1],
    means=[
        ((quarters, [0.75, 0.25]), "The gradient lacks the sum: pₖ is multiplied by all gradients that arrive."),
        ((quarters, [1, 1]), "The gradient was handed on unchanged: raising one output lowers all yᵢ."),
    ],
)
overflow = "exp came first: e^1000 overflows. Subtract the largest output before."
check_log_softmax(
    "log_softmax([1000, 0], grad [1, 0])",
    [1000, 0],
    [1, 0],
    means=[(([np.nan, -np.inf], [np.nan, 0]), overflow), (([-np.inf, -np.inf], [1, 0]), overflow)],
)
### BEGIN HIDDEN TESTS
check_log_softmax("log_softmax([-1000, 0, -1000], grad [2, 0, 1])", [-1000, 0, -1000], [2, 0, 1])
check_log_softmax("one output", [5], [3])
check_log_softmax("ten equal outputs", [7] * 10, range(10))
### END HIDDEN TESTS

# %% [markdown]
# ## 8 · Training
#
# Now everything together, on the model that will accompany us through the next lessons. It comes from an
# article on quantization: a 3×2 matrix of weights turns 10,000 random points into targets, and a network of
# 3 inputs, 3 hidden units and 2 outputs learns to imitate it. Mean squared error, Adam with a learning rate
# of 0.1, 100 steps over all points.
#
# The same function trains it with minquant or with PyTorch: the names are the same. So are the random
# numbers; `minquant.manual_seed` gives those of `torch.manual_seed`, and the initial weights agree to the
# last bit. We compare them as the integers that their bits spell.

# %%
TARGET = np.array([[1.12, 1.6], [2.24, 2.5], [3.6, 3.9]], np.float32)


def demo(lib, nn, optim, matrix):
    lib.manual_seed(42)
    x, x_test = lib.rand(10_000, 3), lib.rand(5_000, 3)
    y, y_test = x @ matrix, x_test @ matrix
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    first_weights = model[0].weight.detach().numpy().copy()
    optimizer, criterion = optim.Adam(model.parameters(), lr=0.1), nn.MSELoss()
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return first_weights, losses, criterion(model(x_test), y_test).item()


# %%
first_weights, losses, test_loss = demo(minquant, nn, optim, Tensor(TARGET))


def torch_demo(torch):
    return demo(torch, torch.nn, torch.optim, torch.tensor(TARGET))


bits = [[1057363272, 1051308003, -1090022798]]
theirs = torch_or_recorded(lambda torch: torch_demo(torch)[0].view(np.int32)[:1], recorded=np.array(bits))
assert compare("initial weights of one hidden unit, their bits", first_weights.view(np.int32)[:1], theirs)

# %%
steps = [0, 1, 10, 50, 99]
ours = np.array([*np.array(losses)[steps], test_loss])
recorded = np.array([18.29038, 16.620565, 2.745253, 0.2181229, 0.004019998, 0.00371617])


def torch_losses(torch):
    _, losses, test_loss = torch_demo(torch)
    return np.array([*np.array(losses)[steps], test_loss])


theirs = torch_or_recorded(torch_losses, recorded)
names = [*(f"loss at step {i}" for i in steps), "loss on the test points"]
for name, our, their in zip(names, ours, theirs, strict=True):
    print(f"{name:24} minquant {our:8.4f}   torch {their:8.4f}")
assert np.allclose(ours, theirs, rtol=1e-4, atol=0) and f"{test_loss:.4f}" == "0.0037"
assert [f"{v:.4f}" for v in ours] == [f"{v:.4f}" for v in theirs]

# %% [markdown]
# 0.0037 on points that it has never seen, and PyTorch prints the same four decimals at every step shown.
# The weights are not bit-equal in the end: float32 sums depend on the order of adding, and the two
# libraries' matrix products add in different orders. It doesn't grow into anything visible here. For
# *integers* there is no such excuse, which is one of the pleasures of the lessons to come.
#
# Remember 0.0037. Lesson 04 quantizes this very model.

# %% [markdown]
# ## 9 · A gradient that is zero
#
# In lesson 01 we rounded numbers to a grid. What is the gradient of that?
#
# Look at the staircase of two bits: s = 1, four marks. On every stair the function is flat, so the
# derivative is 0. At the edges it jumps, and there is no derivative. Our test from section 1 says so, too.
# A network that rounds its weights would get gradients of exactly 0 and would never learn anything.

# %%
grid = choose_qparams(-1, 2, QSpec(bits=2, signed=False))  # s = 1, z = 1
points = np.array([-0.8, -0.2, 0.3, 0.9, 1.7], np.float32)
step = np.float32(0.01)
slopes = (fake_quantize(points + step, grid) - fake_quantize(points - step, grid)) / (2 * step)
print("on the grid      ", fake_quantize(points, grid))
print("central difference", slopes)
assert (slopes == 0).all()

x = Tensor(points, requires_grad=True)
fake_quantize(x, grid).sum().backward()
print("minquant's backward", x.grad.numpy())
assert (x.grad.numpy() == 1).all()


def torch_round(torch):
    x = torch.tensor(points, requires_grad=True)
    torch.round(x).sum().backward()
    return x.grad


print("torch.round's backward", np.asarray(torch_or_recorded(torch_round, recorded=np.zeros(5))))

# %% [markdown]
# `torch.round` tells the truth: 0. And minquant's `fake_quantize` hands on 1, as if it had not rounded at
# all. It passed no gradient check, and it can't.
#
# This is not an error but a decision, the *straight-through estimator*: compute with the rounded number,
# differentiate as if it were not rounded. Whether a wrong gradient can train a right network is the subject
# of lesson 06.

# %% [markdown]
# ## Back to the question

# %%
print("guess ", guess)
print("result: 216 (graph kept), refused without retain_graph, 324 where the middle is not reset")
assert two_passes(Tensor)[1] == 216

# %% [markdown]
# **The surprise in a sentence.** A second backward has three answers: an error, 216 and 324, and only the
# last one is wrong.
#
# **What this lesson does not cover.** Second derivatives (minquant's `backward` builds no graph of its
# own), forward-mode differentiation, changes in place (minquant counts them and refuses a backward pass
# that would use a changed value), and speed.

# %% [markdown]
# ## Sources
#
# - A. G. Baydin et al., *Automatic Differentiation in Machine Learning: a Survey*, 2018,
#   [arXiv:1502.05767](https://arxiv.org/abs/1502.05767): what we did is its "reverse mode".
# - Y. Bengio et al., *Estimating or Propagating Gradients Through Stochastic Neurons*, 2013,
#   [arXiv:1308.3432](https://arxiv.org/abs/1308.3432): straight through.
# - D. Kingma, J. Ba, *Adam*, 2015, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980).
# - torch 2.13: `torch.Tensor.backward`, `torch.autograd.gradcheck`, `torch.optim.Adam`.
# - Threads: micrograd [#2](https://github.com/karpathy/micrograd/issues/2) (a value that is used twice,
#   April 2020), [#25](https://github.com/karpathy/micrograd/issues/25),
#   [#53](https://github.com/karpathy/micrograd/issues/53) and
#   [#102](https://github.com/karpathy/micrograd/pull/102) (the second backward).
#
# **Left open.** We know how to put numbers on a grid and how to train. What we can't do yet is *compute* on
# the grid: multiply integers, and get the result that the real numbers would have given. What could go
# wrong with 127·127 + 127·127?
