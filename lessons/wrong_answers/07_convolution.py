"""Wrong answers to lesson 07: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "channel_scale": [
        (
            "one scale for all",
            """
def channel_scale(w, axis=0):
    return np.full(w.shape[axis], np.abs(w).max() / 127.5)
""",
            "One scale for both",
        ),
        (
            "always axis 0",
            """
def channel_scale(w, axis=0):
    return np.maximum(np.abs(w).reshape(len(w), -1).max(axis=1) / 127.5, SMALLEST)
""",
            "these are the input channels' (axis 0)",
        ),
        (
            "zero channel",
            """
def channel_scale(w, axis=0):
    return np.abs(np.moveaxis(w, axis, 0)).reshape(w.shape[axis], -1).max(axis=1) / 127.5
""",
            "0/0 is nan",
        ),
        (
            "signed maximum",
            """
def channel_scale(w, axis=0):
    return np.maximum(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1).max(axis=1) / 127.5, SMALLEST)
""",
            "−1 was overlooked",
        ),
        (
            "divisor 127",
            """
def channel_scale(w, axis=0):
    return np.maximum(np.abs(np.moveaxis(w, axis, 0)).reshape(w.shape[axis], -1).max(axis=1) / 127, SMALLEST)
""",
            "another engine's rule",
        ),
    ],
    "im2col": [
        (
            "pads with the integer 0",
            """
def im2col(q, k, stride, padding, zero_point):
    padded = np.pad(q, ((0, 0), (padding, padding), (padding, padding)))
    tops, lefts = (range(0, size - k + 1, stride) for size in padded.shape[1:])
    return np.stack([padded[:, i : i + k, j : j + k].ravel() for i in tops for j in lefts])
""",
            "−4.02 for 1.00",
        ),
        (
            "channels fastest",
            """
def im2col(q, k, stride, padding, zero_point):
    padded = np.pad(q, ((0, 0), (padding, padding), (padding, padding)), constant_values=zero_point)
    tops, lefts = (range(0, size - k + 1, stride) for size in padded.shape[1:])
    return np.stack([padded[:, i : i + k, j : j + k].transpose(1, 2, 0).ravel() for i in tops for j in lefts])
""",
            "The channel runs fastest",
        ),
        (
            "stride forgotten",
            """
def im2col(q, k, stride, padding, zero_point):
    padded = np.pad(q, ((0, 0), (padding, padding), (padding, padding)), constant_values=zero_point)
    tops, lefts = (range(size - k + 1) for size in padded.shape[1:])
    return np.stack([padded[:, i : i + k, j : j + k].ravel() for i in tops for j in lefts])
""",
            "moved by 1 instead of by the stride",
        ),
        (
            "half a window at the end",
            """
def im2col(q, k, stride, padding, zero_point):
    padded = np.pad(q, ((0, 0), (padding, padding), (padding, padding)), constant_values=zero_point)
    tops, lefts = (range(0, size - k, stride) for size in padded.shape[1:])
    return np.stack([padded[:, i : i + k, j : j + k].ravel() for i in tops for j in lefts])
""",
            "The last place of each line is missing",
        ),
        (
            "turned round",
            """
def im2col(q, k, stride, padding, zero_point):
    padded = np.pad(q, ((0, 0), (padding, padding), (padding, padding)), constant_values=zero_point)
    tops, lefts = (range(0, size - k + 1, stride) for size in padded.shape[1:])
    return np.stack([padded[:, i : i + k, j : j + k][:, ::-1, ::-1].ravel() for i in tops for j in lefts])
""",
            "The window was turned round",
        ),
    ],
    "fold_bn": [
        (
            "mean forgotten",
            """
def fold_bn(w, b, gamma, beta, mean, var, eps):
    b = np.zeros(len(w)) if b is None else b
    gain = gamma / np.sqrt(var + eps)
    return w * gain[:, None], gain * b + beta
""",
            "μ was not subtracted",
        ),
        (
            "eps outside the root",
            """
def fold_bn(w, b, gamma, beta, mean, var, eps):
    b = np.zeros(len(w)) if b is None else b
    gain = gamma / (np.sqrt(var) + eps)
    return w * gain[:, None], gain * (b - mean) + beta
""",
            "A gain of 300,000 for 949",
        ),
        (
            "variance for its root",
            """
def fold_bn(w, b, gamma, beta, mean, var, eps):
    b = np.zeros(len(w)) if b is None else b
    gain = gamma / (var + eps)
    return w * gain[:, None], gain * (b - mean) + beta
""",
            "not by its root 2",
        ),
        (
            "shift multiplied too",
            """
def fold_bn(w, b, gamma, beta, mean, var, eps):
    b = np.zeros(len(w)) if b is None else b
    gain = gamma / np.sqrt(var + eps)
    return w * gain[:, None], gain * (b - mean + beta)
""",
            "β was multiplied by the gain",
        ),
        (
            "nothing done without a bias",
            """
def fold_bn(w, b, gamma, beta, mean, var, eps):
    gain = gamma / np.sqrt(var + eps)
    return w * gain[:, None], beta if b is None else gain * (b - mean) + beta
""",
            "Without a bias μ remains",
        ),
        (
            "gains along the inputs",
            """
def fold_bn(w, b, gamma, beta, mean, var, eps):
    b = np.zeros(len(w)) if b is None else b
    gain = gamma / np.sqrt(var + eps)
    return w * gain, gain * (b - mean) + beta
""",
            "The gains went along the inputs",
        ),
    ],
}
