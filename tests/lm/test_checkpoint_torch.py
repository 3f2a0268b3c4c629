"""Published checkpoints, written by transformers: the same logits, the same text."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import minquant
from minquant.lm import generate, load_llama

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what imports of torch's companions say
    transformers = pytest.importorskip("transformers")
    from transformers import LlamaForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = dict(
    vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=64, initializer_range=0.2,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
TEXT = np.random.default_rng(0).integers(0, 99, (3, 60))


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small take longer to hand out than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def published(folder, dtype, shard_size: str, options: dict):
    """A random checkpoint, and the model that transformers makes of it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(transformers.LlamaConfig(**SIZES | options))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("dtype", "shard_size", "options"),
    [
        ("float32", "1GB", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("bfloat16", "30KB", {"num_key_value_heads": 1, "rope_theta": 5e5}),
        ("float16", "1GB", {"head_dim": 12, "rope_parameters": LLAMA3}),
    ],
    ids=["tied, two queries a key", "sharded, four queries a key", "untied, llama3's positions"],
)
def test_logits_and_text_are_those_of_transformers(tmp_path, dtype: str, shard_size: str, options: dict) -> None:
    theirs = published(tmp_path, dtype, shard_size, options)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard_size == "30KB"
    ours = load_llama(tmp_path)
    with torch.no_grad(), minquant.no_grad():
        expected, logits = theirs(torch.tensor(TEXT)).logits.numpy(), ours(TEXT).data
    assert np.abs(logits - expected).max() <= 1e-4
    start = torch.tensor(TEXT[:, :8])
    # transformers ends texts at a token that ids do not reach, and would hide padding that it believes to see
    text = theirs.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=99,
        pad_token_id=98,
    )
    np.testing.assert_array_equal(generate(ours, TEXT[:, :8], 16).data, text.numpy())
