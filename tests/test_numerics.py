"""The pins hold whichever way a stage is started, and what breaks them is said in one line."""

import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, crashed, qemu
from stages import numerics
from stages.errors import InputError

# Fingerprints of both models after a few steps on random images, with all that a recipe can name
TRAIN = """
from stages import models, numerics
from stages.params import Augmentation, Recipe
from stages.mnist import Split
from stages import training
import torch
recipe = Recipe(epochs=1, batch_size=64, learning_rate=0.05, momentum=0.9, dropout=0.5,
                softmax_before_loss=False)
RECORD = Recipe(epochs=1, batch_size=64, optimizer="adamw", learning_rate=0.01, momentum=0.9,
                schedule="one_cycle", weight_decay=0.01, dropout=0.1, softmax_before_loss=False,
                augmentation=Augmentation(
                    rotation=10.0, shift=2.0, scale=0.1, shear=0.1, elastic=1.0))
generator = numerics.configure(threads=THREADS, seed=1)
images = torch.randint(0, 256, (256, 32, 32), dtype=torch.uint8).numpy()
part = Split(images, torch.randint(0, 10, (256,), dtype=torch.uint8).numpy())
for name in ("lenet5", "mlp"):
    network = models.build(name, recipe)
    for how in (recipe, RECORD):
        state = training.begin(network, how, training.total_steps(how, 256), generator)
        training.train(state, {"train": part}, how, id)
        print(models.fingerprint(network))
"""


def python(code: str, *prefix: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in numerics.PINS}
    command = [*prefix, sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=clean | env, capture_output=True, text=True, encoding="utf-8"
    )


def fingerprints(*prefix: str, threads: int = 2, **env: str) -> str:
    for _ in range(3):
        result = python(TRAIN.replace("THREADS", str(threads)), *prefix, **env)
        if not crashed(result.stderr):
            break
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_pins_are_in_force_before_torch_is_imported():
    result = python("import stages, torch; print(torch.backends.cpu.get_cpu_capability())")
    assert result.stdout == "AVX2\n"
    assert result.stderr == ""


def test_threads_that_wait_for_others_soon_sleep_however_a_stage_is_started():
    for env in ({}, {"UNPINNED": "1"}):
        said = python("import stages.training", OMP_DISPLAY_ENV="VERBOSE", **env)  # libgomp's words
        assert f"GOMP_SPINCOUNT = '{numerics.SPINS}'" in said.stderr
    said = python("import stages.training", OMP_DISPLAY_ENV="VERBOSE", GOMP_SPINCOUNT="7")
    assert "GOMP_SPINCOUNT = '7'" in said.stderr


def test_cores_and_thread_variables_of_the_machine_do_not_change_the_bits():
    expected = fingerprints()
    assert fingerprints(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_DYNAMIC="TRUE") == expected
    assert fingerprints("taskset", "--cpu-list", "0", OMP_NUM_THREADS="7") == expected
    # The thread count of the recipe does, and this test would see it
    assert fingerprints(threads=1) != expected


def test_a_conflicting_pin_is_overridden_and_named():
    result = python(TRAIN.replace("THREADS", "2"), MKL_CBWR="AVX512")
    assert result.stdout == fingerprints()
    assert result.stderr == (
        "warning: MKL_CBWR=AVX512 in the environment is overridden with COMPATIBLE, which the "
        "committed results were computed with\n"
    )


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_a_library_imported_too_early_is_named_in_one_line(library):
    result = python(f"import {library}, stages")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {library}")
    assert "UNPINNED=1" in result.stderr
    assert result.stderr.count("\n") == 1
    assert python(f"import {library}, stages", UNPINNED="1").returncode == 0


@pytest.mark.parametrize(
    ("value", "pinned"), [(None, True), ("", True), ("0", True), ("1", False), ("yes", False)]
)
def test_only_unpinned_takes_the_pins_away(value, pinned, monkeypatch):
    monkeypatch.delenv("UNPINNED", raising=False)
    if value is not None:
        monkeypatch.setenv("UNPINNED", value)
    assert numerics.is_pinned() is pinned


def test_pins_that_came_too_late_are_all_named_and_not_set(monkeypatch):
    monkeypatch.delenv("UNPINNED", raising=False)
    numerics.pin()  # they are set: this changes and says nothing
    monkeypatch.setenv("MKL_CBWR", "AVX512")
    monkeypatch.delenv("OMP_DYNAMIC")
    with pytest.raises(InputError, match=r"^torch and numpy was.* before MKL_CBWR, OMP_DYNAMIC c"):
        numerics.pin()
    assert os.environ["MKL_CBWR"] == "AVX512"
    monkeypatch.setenv("UNPINNED", "1")
    numerics.pin()
    assert os.environ["MKL_CBWR"] == "AVX512"


@pytest.fixture
def settings_of_torch():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def test_one_thread_is_for_the_body_alone_also_where_it_fails(settings_of_torch):
    torch.set_num_threads(3)
    with numerics.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), numerics.one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_configure_sets_threads_and_algorithms_and_seeds_both_generators(settings_of_torch):
    torch.use_deterministic_algorithms(False)
    generator = numerics.configure(threads=3, seed=7)
    assert torch.get_num_threads() == 3
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    drawn = [torch.rand(4), torch.rand(4, generator=generator)]
    torch.manual_seed(7)
    expected = torch.rand(4)
    assert all(torch.equal(found, expected) for found in drawn)
    torch.rand(1)
    assert generator.get_state().equal(numerics.configure(3, 7).get_state()) is False
    assert not torch.equal(torch.rand(4, generator=numerics.configure(3, 8)), expected)


@pytest.mark.slow
def test_every_ingredient_of_a_recipe_computes_the_same_bits_on_another_processor():
    assert fingerprints(*qemu("Haswell")) == fingerprints()


@pytest.mark.slow
def test_a_processor_without_avx2_is_refused_in_one_line_that_says_how_to_go_on():
    old = qemu("SandyBridge")
    result = python("import stages.train", *old)
    lines = [line for line in result.stderr.splitlines() if "TCG doesn't support" not in line]
    assert result.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: this processor lacks AVX2")
    assert "UNPINNED=1" in lines[0]
    assert python("import stages.train", *old, UNPINNED="1").returncode == 0
