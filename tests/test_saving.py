"""minquant.save and load: bit for bit, all or nothing, and never fooled."""

from __future__ import annotations

import builtins
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import minquant
from minquant import nn
from minquant.quant import (
    LinearReLU,
    PerGroup,
    PerToken,
    QConfig,
    QParams,
    QSpec,
    QTensor,
    QuantizedLinear,
    QuantWrapper,
    convert,
    default_dynamic_qconfig,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_dynamic,
    report,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 8), dtype=np.float32)


def chain(wrapped: bool = True) -> nn.Module:
    minquant.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.25), LinearReLU(nn.Linear(6, 5, bias=False), nn.ReLU()),
        nn.Linear(5, 3),
    )  # fmt: skip
    return QuantWrapper(model) if wrapped else model


def static(backend: str = "reference", **bits: int) -> nn.Module:
    prepared = prepare(chain(), get_default_qconfig(backend, **bits))
    prepared(X)
    return convert(prepared)


def trained(**bits: int) -> nn.Module:
    prepared = prepare_qat(chain().train(), get_default_qat_qconfig(**bits))
    prepared(X)
    return convert(prepared)


def per_token() -> nn.Module:
    rows = QSpec(signed=False, granularity=PerToken())
    return quantize_dynamic(chain(False), QConfig(rows, default_dynamic_qconfig().weight))


MODELS = {
    "float": lambda: chain().eval(),
    "float in training": lambda: chain().train(),
    "a single Linear": lambda: nn.Linear(8, 2),
    "every other layer": lambda: nn.Sequential(
        nn.Linear(8, 8), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.Identity(), nn.Softmax(-1)
    ),
    "static": static,
    "static x86": lambda: static("x86"),
    "static qnnpack": lambda: static("qnnpack"),
    "static, 3 bits": lambda: static(weight_bits=3, act_bits=4),
    "trained, 2 bits": lambda: trained(weight_bits=2),
    "partly float": lambda: quantize_dynamic(chain(False), {"": default_dynamic_qconfig(), "5": None}),
    "dynamic onednn": lambda: quantize_dynamic(chain(False), default_dynamic_qconfig("onednn")),
    "dynamic per token": per_token,
    "eleven layers": lambda: nn.Sequential(*(nn.Linear(8, 8) for _ in range(11))),
}


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_bit_exact(tmp_path, name):
    model = MODELS[name]()
    minquant.save(model, tmp_path / "model.safetensors")
    loaded = minquant.load(tmp_path / "model.safetensors")
    assert repr(loaded) == repr(model)
    assert report(loaded).rows == report(model).rows
    assert [m.training for m in loaded.modules()] == [m.training for m in model.modules()]
    for a, b in zip(model.modules(), loaded.modules(), strict=True):
        assert_same_layer(a, b)
    minquant.manual_seed(1)  # for dropout in training
    expected = model(X).data
    minquant.manual_seed(1)
    assert loaded(X).data.tobytes() == expected.tobytes()


def assert_same_layer(a: nn.Module, b: nn.Module) -> None:
    assert type(a) is type(b)
    for (name, p), (other, q) in zip(a._parameters.items(), b._parameters.items(), strict=True):
        assert name == other and (p is None) == (q is None)
        assert p is None or (p.data.tobytes() == q.data.tobytes() and p.requires_grad == q.requires_grad)
    for name in ("qparams", "output"):
        if isinstance(vars(a).get(name), QParams):
            assert_same_grid(getattr(a, name), getattr(b, name))
    if isinstance(vars(a).get("weight"), QTensor):
        assert a.weight.storage.tobytes() == b.weight.storage.tobytes()
        assert np.array_equal(a.weight.int_repr(), b.weight.int_repr())
        assert a.weight.int_repr().dtype == b.weight.int_repr().dtype
        assert a.weight.nbytes == b.weight.nbytes
        assert_same_grid(a.weight.qparams, b.weight.qparams)


def assert_same_grid(a: QParams, b: QParams) -> None:
    assert a.spec == b.spec
    assert a.scale.tobytes() == b.scale.tobytes() and a.scale.shape == b.scale.shape
    assert np.array_equal(a.zero_point, b.zero_point) and a.zero_point.dtype == b.zero_point.dtype


