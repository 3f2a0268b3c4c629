"""Wrong answers to lesson 08: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "onednn": [
        (
            "zero point after the rounding",
            """
def onednn(acc, m, zero_point):
    q = np.rint(acc.astype(np.float32) * np.float32(m)) + zero_point
    return np.clip(q, 0, 255).astype(np.uint8)
""",
            "that is the reference's dialect",
        ),
        (
            "half up",
            """
def onednn(acc, m, zero_point):
    real = acc.astype(np.float32) * np.float32(m) + np.float32(zero_point)
    return np.clip(np.floor(real + np.float32(0.5)), 0, 255).astype(np.uint8)
""",
            "Halves were rounded up",
        ),
        (
            "cast before clip",
            """
def onednn(acc, m, zero_point):
    real = acc.astype(np.float32) * np.float32(m) + np.float32(zero_point)
    return np.clip(np.rint(real).astype(np.int32).astype(np.uint8), 0, 255)
""",
            "wraps around",
        ),
    ],
    "saturating_dot": [
        (
            "clips the total",
            """
def saturating_dot(a, b):
    return int(np.clip((a.astype(np.int32) * b).sum(), -32768, 32767))
""",
            "only a pair is held in int16",
        ),
        (
            "clips each product",
            """
def saturating_dot(a, b):
    return int(np.clip(a.astype(np.int32) * b, -32768, 32767).sum())
""",
            "it is the pair that does not",
        ),
        (
            "forgets the last product",
            """
def saturating_dot(a, b):
    products = a.astype(np.int32) * b
    even = len(products) // 2 * 2
    return int(np.clip(products[:even].reshape(-1, 2).sum(axis=1), -32768, 32767).sum())
""",
            "with an odd K it goes alone",
        ),
        (
            "clips at the top only",
            """
def saturating_dot(a, b):
    products = a.astype(np.int32) * b
    pairs = np.pad(products, (0, len(products) % 2)).reshape(-1, 2).sum(axis=1)
    return int(np.minimum(pairs, 32767).sum())
""",
            "The negative end was not clipped",
        ),
    ],
    "fixed_point": [
        (
            "rint",
            "def fixed_point(acc, m):\n    return np.rint(acc * m).astype(np.int64)\n",
            "rint sends a half to the even neighbour",
        ),
        (
            "one rounding",
            "def fixed_point(acc, m):\n    return np.floor(acc * m + 0.5).astype(np.int64)\n",
            "it was rounded once",
        ),
        (
            "first move away from zero",
            """
def fixed_point(acc, m):
    fraction, shift = np.frexp(m)
    mantissa, right = round(fraction * 2**31), -int(shift)
    once = np.sign(acc) * ((np.abs(acc) * mantissa + 2**30) >> 31)
    half = (1 << right) >> 1
    return np.sign(once) * ((np.abs(once) + half) >> right)
""",
            "In the first move a tie goes up",
        ),
        (
            "second move up",
            """
def fixed_point(acc, m):
    fraction, shift = np.frexp(m)
    mantissa, right = round(fraction * 2**31), -int(shift)
    once = (acc * mantissa + 2**30) >> 31
    return (once + ((1 << right) >> 1)) >> right
""",
            "In the second move a tie goes away from zero",
        ),
    ],
}
