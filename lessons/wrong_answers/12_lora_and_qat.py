"""Wrong answers to lesson 12: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "lora": [
        (
            "B is taken to be 1",
            """
def lora(x, w, a, b, alpha):
    middle = x @ a.T
    return x @ w.T + alpha / len(a) * (middle @ np.ones_like(b).T)
""",
            "The output moved at step 0",
        ),
        (
            "alpha without the rank",
            """
def lora(x, w, a, b, alpha):
    return x @ w.T + alpha * (x @ a.T @ b.T)
""",
            "α, not α/r",
        ),
        (
            "AB instead of BA",
            """
def lora(x, w, a, b, alpha):
    return x @ (w + alpha / len(a) * (a.T @ b.T)).T
""",
            "operands could not be broadcast",
        ),
    ],
    "merge": [
        (
            "truncates",
            """
def merge(q, scale, delta, qmin, qmax):
    return np.clip((q * scale + delta) / scale, qmin, qmax).astype(np.int8)
""",
            "The sum was truncated",
        ),
        (
            "scale seen anew",
            """
def merge(q, scale, delta, qmin, qmax):
    total = q * scale + delta
    scale = np.abs(total).max() / ((qmax - qmin) / 2)
    return np.clip(np.rint(total / scale), qmin, qmax).astype(np.int8)
""",
            "The scale was seen anew",
        ),
        (
            "forgets the ends",
            """
def merge(q, scale, delta, qmin, qmax):
    return np.rint((q * scale + delta) / scale).astype(np.int8)
""",
            "clip to qmin",
        ),
    ],
    "train_bytes": [
        (
            "no scales",
            """
def train_bytes(n, k, rank, bits, group, bias):
    return n * k * bits // 8 + 4 * n * bias + 16 * rank * (n + k)
""",
            "The scales are missing",
        ),
        (
            "Adam for the base",
            """
def train_bytes(n, k, rank, bits, group, bias):
    return n * k * bits // 8 + 4 * n * k // group + 4 * n * bias + 16 * rank * (n + k) + 16 * n * k
""",
            "it is frozen",
        ),
        (
            "no bias",
            """
def train_bytes(n, k, rank, bits, group, bias):
    return n * k * bits // 8 + 4 * n * k // group + 16 * rank * (n + k)
""",
            "The bias is missing",
        ),
    ],
}
