"""Averaged weights and teachers do what their sources say, and leave everything else as it was."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from trainings import ADAMW, SGD, begun, trained

from dvc_guard import alone
from stages.arithmetic import numerics
from stages.base.params import Distillation, PlainRecipe, Recipe
from stages.learn import average, resume, teachers, training
from stages.learn.resume import Training
from stages.networks import models

OF_TEACHER = PlainRecipe(**{key: value for key, value in ADAMW if key != "distillation"})
TAUGHT = Distillation(teachers=2, recipe=OF_TEACHER, temperature=2.5, weight=0.6)


@pytest.fixture(autouse=True)
def one_thread(settings_of_torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone.FOLDER.mkdir(parents=True)
    torch.set_num_threads(1)


def logits(seed, rows=7):
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(seed)) * 4


def test_the_loss_of_a_student_has_the_gradient_of_hintons():
    """(1 - w) times cross-entropy plus w T^2 times the divergence from the teachers' answers."""
    labels = torch.tensor([1, 5, 0, 9, 3, 3, 7])
    told = softmax(logits(1).double() / 2.5, 1)

    def hintons(x):
        divergence = kl_div(log_softmax(x / 2.5, 1), told, reduction="batchmean")
        return 0.4 * cross_entropy(x, labels) + 0.6 * 2.5**2 * divergence

    x, exactly = logits(0).requires_grad_(), logits(0).double().requires_grad_()
    teachers.loss(x, labels, told, TAUGHT).backward()
    hintons(exactly).backward()
    assert torch.allclose(x.grad.double(), exactly.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("decay", [0.5, 0.97])
def test_the_average_of_the_weights_is_the_recurrence_of_its_docstring(small, decay, monkeypatch):
    recipe = SGD.model_copy(update={"averaging": decay})
    state = begun(recipe, len(small["train"]))
    seen = [copy.deepcopy(state.network)]
    step = state.optimizer.step

    def noted(rate):
        step(rate)
        seen.append(copy.deepcopy(state.network))

    monkeypatch.setattr(state.optimizer, "step", noted)
    list(training.epochs(state, {"train": small["train"]}, recipe))
    steps = [
        np.concatenate(
            [weight.detach().double().numpy().ravel() for weight in network.parameters()]
        )
        for network in seen
    ]
    expected = steps[0]
    for step, weights in enumerate(steps[1:], start=1):
        kept = min(decay, (step - 1) / (step + 9))
        expected = kept * expected + (1 - kept) * weights
    found = [weight.detach().numpy().ravel() for weight in state.result.parameters()]
    assert len(steps) == 1 + recipe.epochs * -(-len(small["train"]) // 32) > 10
    assert np.allclose(np.concatenate(found), expected, atol=1e-6)
    assert average.FORGET == 9


def test_teachers_that_do_not_count_change_no_bit_of_the_student(small):
    def weights(distillation):
        recipe = Recipe(**dict(ADAMW) | {"dropout": 0.3, "distillation": distillation})
        student = Training("a stage", "mlp", small, recipe, "cpu", numerics.configure(1, 3))
        list(student.epochs())
        student.finish()
        return student.state.weights

    alone_, silent = weights(None), weights(TAUGHT.model_copy(update={"weight": 0.0}))
    assert silent == alone_
    heard = weights(TAUGHT)
    assert heard[0] == alone_[0]
    assert heard[1:] != alone_[1:]


def test_a_teacher_is_the_network_of_its_own_recipe_and_seed(small):
    found = resume.teach("a stage", small["train"], TAUGHT, "cpu", of_student=3)
    seeds = [teachers.seed(3, number) for number in (1, 2)]
    assert len({*seeds, teachers.seed(4, 1)}) == 3
    for teacher, seed in zip(found, seeds, strict=True):
        expected = trained({"train": small["train"]}, ADAMW, "lenet5", seed)
        assert models.fingerprint(teacher) == models.fingerprint(expected.network)
        assert not teacher.training
