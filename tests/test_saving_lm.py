"""minquant.save and load of language models: tied weights stay tied, and int4 is five bits a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import safetensors

import minquant
from minquant import nn
from minquant.lm import Llama, LlamaConfig
from minquant.quant import (
    Int4WeightOnlyConfig,
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    QATConfig,
    quantize_,
)
from minquant.savable import HOMES, name_of_savable
from minquant.train.lora import add_lora_

TOKENS = np.random.default_rng(0).integers(0, 40, (2, 7))
INT4 = IntxWeightOnlyConfig("int4", PerGroup(32))
INT8_INT4 = Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32))


def llama(tied: bool = True, width: int = 32) -> Llama:
    minquant.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Llama(LlamaConfig(**sizes, **heads, max_position_embeddings=16, tie_word_embeddings=tied))


def everything(module: nn.Module, path: str) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding)


def reloaded(model: Llama, tmp_path: Any) -> Llama:
    minquant.save(model, tmp_path / "model")
    loaded = minquant.load(tmp_path / "model")
    assert type(loaded) is Llama and loaded.config == model.config and repr(loaded) == repr(model)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert loaded(TOKENS).data.tobytes() == model(TOKENS).data.tobytes()
    return loaded


def stored(path: Any) -> dict[str, np.ndarray]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("tied", [True, False])
def test_float_models(tmp_path, tied):
    model = llama(tied)
    loaded = reloaded(model, tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    size = sum(array.nbytes for array in stored(tmp_path / "model").values())
    assert size == sum(p.data.nbytes for p in model.parameters())  # which names a shared one once


def train(model: Llama, steps: int) -> None:
    optimizer = minquant.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(model(TOKENS[:, :-1]).reshape(-1, 40), minquant.Tensor(TOKENS[:, 1:].reshape(-1)))
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("config", [INT8_INT4, Int4WeightOnlyConfig(32)])
def test_training_goes_on_and_converts_to_the_same_integers(tmp_path, config):
    model = llama()
    quantize_(model, QATConfig(INT4, step="prepare"), lambda module, path: "embed" in path)
    quantize_(model, QATConfig(config, step="prepare"))
    train(model, 2)
    loaded = reloaded(model, tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for m in (model, loaded):
        train(m, 3)
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].data.tobytes() == value.data.tobytes()
    for m in (model, loaded):
        quantize_(m, QATConfig(step="convert"))
    for a, b in zip(model.modules(), loaded.modules(), strict=True):
        if hasattr(a, "weight") and hasattr(a.weight, "int_repr"):
            assert a.weight.storage.tobytes() == b.weight.storage.tobytes()
            assert a.weight.qparams.scale.tobytes() == b.weight.qparams.scale.tobytes()
    assert loaded(TOKENS).data.tobytes() == model(TOKENS).data.tobytes()
    reloaded(model, tmp_path)


def test_one_table_of_integers_is_written_once_and_shared_again(tmp_path):
    model = llama()
    quantize_(model, INT4, everything)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    loaded = reloaded(model, tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.model.layers[0].mlp.up_proj.weight is not loaded.model.layers[1].mlp.up_proj.weight
    assert [name for name in stored(tmp_path / "model") if "embed" in name or "head" in name] == [
        "model.embed_tokens.weight", "model.embed_tokens.weight.scale",
    ]  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_int4_in_groups_of_32_is_five_bits_a_weight(tmp_path, tied):
    model = llama(tied, width=128)
    parameters = list(model.parameters())
    weights = sum(p.numel() for p in parameters if p.ndim == 2)
    norms = sum(p.data.nbytes for p in parameters if p.ndim == 1)
    quantize_(model, INT4, everything)
    minquant.save(model, tmp_path / "model")
    assert sum(array.nbytes for array in stored(tmp_path / "model").values()) == weights * 5 // 8 + norms
    description = len(safe_metadata(tmp_path / "model")["model"])
    assert (tmp_path / "model").stat().st_size < weights * 5 // 8 + norms + 2 * description


def safe_metadata(path: Any) -> dict[str, str]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata()


def test_a_llama_can_be_loaded_into_one(tmp_path):
    model = llama()
    minquant.save(model, tmp_path / "model")
    minquant.manual_seed(5)
    into = Llama(model.config)
    assert minquant.load(tmp_path / "model", into=into) is into
    assert into(TOKENS).data.tobytes() == model(TOKENS).data.tobytes()
    with pytest.raises(ValueError, match=r"(?s)model does not fit .*: the file has a Llama, got a Sequential"):
        minquant.load(tmp_path / "model", into=nn.Sequential())


@pytest.mark.parametrize("form", ["light", "merged"])
def test_adapters_go_on(tmp_path, form):
    model = llama()
    add_lora_(model, 2, 4.0, form=form, config=INT8_INT4)
    train(model, 1)
    loaded = reloaded(model, tmp_path)
    for m in (model, loaded):
        train(m, 2)
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].data.tobytes() == value.data.tobytes()


def test_every_class_of_minquants_own_is_found_again():
    ours = [kind for kind in below(nn.Module) if kind.__module__.startswith("minquant.") and name_of_savable(kind)]
    assert {"Llama", "LoraLinear", "QATLinear"} <= {kind.__name__ for kind in ours}
    for kind in ours:
        assert any(f"{kind.__module__}.".startswith(f"{home}.") for home in HOMES), kind


def below(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


# ---- damage ------------------------------------------------------------------------------------------------------


def prepared_file(tmp_path: Any) -> Any:
    model = llama()
    quantize_(model, QATConfig(INT4, step="prepare"))
    minquant.save(model, tmp_path / "model")
    return tmp_path / "model"


def test_a_sample_of_flipped_bytes(tmp_path):
    path = prepared_file(tmp_path)
    sound = path.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    places = [
        *range(12),
        *range(12, header, header // 40),
        *range(header, len(sound), len(sound) // 40),
        len(sound) - 1,
    ]
    for i in places:
        path.write_bytes(sound[:i] + bytes([sound[i] ^ 0x20]) + sound[i + 1 :])
        with pytest.raises(ValueError, match="model (is|has|holds)"):
            minquant.load(path)


def test_a_sample_of_truncations(tmp_path):
    path = prepared_file(tmp_path)
    sound = path.read_bytes()
    for n in [*range(1, 12), *range(12, len(sound), len(sound) // 50), len(sound) - 1]:
        path.write_bytes(sound[:n])
        with pytest.raises(ValueError, match="model is no safetensors file, or is truncated or damaged"):
            minquant.load(path)
    path.write_bytes(sound + b"\0")
    with pytest.raises(ValueError, match="model is no safetensors file, or is truncated or damaged"):
        minquant.load(path)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('"class":"minquant.Llama"', '"class":"minquant.LlamaConfig"'),
        ('{"savable":["minquant.LlamaConfig"', '{"savable":["minquant.Llama"'),
        ('{"savable":["minquant.LlamaConfig"', '{"dataclass":["minquant.LlamaConfig"'),
        ('{"savable":["minquant.LlamaConfig"', '{"factory":["minquant.LlamaConfig"'),
        ('{"savable":["minquant.LlamaConfig"', '{"eval":["minquant.LlamaConfig"'),
        ('"class":"minquant.Attention"', '"class":"minquant.bench"'),
        ('"class":"RMSNorm"', '"class":"minquant.RMSNorm","savable":true'),
        ('"vocab_size":40', '"vocab_size":0'),
        ('"vocab_size":40', '"vocab":40'),
        ('"training":true', '"hooks":["os.system"],"training":true'),
        ('"children"', f'"x":{"[" * 9000}{"]" * 9000},"children"'),
    ],
)
def test_forged_descriptions_run_nothing(tmp_path, was, becomes):
    path = prepared_file(tmp_path)
    tree, tensors = safe_metadata(path)["model"], stored(path)
    assert was in tree
    tree = tree.replace(was, becomes, 1)
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{tensors[name].dtype}\0{tensors[name].shape}\0".encode() + tensors[name].tobytes())
    metadata = {"format": "minquant", "version": "2", "model": tree, "sha256": digest.hexdigest()}
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    with pytest.raises(ValueError, match=r"model(: it holds a .*not known here| holds no model that makes sense)"):
        minquant.load(path)
