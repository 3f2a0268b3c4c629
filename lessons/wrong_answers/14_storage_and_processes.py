"""Wrong answers to lesson 14: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "step": [
        (
            "no master",
            """
def step(master, gradient, scale, lr):
    if not np.isfinite(gradient).all():
        return master
    half = master.astype(np.float16) - np.float16(lr) * (gradient / np.float16(scale))
    return half.astype(np.float32)
""",
            "the sum was rounded to float16",
        ),
        (
            "not unscaled",
            """
def step(master, gradient, scale, lr):
    if not np.isfinite(gradient).all():
        return master
    return master - np.float32(lr) * gradient.astype(np.float32)
""",
            "still 1024 times too large",
        ),
        (
            "takes the overflow",
            """
def step(master, gradient, scale, lr):
    return master - np.float32(lr) * (gradient.astype(np.float32) / np.float32(scale))
""",
            "its weight is ruined",
        ),
        (
            "skips one weight only",
            """
def step(master, gradient, scale, lr):
    update = np.float32(lr) * (gradient.astype(np.float32) / np.float32(scale))
    return np.where(np.isfinite(gradient), master - np.where(np.isfinite(gradient), update, 0), master)
""",
            "its neighbours' gradients are no better",
        ),
        (
            "unscales in float16",
            """
def step(master, gradient, scale, lr):
    if not np.isfinite(gradient).all():
        return master
    return master - np.float32(lr) * (gradient / np.float16(scale)).astype(np.float32)
""",
            "done in float16, where 1e-8 is 0",
        ),
    ],
    "resave": [
        (
            "observes again",
            """
def resave(integers, scale, update):
    weights = integers * scale + update
    scale = np.abs(weights).max() / np.float32(7.5)
    return np.clip(np.rint(weights / scale), -8, 7).astype(np.int8), scale
""",
            "The scale was observed again",
        ),
        (
            "observes the positive end only",
            """
def resave(integers, scale, update):
    weights = integers * scale + update
    scale = scale if weights.max() >= -weights.min() else -weights.min() / np.float32(7.5)
    return np.clip(np.rint(weights / scale), -8, 7).astype(np.int8), scale
""",
            "3, −3 and 1 have grown",
        ),
        (
            "float16 scale",
            """
def resave(integers, scale, update):
    scale = np.float16(scale)
    weights = integers * scale.astype(np.float32) + update
    return np.clip(np.rint(weights / scale.astype(np.float32)), -8, 7).astype(np.int8), scale
""",
            "The scale was rounded to float16",
        ),
        (
            "no clip",
            """
def resave(integers, scale, update):
    return np.rint((integers * scale + update) / scale).astype(np.int8), scale
""",
            "10 is no int4 integer",
        ),
        (
            "truncates",
            """
def resave(integers, scale, update):
    return np.clip(np.trunc((integers * scale + update) / scale), -8, 7).astype(np.int8), scale
""",
            "Cut off where rounding was due",
        ),
    ],
    "reduce_range": [
        (
            "averages first",
            """
def reduce_range(ranks, c):
    return max(moving_average([part.max() for part in rank], c) for rank in ranks)
""",
            "Averages first",
        ),
        (
            "rank 0's range",
            """
def reduce_range(ranks, c):
    return moving_average([part.max() for part in ranks[0]], c)
""",
            "This is rank 0's range",
        ),
        (
            "mean of the ranks' largest",
            """
def reduce_range(ranks, c):
    return moving_average([np.mean([part.max() for part in batch]) for batch in zip(*ranks)], c)
""",
            "were averaged",
        ),
        (
            "an empty part counts as 0",
            """
def reduce_range(ranks, c):
    return moving_average([max(part.max(initial=0) for part in batch) for batch in zip(*ranks)], c)
""",
            "An empty part was counted as 0",
        ),
        (
            "an empty part is an error",
            """
def reduce_range(ranks, c):
    return moving_average([max(part.max() for part in batch) for batch in zip(*ranks)], c)
""",
            "zero-size array",
        ),
    ],
}
