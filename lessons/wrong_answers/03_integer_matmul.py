"""Wrong answers to lesson 03: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "matmul": [
        ("stays in int8", "def matmul(a, b):\n    return a @ b\n", "2 is 32258 modulo 256"),
        (
            "widens the finished product",
            "def matmul(a, b):\n    return (a @ b).astype(np.int32)\n",
            "the product was computed in int8",
        ),
        (
            "int16 is wide enough for one product",
            "def matmul(a, b):\n    return a.astype(np.int16) @ b.astype(np.int16)\n",
            "30599 is 16807815 modulo 65536",
        ),
        (
            "float32 accumulator",
            """
def matmul(a, b):
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(np.int64)
""",
            "16807816 is the nearest float32",
        ),
    ],
    "four_terms": [
        (
            "no K·zx·zw",
            """
def four_terms(qx, zx, qw, zw):
    x, w = qx.astype(np.int32), qw.astype(np.int32)
    return x @ w - zx * w.sum(axis=0) - zw * x.sum(axis=1, keepdims=True)
""",
            "K·zx·zw is missing",
        ),
        (
            "sums crossed",
            """
def four_terms(qx, zx, qw, zw):
    x, w = qx.astype(np.int32), qw.astype(np.int32)
    return x @ w - zx * w.sum(axis=1, keepdims=True) - zw * x.sum(axis=0) + x.shape[1] * zx * zw
""",
            "The sums run along the wrong axis",
        ),
        (
            "zero points forgotten",
            "def four_terms(qx, zx, qw, zw):\n    return qx.astype(np.int32) @ qw.astype(np.int32)\n",
            "the zero points are still in it",
        ),
        (
            "one zero point for all columns",
            """
def four_terms(qx, zx, qw, zw):
    x, w = qx.astype(np.int32), qw.astype(np.int32)
    zw = int(np.ravel(zw)[0])
    return x @ w - zx * w.sum(axis=0) - zw * x.sum(axis=1, keepdims=True) + x.shape[1] * zx * zw
""",
            "one zero point per column",
        ),
    ],
    "max_k": [
        (
            "2^31 instead of 2^31 - 1",
            """
def max_k(a_min, a_max, b_min, b_max):
    largest = max(abs(a_min), abs(a_max)) * max(abs(b_min), abs(b_max))
    return 2**31 // largest
""",
            "one more than an int32 holds",
        ),
        (
            "127 for -128",
            "def max_k(a_min, a_max, b_min, b_max):\n    return (2**31 - 1) // (a_max * b_max)\n",
            "66311 counts with 255·127",
        ),
        (
            "rounds up",
            """
def max_k(a_min, a_max, b_min, b_max):
    largest = max(abs(a_min), abs(a_max)) * max(abs(b_min), abs(b_max))
    return -(-(2**31 - 1) // largest)
""",
            "One too many",
        ),
    ],
}
