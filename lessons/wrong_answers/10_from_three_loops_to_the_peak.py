"""Wrong answers to lesson 10: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "ops_per_byte": [
        (
            "result counted as bytes",
            "def ops_per_byte(M, K, N):\n    return 2 * M * K * N / (M * K + K * N + M * N)\n",
            "683 counts the result as bytes",
        ),
        (
            "no result",
            "def ops_per_byte(M, K, N):\n    return 2 * M * K * N / (M * K + K * N)\n",
            "1024 counts the operands alone",
        ),
        (
            "multiplications only",
            "def ops_per_byte(M, K, N):\n    return M * K * N / (M * K + K * N + 4 * M * N)\n",
            "171 counts multiplications alone",
        ),
        (
            "squares only",
            "def ops_per_byte(M, K, N):\n    return 2 * K / 6\n",
            "M, K and N may differ",
        ),
    ],
    "pack_b": [
        (
            "row-major",
            """
def pack_b(b, columns, group):
    K, N = b.shape
    padded = np.zeros((-(-K // group) * group, -(-N // columns) * columns), np.int8)
    padded[:K, :N] = b
    return padded.ravel()
""",
            "that is b as it lies",
        ),
        (
            "columns run fastest",
            """
def pack_b(b, columns, group):
    K, N = b.shape
    padded = np.zeros((-(-K // group) * group, -(-N // columns) * columns), np.int8)
    padded[:K, :N] = b
    return padded.reshape(len(padded) // group, group, -1, columns).transpose(2, 0, 1, 3).ravel()
""",
            "In each group the columns run fastest",
        ),
        (
            "tail not zeroed",
            """
def pack_b(b, columns, group):
    K, N = b.shape
    padded = np.pad(b, ((0, -K % group), (0, -N % columns)), mode="edge")
    return padded.reshape(len(padded) // group, group, -1, columns).transpose(2, 0, 3, 1).ravel()
""",
            "Zeros are wanted",
        ),
        (
            "tail dropped",
            """
def pack_b(b, columns, group):
    whole = b[: len(b) // group * group, : b.shape[1] // columns * columns]
    return whole.reshape(len(whole) // group, group, -1, columns).transpose(2, 0, 3, 1).ravel()
""",
            "The last row and the last column are missing",
        ),
        (
            "widened",
            """
def pack_b(b, columns, group):
    K, N = b.shape
    padded = np.zeros((-(-K // group) * group, -(-N // columns) * columns), np.int32)
    padded[:K, :N] = b
    return padded.reshape(len(padded) // group, group, -1, columns).transpose(2, 0, 3, 1).ravel()
""",
            "its dtype",
        ),
    ],
    "tile": [
        (
            "edge dropped",
            """
def tile(a, b, rows, columns):
    out, loads = np.zeros((len(a), b.shape[1]), np.int32), 0
    for m in range(0, len(a) - rows + 1, rows):
        for n in range(0, b.shape[1] - columns + 1, columns):
            high, wide = a[m : m + rows].astype(np.int32), b[:, n : n + columns].astype(np.int32)
            out[m : m + rows, n : n + columns], loads = high @ wide, loads + high.size + wide.size
    return out, loads
""",
            "The third column is missing",
        ),
        (
            "lower edge dropped",
            """
def tile(a, b, rows, columns):
    out, loads = np.zeros((len(a), b.shape[1]), np.int32), 0
    for m in range(0, len(a) // rows * rows, rows):
        for n in range(0, b.shape[1], columns):
            high, wide = a[m : m + rows].astype(np.int32), b[:, n : n + columns].astype(np.int32)
            out[m : m + rows, n : n + columns], loads = high @ wide, loads + high.size + wide.size
    return out, loads
""",
            "The seventh row is missing",
        ),
        (
            "float32 sums",
            """
def tile(a, b, rows, columns):
    out, loads = np.zeros((len(a), b.shape[1]), np.int32), 0
    for m in range(0, len(a), rows):
        for n in range(0, b.shape[1], columns):
            high, wide = a[m : m + rows].astype(np.float32), b[:, n : n + columns].astype(np.float32)
            out[m : m + rows, n : n + columns], loads = high @ wide, loads + high.size + wide.size
    return out, loads
""",
            "16790288 is the nearest float32",
        ),
        (
            "stays in int8",
            """
def tile(a, b, rows, columns):
    out, loads = np.zeros((len(a), b.shape[1]), np.int32), 0
    for m in range(0, len(a), rows):
        for n in range(0, b.shape[1], columns):
            high, wide = a[m : m + rows], b[:, n : n + columns]
            out[m : m + rows, n : n + columns], loads = high @ wide, loads + high.size + wide.size
    return out, loads
""",
            "202 and 406 wrapped around",
        ),
        (
            "whole tiles counted",
            """
def tile(a, b, rows, columns):
    out, loads = np.zeros((len(a), b.shape[1]), np.int32), 0
    for m in range(0, len(a), rows):
        for n in range(0, b.shape[1], columns):
            high, wide = a[m : m + rows].astype(np.int32), b[:, n : n + columns].astype(np.int32)
            out[m : m + rows, n : n + columns] = high @ wide
            loads += a.shape[1] * (rows + columns)
    return out, loads
""",
            "The second tile has one column only",
        ),
        (
            "a loaded once for a row of tiles",
            """
def tile(a, b, rows, columns):
    out, loads = np.zeros((len(a), b.shape[1]), np.int32), 0
    for m in range(0, len(a), rows):
        high = a[m : m + rows].astype(np.int32)
        loads += high.size
        for n in range(0, b.shape[1], columns):
            wide = b[:, n : n + columns].astype(np.int32)
            out[m : m + rows, n : n + columns] = high @ wide
            loads += wide.size
    return out, loads
""",
            "Each tile loads its rows of a again",
        ),
    ],
}
