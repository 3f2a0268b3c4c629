"""Wrong answers to lesson 04: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "run_time_qparams": [
        (
            "range not extended to zero",
            """
def run_time_qparams(x):
    scale = np.maximum((x.max() - x.min()) / np.float32(255), smallest_scale)
    return scale, int(np.clip(-np.rint(x.min() / scale), 0, 255))
""",
            "The range -3…-1 was not extended to 0",
        ),
        (
            "the first batch's grid is kept",
            """
first = {}


def run_time_qparams(x):
    if not first:
        lo, hi = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
        scale = np.maximum((hi - lo) / np.float32(255), smallest_scale)
        first.update(scale=scale, zero_point=int(np.clip(-np.rint(lo / scale), 0, 255)))
    return first["scale"], first["zero_point"]
""",
            "This is the grid of the batch before",
        ),
        (
            "no smallest scale",
            """
def run_time_qparams(x):
    lo, hi = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = (hi - lo) / np.float32(255)
    return scale, int(np.clip(-np.rint(lo / scale), 0, 255))
""",
            "RuntimeWarning",
        ),
    ],
    "dynamic_linear": [
        (
            "zx kept in",
            """
def dynamic_linear(x, qw, w_scale, bias):
    scale, zero_point = run_time_specification(x)
    q = np.clip(np.rint(x * (one / scale)) + zero_point, 0, 255).astype(np.int32)
    acc = q @ qw.astype(np.int32).T
    return acc.astype(np.float32) * (scale * w_scale) + bias
""",
            "zx is still in the accumulator",
        ),
        (
            "bias before the rescaling",
            """
def dynamic_linear(x, qw, w_scale, bias):
    scale, zero_point = run_time_specification(x)
    q = np.clip(np.rint(x * (one / scale)) + zero_point, 0, 255).astype(np.int32)
    acc = (q - zero_point) @ qw.astype(np.int32).T
    return (acc.astype(np.float32) + bias) * (scale * w_scale)
""",
            "add it after the rescaling",
        ),
        (
            "accumulates in int8",
            """
def dynamic_linear(x, qw, w_scale, bias):
    scale, zero_point = run_time_specification(x)
    q = np.clip(np.rint(x * (one / scale)) + zero_point, 0, 255).astype(np.int32)
    acc = (q - zero_point).astype(np.int8) @ qw.T
    return acc.astype(np.float32) * (scale * w_scale) + bias
""",
            "dynamic_linear([[0.55, 2.55]]",
        ),
    ],
    "blame": [
        (
            "hidden values left in float",
            """
def blame(layers, x, target):
    a, b = x, round_activation(x)
    for weight, bias, activate in layers:
        bias = 0 if bias is None else bias
        a = activate(a @ round_weight(weight).T + bias)
        b = activate(b @ weight.T + bias)
    return np.mean((a - target) ** 2), np.mean((b - target) ** 2)
""",
            "every layer's input is rounded, not only the first's",
        ),
        (
            "weights rounded in both",
            """
def blame(layers, x, target):
    a = b = x
    for weight, bias, activate in layers:
        bias = 0 if bias is None else bias
        a = activate(a @ round_weight(weight).T + bias)
        b = activate(round_activation(b) @ round_weight(weight).T + bias)
    return np.mean((a - target) ** 2), np.mean((b - target) ** 2)
""",
            "The second error has the weights rounded as well",
        ),
        (
            "a bias is always there",
            """
def blame(layers, x, target):
    a = b = x
    for weight, bias, activate in layers:
        a = activate(a @ round_weight(weight).T + bias)
        b = activate(round_activation(b) @ weight.T + bias)
    return np.mean((a - target) ** 2), np.mean((b - target) ** 2)
""",
            "TypeError",
        ),
    ],
}
