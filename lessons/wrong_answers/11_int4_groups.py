"""Wrong answers to lesson 11: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "group_quantize": [
        (
            "one scale for the row",
            """
def group_quantize(w, group):
    scales = np.abs(w).max(axis=1, keepdims=True) / half_the_steps
    q = np.clip(np.rint(w * (one / scales)), -8, 7)
    return q.astype(np.int8), np.repeat(scales, w.shape[1] // group, axis=1)
""",
            "Both groups have the scale of the row",
        ),
        (
            "groups down the columns",
            """
def group_quantize(w, group):
    if len(w) % group:
        groups = w.reshape(len(w), -1, group)
        scales = np.abs(groups).max(axis=2) / half_the_steps
        q = np.clip(np.rint(groups * (one / scales)[..., np.newaxis]), -8, 7)
        return q.reshape(w.shape).astype(np.int8), scales
    groups = w.reshape(-1, group, w.shape[1])
    scales = np.abs(groups).max(axis=1) / half_the_steps
    q = np.clip(np.rint(groups * (one / scales)[:, np.newaxis]), -8, 7)
    return q.reshape(w.shape).astype(np.int8), scales
""",
            "These groups run down the columns",
        ),
        (
            "divided by 7",
            """
def group_quantize(w, group):
    groups = w.reshape(len(w), -1, group)
    scales = np.abs(groups).max(axis=2) / np.float32(7)
    q = np.clip(np.rint(groups * (one / scales)[..., np.newaxis]), -8, 7)
    return q.reshape(w.shape).astype(np.int8), scales
""",
            "0.535714",
        ),
    ],
    "pack": [
        (
            "first value in the upper half",
            """
def pack(q):
    halves = np.append(q, np.zeros(len(q) % 2, np.int8)).astype(np.uint8) & 15
    return halves[::2] << 4 | halves[1::2]
""",
            "0x87 has the first value in the upper half",
        ),
        (
            "an offset of 8",
            """
def pack(q):
    halves = (np.append(q, np.zeros(len(q) % 2, np.int8)) + 8).astype(np.uint8)
    return halves[::2] | halves[1::2] << 4
""",
            "8 was added to the values",
        ),
        (
            "no 0 for an odd length",
            """
def pack(q):
    halves = q.astype(np.uint8) & 15
    return halves[::2] | halves[1::2] << 4
""",
            "The last value has no partner",
        ),
    ],
    "bits_per_byte": [
        (
            "in nats",
            """
def bits_per_byte(nats, text):
    per_byte = np.sum(nats) / len(text.encode("utf-8"))
    return np.exp(per_byte), per_byte
""",
            "2.0 is in nats",
        ),
        (
            "mean of exp",
            """
def bits_per_byte(nats, text):
    perplexity = np.mean(np.exp(nats))
    return perplexity, np.log2(perplexity)
""",
            "11.4 is the mean of exp",
        ),
        (
            "characters for bytes",
            """
def bits_per_byte(nats, text):
    per_byte = np.sum(nats) / len(text)
    return np.exp(per_byte), per_byte / np.log(2)
""",
            "count bytes, not characters",
        ),
    ],
}
