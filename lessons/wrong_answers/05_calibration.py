"""Wrong answers to lesson 05: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "moving_average": [
        (
            "starts at 0",
            """
def moving_average(maxima, c):
    m = 0.0
    for x in maxima:
        m = m + c * (x - m)
    return m
""",
            "copy the first batch instead",
        ),
        (
            "c and 1 - c swapped",
            """
def moving_average(maxima, c):
    m = maxima[0]
    for x in maxima[1:]:
        m = c * m + (1 - c) * x
    return m
""",
            "c and 1 − c are swapped",
        ),
        (
            "plain mean",
            "def moving_average(maxima, c):\n    return sum(maxima) / len(maxima)\n",
            "plain mean of the batches",
        ),
    ],
    "requantize": [
        (
            "cast before clip",
            """
def requantize(acc, m, zero_point):
    q = np.rint(acc.astype(np.float32) * np.float32(m)).astype(np.int32) + zero_point
    return np.clip(q.astype(np.uint8), 0, 255)
""",
            "256 became 0",
        ),
        (
            "half up",
            """
def requantize(acc, m, zero_point):
    return np.clip(np.floor(acc * np.float32(m) + np.float32(0.5)) + zero_point, 0, 255).astype(np.uint8)
""",
            "Halves were rounded up",
        ),
        (
            "zero point before rounding",
            """
def requantize(acc, m, zero_point):
    return np.clip(np.rint(acc * np.float32(m) + zero_point), 0, 255).astype(np.uint8)
""",
            "The zero point was added before rounding",
        ),
        (
            "zero point after clipping",
            """
def requantize(acc, m, zero_point):
    q = np.clip(np.rint(acc.astype(np.float32) * np.float32(m)), 0, 255)
    return np.clip(q + zero_point, 0, 255).astype(np.uint8)
""",
            "The zero point was added after clipping",
        ),
    ],
    "relu_q": [
        (
            "integer 0 taken for real 0",
            "def relu_q(q, zero_point):\n    return np.maximum(q, 0)\n",
            "real zero is the integer 57, not 0",
        ),
        (
            "zero point subtracted",
            "def relu_q(q, zero_point):\n    return np.maximum(q.astype(int) - zero_point, 0)\n",
            "The zero point was subtracted",
        ),
        (
            "negative numbers become integer 0",
            "def relu_q(q, zero_point):\n    return np.where(q < zero_point, 0, q)\n",
            "the most negative number of the grid",
        ),
    ],
}
