"""Configs in TOML: what is left out has a default, and whatever is wrong is told at once, with what is close."""

from __future__ import annotations

import pytest

from minquant.quant import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, PerChannel, PerGroup
from minquant.train.config import Config, Quantization, read_config
from minquant.train.loop import Schedule


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_names_what_differs_from_the_defaults(tmp_path):
    assert read_config(write(tmp_path, "")) == Config()
    config = read_config(
        write(
            tmp_path,
            'seed = 3\n[training]\nsteps = 7\nlr = 1\nbetas = [0.8, 0.9]\n[quantization]\nweight_dtype = "int2"\n',
        )
    )
    assert config == Config(
        seed=3, training=Schedule(steps=7, lr=1, betas=(0.8, 0.9)), quantization=Quantization(weight_dtype="int2")
    )


def test_every_problem_is_listed_with_what_is_close(tmp_path):
    text = (
        'sed = 1\ncontext = "long"\nmodel = 3\n[training]\nstep = 4\nbetas = [0.9]\nlr = true\n'
        '[quantization]\nweight_dtype = "int9"\n[lora]\nfruit = 1\n'
    )
    with pytest.raises(ValueError, match="run.toml") as caught:
        read_config(write(tmp_path, text))
    lines = str(caught.value).split("\n  ")[1:]
    assert lines[:6] == [
        "sed is unknown; did you mean seed?",
        "context must be an integer, got 'long'",
        "model must be a table, got 3",
        "training.step is unknown; did you mean steps?",
        "training.betas must be a list of 2 numbers, got [0.9]",
        "training.lr must be a number, got True",
    ]
    assert lines[6].startswith("quantization: ") and "int9" in lines[6]
    assert lines[7] == "lora.fruit is unknown; there are rank, alpha, form"
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "is no TOML"),
        ("context = 0", "context must be 1 or more, got 0"),
        ('[quantization]\nactivation_dtype = "int4"', "activation_dtype must be 'int8' or 'float32', got 'int4'"),
        ("[quantization]\nfake_quant_after_n_steps = -1", "fake_quant_after_n_steps must be 0 or more"),
        ("[quantization]\ngroup_size = -1", "-1"),
        ("[training]\nsteps = 0", "steps must be 1 or more, got 0"),
        ("[distillation]\ntemperature = 0.0", "temperature must be above 0"),
        ("[distillation]\nweight = 2.0", "weight must lie above 0 and not above 1"),
        ("[checkpoints]\nevery = 0", "must be 1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_config(write(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no config"):
        read_config(tmp_path / "none.toml")


def test_which_integers():
    assert Quantization().base_config() == Int8DynamicActivationIntxWeightConfig("int4", PerGroup(32))
    assert Quantization("int3", 0).base_config() == Int8DynamicActivationIntxWeightConfig("int3", PerChannel(0))
    assert Quantization("int4", 64, "float32").base_config() == IntxWeightOnlyConfig("int4", PerGroup(64))
    assert Quantization("int4", 64, "float32").scheme == "float32-int4" and Quantization("int2").weight_bits == 2
