"""The recipes: what they train, what they leave behind, and how a run goes on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import minquant
from minquant.lm import Llama, LlamaConfig
from minquant.quant import DynamicQuantizedLinear, FakeQuantizedLinear
from minquant.train.config import Config, Distillation, Lora, ModelSizes, Quantization, Saving
from minquant.train.loop import Schedule
from minquant.train.lora import lora_parameters
from minquant.train.recipes import RECIPES, finetune
from minquant.train.setting import load_model

SIZES = ModelSizes(32, 32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
KEYS = {
    "scheme", "weight_bits", "group_size", "stage", "seed", "nll", "word_ppl", "byte_ppl", "bits_per_byte", "acc",
    "acc_norm",
}  # fmt: skip


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A float model, a little trained, and the config that others vary."""
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text.txt"
    lines = (
        f"the {a} {b} of every {c}\n" for a in ("small", "large", "red") for b in ("house", "tree") for c in "abcdefgh"
    )
    text.write_text("".join(lines) * 2, encoding="utf-8")
    config = Config(
        out=str(folder / "full"), text=str(text), context=40, batch_size=2, questions=4, model=SIZES,
        training=Schedule(steps=8, lr=1e-2), checkpoints=Saving(early=2, every=4),
    )  # fmt: skip
    return config, finetune("full", config)


def further(full, out, **changes):
    config, _ = full
    start = str(f"{config.out}/model.safetensors")
    return dataclasses.replace(config, out=str(out), start=start, training=Schedule(steps=6, lr=1e-3), **changes)


def linears(model, kind):
    return [module for module in model.modules() if type(module) is kind]


def test_full_trains_the_float_model(full):
    config, run = full
    assert len(run.losses) == 8 and run.losses[-1] < run.losses[0]
    assert [row["stage"] for row in run.rows] == ["float"] and set(run.rows[0]) == KEYS
    saved = load_model(f"{config.out}/model.safetensors")
    assert (saved([[1, 2]]).data == run.model([[1, 2]]).data).all()


def test_full_from_a_model_is_the_control(full, tmp_path):
    run = finetune("full", further(full, tmp_path))
    assert [row["stage"] for row in run.rows] == ["float", "control"]
    assert {row["scheme"] for row in run.rows} == {"float32"}


@pytest.mark.parametrize("name", ["qat", "qat-lora", "qad"])
def test_the_others_end_in_integers(full, tmp_path, name):
    config = further(full, tmp_path, lora=Lora(rank=2, form="merged"), quantization=Quantization("int4", 16))
    run = finetune(name, config)
    assert [row["stage"] for row in run.rows] == ["float", "ptq", name]
    assert [row["scheme"] for row in run.rows] == ["float32", "int8-int4", "int8-int4"]
    assert [row["group_size"] for row in run.rows] == [None, 16, 16]
    assert isinstance(run.model, Llama) and len(linears(run.model, DynamicQuantizedLinear)) == 8
    saved = minquant.load(tmp_path / "model.safetensors")
    assert (saved(np.array([[1, 2]])).data == run.model(np.array([[1, 2]])).data).all()


def test_light_adapters_stay_beside_their_integers(full, tmp_path):
    config = further(full, tmp_path, lora=Lora(rank=2), quantization=Quantization("int4", 16))
    before, run = load_model(config.start), finetune("qat-lora", config)
    assert len(lora_parameters(run.model)) == 2 * 8
    assert (run.model.model.embed_tokens.weight.data == before.model.embed_tokens.weight.data).all()


def test_a_teacher_makes_a_difference(full, tmp_path):
    runs = [
        finetune(
            "qad", further(full, tmp_path / str(weight), distillation=Distillation(temperature=1.0, weight=weight))
        )
        for weight in (0.1, 1.0)
    ]
    assert runs[0].losses != runs[1].losses


def test_rounding_can_wait(full, tmp_path):
    float_run = finetune("full", further(full, tmp_path / "control"))
    later = finetune(
        "qat", further(full, tmp_path / "qat", quantization=Quantization("int2", fake_quant_after_n_steps=3))
    )
    assert later.losses[:3] == float_run.losses[:3]
    assert later.losses[3] != float_run.losses[3]
    assert linears(later.model, DynamicQuantizedLinear)


def test_rounding_that_never_began_still_ends_in_integers(full, tmp_path):
    run = finetune("qat", further(full, tmp_path, quantization=Quantization("int2", fake_quant_after_n_steps=100)))
    assert linears(run.model, DynamicQuantizedLinear) and not linears(run.model, FakeQuantizedLinear)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("name", ["qat", "qad"])
def test_a_run_goes_on_where_it_was_stopped(full, tmp_path, name):
    whole = finetune(name, further(full, tmp_path / "whole"))

    def stop(step, loss):
        if step == 4:
            raise StoppedError

    config = further(full, tmp_path / "stopped")
    with pytest.raises(StoppedError):
        finetune(name, config, after_step=stop)
    with pytest.raises(FileExistsError, match="latest.safetensors of an earlier run"):
        finetune(name, config)
    steps = []
    resumed = finetune(name, config, resume=True, after_step=lambda step, loss: steps.append(step))
    assert steps == [4, 5] and resumed.losses == whole.losses and resumed.rows == whole.rows


def test_another_config_cannot_resume(full, tmp_path):
    finetune("qat", further(full, tmp_path))
    with pytest.raises(ValueError, match="is of a run with another config:\n  quantization: "):
        finetune("qat", further(full, tmp_path, quantization=Quantization("int3")), resume=True)


def test_what_cannot_be_is_refused(full, tmp_path):
    config, _ = full
    with pytest.raises(ValueError, match="no recipe 'quat'; there are full, qat, qat-lora, qad"):
        finetune("quat", config)
    for name, recipe in RECIPES.items():
        if recipe.quantizes:
            with pytest.raises(ValueError, match="starts from a trained model, and the config names none"):
                finetune(name, dataclasses.replace(config, out=str(tmp_path / name)))
    with pytest.raises(ValueError, match="is shorter than a window of 4000"):
        finetune("full", dataclasses.replace(config, out=str(tmp_path / "a"), context=4000))
    with pytest.raises(ValueError, match="context=4 is shorter than a question's ending"):
        finetune("full", dataclasses.replace(config, out=str(tmp_path / "b"), context=4))
    small = Llama(LlamaConfig(100, 32, 32, 1, 2, max_position_embeddings=40))
    minquant.save(small, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="the tokenizer has 256 tokens, the model only 100"):
        finetune(
            "full", dataclasses.replace(config, out=str(tmp_path / "e"), start=str(tmp_path / "small.safetensors"))
        )
    with pytest.raises(ValueError, match="24"):
        finetune("qat", further(full, tmp_path / "c", quantization=Quantization("int4", 24)))
    quantized = finetune("qat", further(full, tmp_path / "d"))
    assert quantized.rows
    with pytest.raises(ValueError, match="holds no float Llama"):
        load_model(str(tmp_path / "d" / "model.safetensors"))
