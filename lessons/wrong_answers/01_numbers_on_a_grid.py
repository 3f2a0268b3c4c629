"""Wrong answers to lesson 01: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "quantize_array": [
        (
            "halves go up",
            """
def quantize_array(x, scale, zero_point, qmin, qmax):
    return np.clip(np.floor(x * (1 / scale) + 0.5) + zero_point, qmin, qmax).astype(np.int32)
""",
            "2.5 became 3: halves went up",
        ),
        (
            "converts before it clips",
            """
def quantize_array(x, scale, zero_point, qmin, qmax):
    q = (np.rint(x * (1 / scale)) + zero_point).astype(np.int32).astype(np.uint8)
    return np.clip(q.astype(np.int32), qmin, qmax)
""",
            "256 became 0",
        ),
        (
            "adds the zero point before it rounds",
            """
def quantize_array(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x * (1 / scale) + zero_point), qmin, qmax).astype(np.int32)
""",
            "The zero point was added before rounding",
        ),
        (
            "divides by the scale",
            """
def quantize_array(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x / scale) + zero_point, qmin, qmax).astype(np.int32)
""",
            "x was divided by the scale",
        ),
        (
            "does not clip",
            """
def quantize_array(x, scale, zero_point, qmin, qmax):
    return np.rint(x * (1 / scale)).astype(np.int32) + zero_point
""",
            "yours          [256, 7]",
        ),
    ],
    "affine": [
        (
            "range not extended to zero",
            """
def affine(x, bits):
    scale = max((x.max() - x.min()) / (2**bits - 1), 2**-23)
    return scale, int(np.rint(-x.min() / scale))
""",
            "4, 5, 6 would come back as 2, 2, 2",
        ),
        (
            "range not extended to zero, zero point clipped",
            """
def affine(x, bits):
    scale = max((x.max() - x.min()) / (2**bits - 1), 2**-23)
    return scale, int(np.clip(np.rint(-x.min() / scale), 0, 2**bits - 1))
""",
            "4, 5, 6 would come back as 2, 2, 2",
        ),
        (
            "divides by the number of marks",
            """
def affine(x, bits):
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = max((high - low) / 2**bits, 2**-23)
    return scale, int(np.rint(-low / scale))
""",
            "Scale 0.75",
        ),
        (
            "no smallest scale",
            """
def affine(x, bits):
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = (high - low) / (2**bits - 1)
    return scale, np.rint(-low / scale)
""",
            "RuntimeWarning",
        ),
    ],
    "symmetric_scale": [
        (
            "largest x for largest |x|",
            """
def symmetric_scale(x, bits):
    return max(x.max() / ((2**bits - 1) / 2), 2**-23)
""",
            "−3 would be clipped to −1.0039",
        ),
        (
            "divisor 127",
            """
def symmetric_scale(x, bits):
    return max(np.abs(x).max() / (2 ** (bits - 1) - 1), 2**-23)
""",
            "another engine's rule",
        ),
        (
            "no smallest scale",
            """
def symmetric_scale(x, bits):
    return np.abs(x).max() / ((2**bits - 1) / 2)
""",
            "the scale is 2⁻²³",
        ),
    ],
}