def test_weights_per_group_and_with_zero_points_are_kept(tmp_path):
    spec = QSpec(4, signed=False, granularity=PerGroup(4))
    weight = RNG.standard_normal((3, 8), dtype=np.float32)
    grid = minquant.quant.choose_qparams(*spec.granularity.min_max(weight), spec)
    output = QParams(np.float32(0.1), np.int32(7), QSpec(signed=False))
    layer = QuantizedLinear(minquant.quant.quantize(weight, grid), None, output, "reference")
    minquant.save(layer, tmp_path / "m")
    assert_same_layer(layer, minquant.load(tmp_path / "m"))


IMAGES = RNG.standard_normal((3, 4, 6, 7), dtype=np.float32)
ROWS = RNG.standard_normal((5, 4, 6), dtype=np.float32)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: nn.Conv1d(4, 6, 3, 2, 1, 2, 2), ROWS),
        (lambda: nn.Conv2d(4, 2, (3, 2), padding="same", bias=False), IMAGES),
        (lambda: nn.MaxPool2d(3, (1, 2), 1, 2), IMAGES),
        (lambda: nn.MaxPool2d(2), IMAGES),
        (lambda: nn.AvgPool2d((2, 3), padding=(1, 0)), IMAGES),
        (lambda: nn.AdaptiveAvgPool2d((2, None)), IMAGES),
        (lambda: nn.BatchNorm1d(4, eps=0.1, momentum=None), ROWS),
        (lambda: nn.BatchNorm2d(4, affine=False), IMAGES),
        (lambda: nn.BatchNorm2d(4, track_running_stats=False, bias=False), IMAGES),
        (lambda: nn.LayerNorm((4, 6), bias=False), ROWS),
        (lambda: nn.LayerNorm(6, elementwise_affine=False), ROWS),
        (lambda: nn.RMSNorm(6), ROWS),
        (lambda: nn.RMSNorm([4, 6], eps=0.1), ROWS),
        (lambda: nn.Embedding(5, 3, padding_idx=-1), np.array([[4, 0], [1, 2]])),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_layers_of_convolutional_networks_are_kept(tmp_path, make, inputs, training):
    model = nn.Sequential(make())
    model(inputs)  # moves running statistics
    model.train(training)
    minquant.save(model, tmp_path / "m")
    loaded = minquant.load(tmp_path / "m")
    assert repr(loaded) == repr(model)
    assert report(loaded).rows == report(model).rows
    hidden = {"_parameters", "_buffers", "_modules", "_forward_hooks"}
    assert [{k: v for k, v in vars(m).items() if k not in hidden} for m in (loaded[0], model[0])] == [
        {k: v for k, v in vars(model[0]).items() if k not in hidden}
    ] * 2
    assert list(loaded.state_dict()) == list(model.state_dict())
    for _ in range(2):  # the second time with statistics that the first has moved
        assert loaded(inputs).data.tobytes() == model(inputs).data.tobytes()
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(loaded.state_dict()[name].data, value.data, strict=True)


def test_what_is_shared_is_shared_again(tmp_path):
    linear, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = linear.weight
    other.bias.requires_grad_(False)
    minquant.save(nn.Sequential(linear, nn.ReLU(), linear, other), tmp_path / "m")
    loaded = minquant.load(tmp_path / "m")
    assert loaded[0] is loaded[2] and loaded[3] is not loaded[0]
    assert loaded[3].weight is loaded[0].weight
    assert [p.requires_grad for p in loaded.parameters()] == [True, True, False]


def test_loading_draws_no_random_numbers(tmp_path):
    minquant.save(chain(), tmp_path / "m")
    minquant.manual_seed(3)
    expected = minquant.rand(4).data
    minquant.manual_seed(3)
    minquant.load(tmp_path / "m")
    assert np.array_equal(minquant.rand(4).data, expected)


# ---- classes of one's own ----------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 8)

    def forward(self, x):
        return self.fc(x)


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(width), nn.ReLU(), Block())
        self.gain = nn.Parameter(np.ones(8, np.float32))
        self.register_buffer("offset", np.zeros(8, np.float32))
        self.head = nn.Linear(8, 2)
        self.temperature = 1.0

    def forward(self, x):
        return self.head(self.blocks(x) * self.gain + self.offset) * self.temperature


def saved_net(tmp_path) -> nn.Module:
    model = Net()
    model.gain.data[:] = 2
    model.offset.data[:] = 0.5
    quantized = quantize_dynamic(model)
    minquant.save(quantized, tmp_path / "net")
    return quantized


