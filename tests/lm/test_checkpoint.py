"""Checkpoints that do not fit are refused with every reason; `test_checkpoint_torch.py` reads those that do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import minquant
from minquant.lm import Llama, LlamaConfig, load_llama

CONFIG = dict(
    architectures=["LlamaForCausalLM"], vocab_size=12, hidden_size=8, intermediate_size=6, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=10, tie_word_embeddings=False,
)  # fmt: skip


def weights() -> dict[str, np.ndarray]:
    minquant.manual_seed(0)
    model = Llama(LlamaConfig(**{name: value for name, value in CONFIG.items() if name != "architectures"}))
    return {name: parameter.data for name, parameter in model.named_parameters()}


def written(folder: Path, tensors: dict[str, np.ndarray] | None = None, **config) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(weights() if tensors is None else tensors, folder / "model.safetensors")
    return folder


def message(folder: Path, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as raised:
        load_llama(folder)
    return str(raised.value)


def test_weights_are_those_of_the_file(tmp_path) -> None:
    model = load_llama(written(tmp_path))
    assert not model.training and model.config.rope_theta == 10000
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.data, weights()[name])


def test_a_tied_head_may_be_repeated_in_the_file(tmp_path) -> None:
    tensors = weights()
    assert "lm_head.weight differs" in message(written(tmp_path, tie_word_embeddings=True))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model = load_llama(written(tmp_path, tensors, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    np.testing.assert_array_equal(model.lm_head.weight.data, tensors["model.embed_tokens.weight"])


def test_what_older_files_repeat_in_every_layer_is_left_out(tmp_path) -> None:
    derived = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    load_llama(written(tmp_path, weights() | derived))


def test_every_parameter_that_does_not_fit_is_listed(tmp_path) -> None:
    tensors = weights()
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:9].copy()
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].T.copy()
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(8, np.float32)
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    assert message(written(tmp_path, tensors)).split("\n")[1:] == [
        "  missing: lm_head.weight",
        "  missing: model.norm.weight",
        "  shape of model.embed_tokens.weight: expected (12, 8), got (9, 8) (rows are the vocab_size)",
        "  shape of model.layers.0.mlp.up_proj.weight: expected (6, 8), got (8, 6)",
        "  unexpected: model.layers.0.self_attn.q_proj.bias",
    ]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM"]),
        ({"architectures": None, "model_type": "mistral"}, ["mistral"]),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'", "'silu'"]),
        ({"attention_bias": True}, ["attention_bias=True"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config={'bits': 4}", "None"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["linear", "llama3"]),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ["yarn"]),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["low_freq_factor", "original_max_position"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads=3"]),
    ],
)
def test_models_that_are_not_built_are_refused(tmp_path, config: dict, words: list[str]) -> None:
    said = message(written(tmp_path, **config))
    assert [word for word in words if word not in said] == [], said


def test_files_that_are_missing_are_named(tmp_path) -> None:
    assert "nowhere" in message(tmp_path / "nowhere", FileNotFoundError)
    written(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "neither model.safetensors nor" in message(tmp_path, FileNotFoundError)
    index = {"weight_map": {"lm_head.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(weights(), tmp_path / "a.safetensors")
    assert "lacks: b.safetensors" in message(tmp_path, FileNotFoundError)
    save_file({"model.norm.weight": weights()["model.norm.weight"]}, tmp_path / "b.safetensors")
    assert message(tmp_path).endswith("twice: model.norm.weight")


def test_a_file_cut_anywhere_is_refused(tmp_path) -> None:
    path = written(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "truncated" in message(tmp_path) and str(path) in message(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": ')
    assert "no JSON" in message(tmp_path)


def test_types_that_cannot_be_read_are_named(tmp_path) -> None:
    tensors = weights() | {"lm_head.weight": np.zeros((12, 8), np.int8)}
    assert "lm_head.weight is stored as I8" in message(written(tmp_path, tensors))
