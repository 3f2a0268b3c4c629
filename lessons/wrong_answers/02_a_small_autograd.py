"""Wrong answers to lesson 02: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "toposort": [
        (
            "no set of seen nodes",
            """
def toposort(node, inputs, order, seen):
    for x in inputs[node]:
        toposort(x, inputs, order, seen)
    order.append(node)
    return order
""",
            "1048576",
        ),
        (
            "breadth first",
            """
def toposort(node, inputs, order, seen):
    waiting = [node]
    while waiting:
        node = waiting.pop(0)
        if node not in seen:
            seen.add(node)
            order.insert(0, node)
            waiting.extend(inputs[node])
    return order
""",
            "a handed on before b had paid in",
        ),
        (
            "itself before its inputs",
            """
def toposort(node, inputs, order, seen):
    if node not in seen:
        seen.add(node)
        order.append(node)
        for x in inputs[node]:
            toposort(x, inputs, order, seen)
    return order
""",
            "the diamond's gradient",
        ),
    ],
    "unbroadcast": [
        (
            "sums all axes",
            """
def unbroadcast(grad, shape):
    return grad.sum()
""",
            "All axes were summed",
        ),
        (
            "loses the axis of size 1",
            """
def unbroadcast(grad, shape):
    while grad.ndim > len(shape):
        grad = grad.sum(axis=0)
    return grad.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1))
""",
            "the axis of size 1 has vanished",
        ),
        (
            "leaves the axes in front",
            """
def unbroadcast(grad, shape):
    padded = (1,) * (grad.ndim - len(shape)) + tuple(shape)
    return grad.sum(axis=tuple(i for i, n in enumerate(padded) if n == 1), keepdims=True)
""",
            "An axis is left that NumPy had put in front",
        ),
        (
            "sums nothing",
            """
def unbroadcast(grad, shape):
    return grad
""",
            "Nothing was summed",
        ),
    ],
    "log_softmax": [
        (
            "exp first",
            """
def log_softmax(x, grad):
    p = np.exp(x) / np.exp(x).sum()
    return np.log(p), grad - p * grad.sum()
""",
            "exp came first",
        ),
        (
            "exp first, but no division",
            """
def log_softmax(x, grad):
    y = x - np.log(np.exp(x).sum())
    return y, grad - np.exp(y) * grad.sum()
""",
            "exp came first",
        ),
        (
            "backward without the sum",
            """
def log_softmax(x, grad):
    shifted = x - x.max()
    y = shifted - np.log(np.exp(shifted).sum())
    return y, grad - np.exp(y)
""",
            "The gradient lacks the sum",
        ),
        (
            "logarithm of a probability that has become 0",
            """
def log_softmax(x, grad):
    powers = np.exp(x - x.max())
    p = powers / powers.sum()
    return np.log(p), grad - p * grad.sum()
""",
            "divide by zero encountered in log",
        ),
    ],
}