def test_own_class_is_loaded_into_a_fresh_model(tmp_path):
    quantized, fresh = saved_net(tmp_path), Net()
    fresh.temperature = 3.0
    loaded = minquant.load(tmp_path / "net", into=fresh)
    assert loaded is fresh and loaded.temperature == 3.0
    fresh.temperature = 1.0
    assert repr(loaded) == repr(quantized) and report(loaded).rows == report(quantized).rows
    assert np.array_equal(loaded(X).data, quantized(X).data)


def test_own_class_inside_a_known_one(tmp_path):
    prepared = prepare(QuantWrapper(Block()), get_default_qconfig())
    prepared(X)
    converted = convert(prepared)
    minquant.save(converted, tmp_path / "m")
    loaded = minquant.load(tmp_path / "m", into=QuantWrapper(Block()))
    assert repr(loaded) == repr(converted) and np.array_equal(loaded(X).data, converted(X).data)
    with pytest.raises(ValueError, match=r"'module' is of class Block.*into=QuantWrapper\("):
        minquant.load(tmp_path / "m")


def test_own_class_needs_into(tmp_path):
    saved_net(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)net: the model is of class Net.*load\(path, into=Net\("):
        minquant.load(tmp_path / "net")


def test_into_that_does_not_fit_is_left_alone(tmp_path):
    saved_net(tmp_path)
    other = Net()
    del other.head
    other.extra = nn.ReLU()
    other.gain = nn.Parameter(np.ones(4, np.float32))
    before = repr(other)
    with pytest.raises(ValueError, match="net does not fit into this Net") as error:
        minquant.load(tmp_path / "net", into=other)
    assert "the file has no 'extra'" in str(error.value) and "the model: has no 'head'" in str(error.value)
    assert "'gain' has shape (8,) in the file, here (4,)" in str(error.value)
    assert repr(other) == before
    with pytest.raises(ValueError, match="the file has a Net, got a Block"):
        minquant.load(tmp_path / "net", into=Block())
    with pytest.raises(TypeError, match="into must be a float model"):
        minquant.load(tmp_path / "net", into=Net)


def test_known_model_can_be_loaded_into_one(tmp_path):
    model = quantize_dynamic(chain(False))
    minquant.save(model, tmp_path / "m")
    fresh = chain(False)
    assert minquant.load(tmp_path / "m", into=fresh) is fresh
    assert np.array_equal(fresh(X).data, model(X).data)


# ---- what cannot be saved ----------------------------------------------------------------------------------


def test_hooks_are_refused(tmp_path):
    model = chain(False)
    model[1].register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(ValueError, match=r"Linear '1' has a forward hook.*remove it"):
        minquant.save(model, tmp_path / "m")


def test_grids_in_attributes_of_ones_own_are_refused(tmp_path):
    model = Block()
    model.kept = minquant.quant.quantize(X, QParams(np.float32(1), np.int32(0), QSpec()))
    with pytest.raises(TypeError, match=r"Block.*keeps a QTensor in its attribute 'kept'"):
        minquant.save(model, tmp_path / "m")


def test_not_a_model(tmp_path):
    with pytest.raises(TypeError, match="expected a Module, got dict"):
        minquant.save({}, tmp_path / "m")


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere; create it"):
        minquant.save(chain(), tmp_path / "nowhere" / "m")


def test_without_safetensors(tmp_path, monkeypatch):
    minquant.save(chain(), tmp_path / "m")
    imports = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return imports(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for use in (lambda: minquant.save(chain(), tmp_path / "n"), lambda: minquant.load(tmp_path / "m")):
        with pytest.raises(ImportError, match=r"pip install 'minquant\[demo\]'"):
            use()


# ---- files that are not what they should be ----------------------------------------------------------------


def test_every_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "m"
    minquant.save(quantize_dynamic(nn.Sequential(nn.Linear(2, 2))), path)
    sound = path.read_bytes()
    for i in range(len(sound)):
        path.write_bytes(sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :])
        with pytest.raises(ValueError, match="m "):
            minquant.load(path)
    path.write_bytes(sound)
    minquant.load(path)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "m"
    minquant.save(nn.Linear(2, 2), path)
    sound = path.read_bytes()
    for n in range(1, len(sound), 7):
        path.write_bytes(sound[:n])
        with pytest.raises(ValueError, match=r"m is no safetensors file, or is truncated or damaged .*; copy or save"):
            minquant.load(path)


def test_altered_tensors(tmp_path):
    path = tmp_path / "m"
    minquant.save(nn.Linear(2, 2), path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("weight", "bias")}
    tensors["weight"][0, 0] += 1
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    with pytest.raises(ValueError, match=r"m has been altered: its contents do not give its sha256"):
        minquant.load(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_foreign_safetensors(tmp_path, metadata):
    path = tmp_path / "m"
    path.write_bytes(safetensors.numpy.save({"weight": np.ones(3, np.float32)}, metadata))
    with pytest.raises(ValueError, match=r"m is a safetensors file, but not one that minquant.save wrote"):
        minquant.load(path)


def test_not_safetensors_at_all(tmp_path):
    path = tmp_path / "m"
    for content, reason in (
        (b"", "it is empty"),
        (pickle.dumps({"weight": [1.0]}), "a pickle .* can run any code"),
        (b"PK\x03\x04 a zip of pickles" * 50, "an archive of pickles"),
        (b"name: model\n", "or is truncated or damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"m is no safetensors file.*{reason}"):
            minquant.load(path)


@pytest.mark.parametrize(
    ("version", "what_to_do"), [("3", "upgrade minquant"), ("0", "save the model again"), ("x", "save the model")]
)
def test_other_versions(tmp_path, version, what_to_do):
    write(tmp_path / "m", "{}", {}, version=version)
    with pytest.raises(ValueError, match=rf"m has format version {version}, this minquant reads 1 and 2; {what_to_do}"):
        minquant.load(tmp_path / "m")


def write(path, tree, tensors, version="1"):
    """A file whose checksum is right, whatever is in it."""
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{tensors[name].dtype}\0{tensors[name].shape}\0".encode() + tensors[name].tobytes())
    metadata = {"format": "minquant", "version": version, "model": tree, "sha256": digest.hexdigest()}
    path.write_bytes(safetensors.numpy.save(tensors, metadata))


def node(kind: str, **settings: object) -> dict[str, object]:
    about = {"class": kind, "own": False, "training": False, "settings": settings}
    return about | {"parameters": {}, "buffers": {}, "children": {}}


@pytest.mark.parametrize(
    "tree",
    [
        "nonsense",
        "[]",
        "{}",
        json.dumps(node("os.system")),
        json.dumps(node("Module")),
        json.dumps(node("Dropout", p=7)),
        json.dumps(node("Flatten")),
        json.dumps(node("Softmax", dim={"eval": "1"})),
        json.dumps({"same_as": "elsewhere"}),
        json.dumps(node("Sequential") | {"parameters": {"w": {"tensor": "absent", "requires_grad": True}}}),
    ],
)
def test_forged_files_are_refused_and_nothing_runs(tmp_path, tree):
    write(tmp_path / "m", tree, {})
    with pytest.raises(ValueError, match=r"m holds no model that makes sense .*; save it again"):
        minquant.load(tmp_path / "m")


def test_forged_storage(tmp_path):
    minquant.save(static(weight_bits=4), tmp_path / "m")
    with safetensors.safe_open(tmp_path / "m", framework="numpy") as file:
        tree, tensors = file.metadata()["model"], {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    tensors["module.1.weight"] = tensors["module.1.weight"][:-1]
    write(tmp_path / "m", tree, tensors)
    with pytest.raises(ValueError, match=r"23 bytes cannot be 4-bit integers of shape \(6, 8\)"):
        minquant.load(tmp_path / "m")


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        minquant.load(tmp_path / "none")
    with pytest.raises(IsADirectoryError, match=r"is a folder; .* lm\.load_llama"):
        minquant.load(tmp_path)


FIRST_VERSION = [
    [-0.055614862591028214, 0.2850261628627777, 0.3406410217285156],
    [0.1598927229642868, 0.3406410217285156, 0.3545447587966919],
]
"""What the model gave when it was saved."""


def test_files_of_the_first_version_are_read(tmp_path):
    model = minquant.load(Path(__file__).parent / "golden" / "model_version1.safetensors")
    minquant.manual_seed(0)
    for size in (6 * 8, 6, 3 * 6, 3):  # what that model's layers drew
        minquant.rand(size)
    y = model(minquant.randn(20, 8)).data[:2]
    assert y.tolist() == FIRST_VERSION
    minquant.save(model, tmp_path / "again")
    assert repr(minquant.load(tmp_path / "again")) == repr(model)
