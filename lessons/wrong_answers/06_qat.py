"""Wrong answers to lesson 06: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "untrained": [
        (
            "equal values",
            """
def untrained(prepared, given):
    held = [p.data.tobytes() for p in given.parameters()]
    return sum(p.data.tobytes() not in held for p in prepared.parameters())
""",
            "A twin is another object",
        ),
        (
            "equal names",
            """
def untrained(prepared, given):
    held = {name for name, _ in given.named_parameters()}
    return sum(name not in held for name, _ in prepared.named_parameters())
""",
            "A twin is another object",
        ),
        (
            "shared weight counted twice",
            """
def untrained(prepared, given):
    held = {id(p) for p in given.parameters()}
    layers = [layer for layer in prepared if isinstance(layer, nn.Linear) or hasattr(layer, "weight")]
    return sum(id(p) not in held for layer in layers for p in layer.parameters())
""",
            "count it once",
        ),
    ],
    "fake_quantize": [
        (
            "zero point before rounding",
            """
def fake_quantize(x, scale, zero_point, qmin, qmax):
    q = np.clip(np.rint(x / np.float32(scale) + zero_point), qmin, qmax)
    return (q - zero_point) * np.float32(scale)
""",
            "z was added before rounding",
        ),
        (
            "no clamp",
            """
def fake_quantize(x, scale, zero_point, qmin, qmax):
    return np.rint(x / np.float32(scale)) * np.float32(scale)
""",
            "Nothing was clipped",
        ),
        (
            "half up",
            """
def fake_quantize(x, scale, zero_point, qmin, qmax):
    q = np.clip(np.floor(x / np.float32(scale) + np.float32(0.5)) + zero_point, qmin, qmax)
    return (q - zero_point) * np.float32(scale)
""",
            "Halves were rounded up",
        ),
        (
            "steps clipped before the zero point",
            """
def fake_quantize(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x / np.float32(scale)), qmin, qmax) * np.float32(scale)
""",
            "The steps were clipped before z was added",
        ),
        (
            "never read back",
            """
def fake_quantize(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x / np.float32(scale)) + zero_point, qmin, qmax)
""",
            "These are the integers",
        ),
    ],
    "ste_mask": [
        (
            "all ones",
            "def ste_mask(x, x_min, x_max):\n    return np.ones_like(x)\n",
            "they are told nothing",
        ),
        (
            "from the unclamped integer",
            """
def ste_mask(x, x_min, x_max):
    scale = max(-x_min, x_max) / np.float32(127.5)
    q = np.rint(x * (np.float32(1) / scale))
    return ((-128 <= q) & (q <= 127)).astype(np.float32)
""",
            "3 is frozen",
        ),
        (
            "ends left out",
            "def ste_mask(x, x_min, x_max):\n    return (np.abs(x) < max(-x_min, x_max)).astype(np.float32)\n",
            "The ends belong to the range",
        ),
        (
            "with a tolerance",
            "def ste_mask(x, x_min, x_max):\n    return (np.abs(x) <= max(-x_min, x_max) + 1e-3).astype(np.float32)\n",
            "outside, by the smallest possible amount",
        ),
        (
            "the observed range as it is",
            "def ste_mask(x, x_min, x_max):\n    return ((x_min <= x) & (x <= x_max)).astype(np.float32)\n",
            "a symmetric grid for −1 … 3 reaches from −3 to 3",
        ),
    ],
}
