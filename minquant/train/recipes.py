"""The recipes of `minquant finetune`: what is trained, by which loss, and what it becomes.

========  ============================================  =========================================  =================
recipe    trains                                        loss                                       becomes
========  ============================================  =========================================  =================
full      every weight                                  of the next token                          the float model
qat       every weight, rounded in the forward pass     of the next token                          the integer model
qat-lora  adapters of rounded weights                   of the next token                          the integer model
qad       every weight, rounded in the forward pass     of the next token, and to a teacher        the integer model
========  ============================================  =========================================  =================

Source: torchtune's recipes full_finetune, qat_distributed and qat_lora_finetune_distributed; ModelOpt's QAD.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import minquant
from minquant.nn import Module
from minquant.quant import QATConfig, disable_fake_quant, enable_fake_quant, quantize_
from minquant.tensor import Tensor
from minquant.train.balancers import StaticLossBalancer
from minquant.train.checkpoint import Checkpoints
from minquant.train.config import Config
from minquant.train.distillation import DistillationModel
from minquant.train.distillation_loss import LogitsDistillationLoss
from minquant.train.loop import Loss, next_token_loss, train
from minquant.train.lora import add_lora_, merge_lora_
from minquant.train.setting import Setting, load_model, new_model

if TYPE_CHECKING:
    from minquant.train.parallel import Processes

__all__ = ["RECIPES", "Recipe", "Run", "finetune"]


# ---- the recipes -----------------------------------------------------------------------------------------------------


class Recipe(NamedTuple):
    """What a recipe does with a model.

    Attributes:
        begin: (float model, config) -> what the loop trains.
        loss: of a batch.
        end: (what was trained, config) -> the model that results.
        quantizes: whether that is an integer model.
    """

    begin: Callable[[Module, Config], Module]
    loss: Loss
    end: Callable[[Any, Config], Module]
    quantizes: bool = True


def begin_qat(model: Module, config: Config) -> Module:
    """The model with fake quantizers in its Linears, on the same Parameters."""
    quantize_(model, QATConfig(config.quantization.base_config(), step="prepare"))
    return model


def end_qat(model: Module, config: Config) -> Module:
    """The prepared model on integers."""
    quantize_(model.apply(enable_fake_quant), QATConfig(config.quantization.base_config(), step="convert"))
    return model


def begin_lora(model: Module, config: Config) -> Module:
    """The model with adapters in its Linears, which alone are trained."""
    lora = config.lora
    add_lora_(model, lora.rank, lora.alpha, form=lora.form, config=config.quantization.base_config())
    return model


def end_lora(model: Module, config: Config) -> Module:
    """The merged form on integers; the light one as it is, integers with adapters beside them."""
    if config.lora.form == "merged":
        merge_lora_(model.apply(enable_fake_quant))
    return model


def begin_qad(model: Module, config: Config) -> Module:
    """A prepared student beside its float teacher."""
    teacher = load_model(config.distillation.teacher or config.start)
    loss = LogitsDistillationLoss(config.distillation.temperature)
    return DistillationModel(begin_qat(model, config), teacher, loss, StaticLossBalancer(config.distillation.weight))


def qad_loss(model: Any, inputs: np.ndarray, targets: np.ndarray) -> Tensor:
    """The student's loss on the text, and its distance from the teacher."""
    return model.compute_kd_loss(next_token_loss(model, inputs, targets))


RECIPES: dict[str, Recipe] = {
    "full": Recipe(lambda model, config: model, next_token_loss, lambda model, config: model, quantizes=False),
    "qat": Recipe(begin_qat, next_token_loss, end_qat),
    "qat-lora": Recipe(begin_lora, next_token_loss, end_lora),
    "qad": Recipe(begin_qad, qad_loss, lambda model, config: end_qat(model.student, config)),
}


# ---- a run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a recipe gave.

    Attributes:
        model: the result.
        losses: of every step.
        rows: the evaluation table: the model at the start and, of an integer model, what rounding alone makes of it.
    """

    model: Module
    losses: list[float]
    rows: list[dict[str, Any]]


def finetune(
    name: str,
    config: Config,
    *,
    resume: bool = False,
    after_step: Callable[[int, float], Any] | None = None,
    processes: Processes | None = None,
) -> Run:
    """Runs a recipe: trains, evaluates, and leaves checkpoints and `model.safetensors` in the folder `config.out`.

    Args:
        name: one of `RECIPES`.
        config: see `minquant.train.config`.
        resume: go on from the run's last checkpoint.
        after_step: called with each step's number and loss.
        processes: those that share the work; the first one writes and evaluates.

    Raises:
        ValueError: an unknown recipe, one that needs a model to start from and has none; a text shorter than the
            context, a vocabulary larger than the model's; a group size that does not divide; a checkpoint that is
            damaged or of another run.
        FileExistsError: the folder holds another run.
    """
    recipe = _recipe(name, config)
    minquant.manual_seed(config.seed)
    first = processes is None or processes.rank == 0
    if processes:
        processes.check_same("config", dataclasses.asdict(config))
    checkpoints = Checkpoints(
        config.out, {"recipe": name, **dataclasses.asdict(config)}, config.training.steps,
        early=config.checkpoints.early, every=config.checkpoints.every, resume=resume, write=first,
    )  # fmt: skip
    setting = Setting.of(config)
    model = load_model(config.start) if config.start else new_model(config, setting.tokenizer.vocab_size)
    batches = setting.batches(config, model.config.vocab_size)
    rows = _rows_before(model, setting, config, recipe) if first else []
    trained = recipe.begin(model, config)
    losses = train(
        trained, batches, config.training, loss=recipe.loss, before_step=_rounding(trained, config),
        after_step=after_step, checkpoints=checkpoints, processes=processes,
    )  # fmt: skip
    result = recipe.end(trained, config).eval()
    if first:
        quantization = config.quantization if recipe.quantizes else None
        stage = name if recipe.quantizes else "control" if config.start else "float"
        rows.append(setting.measure(result).row(stage, config.seed, quantization))
        minquant.save(result, Path(config.out) / "model.safetensors")
    return Run(result, losses, rows)


def _recipe(name: str, config: Config) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"finetune: there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    if RECIPES[name].quantizes and not config.start:
        raise ValueError(
            f"finetune: the recipe {name!r} starts from a trained model, and the config names none: set "
            'start = "…/model.safetensors", for example that of a run of "full"'
        )
    return RECIPES[name]


def _rows_before(model: Module, setting: Setting, config: Config, recipe: Recipe) -> list[dict[str, Any]]:
    """The model that training starts from, and what it loses by rounding alone."""
    rows = [setting.measure(model).row("float", config.seed, None)] if config.start else []
    if recipe.quantizes:
        rounded = copy.deepcopy(model)
        quantize_(rounded, config.quantization.base_config())
        rows.append(setting.measure(rounded).row("ptq", config.seed, config.quantization))
    return rows


def _rounding(model: Module, config: Config) -> Callable[[int], Any] | None:
    """What lets fake quantizers round from a step on, and pass values unchanged until then."""
    wait = config.quantization.fake_quant_after_n_steps
    return (lambda step: model.apply(enable_fake_quant if step >= wait else disable_fake_quant)) if wait else None
