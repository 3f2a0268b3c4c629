"""Wrong answers to lesson 13: each must fail its check, and the check must say what is wrong."""

WRONG_ANSWERS = {
    "kd_loss": [
        (
            "mean over everything",
            """
def kd_loss(log_r, p):
    log_p = np.log(np.where(p > 0, p, 1))
    return (p * (log_p - log_r)).mean()
""",
            "0.0578 is the mean over the classes too",
        ),
        (
            "probabilities instead of their logarithms",
            """
def kd_loss(log_r, p):
    log_p = np.log(np.where(p > 0, p, 1))
    return (p * (log_p - np.exp(log_r))).sum(axis=1).mean()
""",
            "the student's logarithm is missing",
        ),
        (
            "sum over the batch",
            """
def kd_loss(log_r, p):
    log_p = np.log(np.where(p > 0, p, 1))
    return (p * (log_p - log_r)).sum()
""",
            "the sum over the rows, not their mean",
        ),
        (
            "the other way round",
            """
def kd_loss(log_r, p):
    log_p = np.log(np.where(p > 0, p, 1))
    return (np.exp(log_r) * (log_r - log_p)).sum(axis=1).mean()
""",
            "This is KL(r ‖ p)",
        ),
        (
            "0 · ln 0",
            """
def kd_loss(log_r, p):
    with np.errstate(all="ignore"):
        return (p * (np.log(p) - log_r)).sum(axis=1).mean()
""",
            "nan in floating point",
        ),
    ],
    "temperature": [
        (
            "no T²",
            """
def tempered_loss(u, v, temperature):
    return divergence(softmax(v / temperature), softmax(u / temperature))
""",
            "T² is missing: the gradient would be 0.0525",
        ),
        (
            "one T",
            """
def tempered_loss(u, v, temperature):
    return temperature * divergence(softmax(v / temperature), softmax(u / temperature))
""",
            "Only one T",
        ),
        (
            "the teacher alone is softened",
            """
def tempered_loss(u, v, temperature):
    return temperature**2 * divergence(softmax(v / temperature), softmax(u))
""",
            "T on one side: v/4 against v is 0.633",
        ),
        (
            "the student alone is softened",
            """
def tempered_loss(u, v, temperature):
    return temperature**2 * divergence(softmax(v), softmax(u / temperature))
""",
            "The teacher's answer has not been softened",
        ),
        (
            "the other way round",
            """
def tempered_loss(u, v, temperature):
    return temperature**2 * divergence(softmax(u / temperature), softmax(v / temperature))
""",
            "p is the first argument",
        ),
    ],
    "student_state": [
        (
            "the teacher trains",
            """
def ready(pair):
    pair.train()
    return list(pair.student.parameters()), list(pair.student.state_dict())
""",
            "The teacher is in train()",
        ),
        (
            "the teacher is saved",
            """
def ready(pair):
    pair.train()
    pair.teacher.eval()
    return list(pair.student.parameters()), list(pair.state_dict())
""",
            "The teacher would be saved",
        ),
        (
            "the optimizer gets both",
            """
def ready(pair):
    pair.train()
    pair.teacher.eval()
    return list(pair.parameters()), list(pair.student.state_dict())
""",
            "The optimizer would train the teacher",
        ),
        (
            "names of the pair",
            """
def ready(pair):
    pair.train()
    pair.teacher.eval()
    names = [name for name in pair.state_dict() if name.startswith("student")]
    return list(pair.student.parameters()), names
""",
            "they begin with student",
        ),
        (
            "only the teacher itself",
            """
def ready(pair):
    pair.train()
    pair.teacher.training = False
    return list(pair.student.parameters()), list(pair.student.state_dict())
""",
            "not what is in it",
        ),
        (
            "a tied weight twice",
            """
def ready(pair):
    pair.train()
    pair.teacher.eval()
    layers = [layer for layer in pair.student if isinstance(layer, nn.Linear)]
    return [p for layer in layers for p in layer.parameters()], list(pair.student.state_dict())
""",
            "One weight with two names is one parameter",
        ),
    ],
}
