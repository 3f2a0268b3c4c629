"""Wrong answers to lesson 09: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "first_divergent": [
        (
            "the loudest layer",
            """
def first_divergent(sound, broken, x):
    largest, ours, theirs = [], x, x
    for right, asked in zip(sound, broken, strict=True):
        ours, theirs = right(ours), asked(theirs)
        largest.append(np.abs(ours - theirs).max())
    return int(np.argmax(largest)) + 1 if max(largest) else None
""",
            "Layer 3 differs by most, and is innocent",
        ),
        (
            "the last one that differs on own inputs",
            """
def first_divergent(sound, broken, x):
    found, ours, theirs = None, x, x
    for number, (right, asked) in enumerate(zip(sound, broken, strict=True), start=1):
        ours, theirs = right(ours), asked(theirs)
        if not np.array_equal(ours, theirs):
            found = number
    return found
""",
            "Layer 3 differs by most, and is innocent",
        ),
        (
            "counts from 0",
            """
def first_divergent(sound, broken, x):
    for number, (right, asked) in enumerate(zip(sound, broken, strict=True)):
        if not np.array_equal(right(x), asked(x)):
            return number
        x = right(x)
""",
            "Count from 1",
        ),
        (
            "never None",
            """
def first_divergent(sound, broken, x):
    for number, (right, asked) in enumerate(zip(sound, broken, strict=True), start=1):
        if not np.array_equal(right(x), asked(x)):
            break
        x = right(x)
    return number
""",
            "no layer differs",
        ),
    ],
    "sqnr_db": [
        (
            "20·log10",
            """
def sqnr_db(reference, x):
    noise = np.sum((reference - x) ** 2)
    return 20 * math.log10(np.sum(reference**2) / noise) if noise else math.inf
""",
            "10·log10",
        ),
        ("largest error", "def sqnr_db(reference, x):\n    return np.abs(reference - x).max()\n", "the largest error"),
        (
            "upside down",
            """
def sqnr_db(reference, x):
    signal = np.sum(reference**2)
    return 10 * math.log10(np.sum((reference - x) ** 2) / signal)
""",
            "Upside down",
        ),
        (
            "no error is 0 dB",
            """
def sqnr_db(reference, x):
    noise = np.sum((reference - x) ** 2)
    return 10 * math.log10(np.sum(reference**2) / noise) if noise else 0.0
""",
            "no error at all",
        ),
    ],
    "cause": [
        (
            "by the share alone",
            """
def cause(broken, rules, x, probes):
    share = np.mean(broken(x) != rules["none"](x))
    if share == 0:
        return "none"
    return "zero_point" if share > 0.05 else "bias"
""",
            "a share is no proof",
        ),
        (
            "random data only",
            """
def cause(broken, rules, x, probes):
    for name, rule in rules.items():
        if np.array_equal(rule(x), broken(x)):
            return name
    return "several"
""",
            "The data has no ties; the probes have",
        ),
        (
            "the nearest rule",
            """
def cause(broken, rules, x, probes):
    inputs = np.concatenate([x, probes])
    return min(rules, key=lambda name: np.sum(rules[name](inputs) != broken(inputs)))
""",
            "Nearly is not proof",
        ),
    ],
}
