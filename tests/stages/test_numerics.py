"""No processor, library kernel or number of threads changes a bit. Other devices are refused."""

import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, crashed, qemu, weekly
from dvc_kit.errors import InputError
from stages.arithmetic import numerics
from stages.arithmetic import threads as pool

# Both models after a few steps on random images, with all that a recipe can name. Printed are the
# resized images, and the weights, history, outputs, probabilities and temperature of each model
TRAIN = """
from dvc_kit.files import sha256
from stages.arithmetic import numerics
from stages.base.params import Augmentation, Distillation, PlainRecipe, Recipe
from stages.base.splits import Split
from stages.learn import training
from stages.mnist import idx
from stages.networks import models
from study import cell
import torch
SGD = Recipe(epochs=1, batch_size=64, learning_rate=0.05, momentum=0.9, dropout=0.5,
             softmax_before_loss=False)
PUBLISHED = SGD.model_copy(update={"dropout": 0.0, "softmax_before_loss": True})
RECORD = Recipe(epochs=1, batch_size=64, optimizer="adamw", learning_rate=0.01, momentum=0.9,
                schedule="one_cycle", weight_decay=0.01, dropout=0.1, softmax_before_loss=False,
                augmentation=Augmentation(
                    rotation=10.0, shift=2.0, scale=0.1, shear=0.1, elastic=1.0))
TEACHER = PlainRecipe(**{key: value for key, value in RECORD if key != "distillation"})
TAUGHT = RECORD.model_copy(update={"averaging": 0.9, "distillation": Distillation(
    teachers=1, recipe=TEACHER, temperature=2.5, weight=0.6)})
generator = numerics.configure(threads=THREADS, seed=1)
raw = torch.randint(0, 256, (150, 28, 28), dtype=torch.uint8)
images = idx.resize(raw.numpy())  # torchvision's `transforms.v2.resize` fails this
assert sha256(models.resize(raw).numpy().tobytes()) == sha256(images.tobytes())
print(sha256(images.tobytes()))
part = Split(images, torch.randint(0, 10, (150,), dtype=torch.uint8).numpy())
for name in ("lenet5", "mlp"):
    for recipe in (SGD, PUBLISHED, TAUGHT):
        network = models.build(name, recipe)
        state = training.begin(network, recipe, training.total_steps(recipe, 150), generator)
        state.teachers = [models.build("lenet5", SGD).eval()]
        list(training.epochs(state, {"train": part, "test": part}, recipe))
        found = models.answers(state.result, part)
        temperature = cell.fitted_temperature(found.probabilities, found.labels)
        scaled = cell.scaled(found.probabilities, temperature)
        print(*state.weights, state.history, found.outputs_sha256, repr(found.loss), temperature)
        print(*(sha256(array.tobytes()) for array in (found.probabilities, scaled)))
"""

# What selects a library's kernels, from outside
KERNELS = (
    {"KERNELS": "off"},  # our own
    {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"},
    {"MKL_CBWR": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"MKL_CBWR": "AVX512", "OPENBLAS_CORETYPE": "Nehalem"},
    {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"},
    {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"},
)
CHOICES = {name for kernels in KERNELS for name in kernels}


def python(code: str, *prefix: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in CHOICES}
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
    assert result.stdout.count("\n") == 13
    return result.stdout


@pytest.mark.slow
def test_no_number_of_threads_or_cores_changes_a_bit():
    expected = fingerprints(threads=1)
    assert fingerprints(threads=3, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1") == expected
    taskset = ("taskset", "--cpu-list", "0")
    assert fingerprints(*taskset, OMP_NUM_THREADS="7", OMP_DYNAMIC="TRUE") == expected


@pytest.mark.slow
def test_no_kernel_of_a_library_changes_a_bit():
    expected = fingerprints()
    for kernels in KERNELS:
        assert fingerprints(**kernels) == expected, kernels


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["Nehalem", *weekly("Haswell")])
def test_every_ingredient_has_the_same_bits_on_another_processor(processor):
    assert fingerprints(*qemu(processor), threads=1) == fingerprints()


def test_configure_sets_threads_and_algorithms_and_seeds_both_generators(settings_of_torch):
    torch.use_deterministic_algorithms(False)
    generator = numerics.configure(threads=3, seed=7)
    assert pool.number() == 3
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    drawn = [torch.rand(4), torch.rand(4, generator=generator)]
    torch.manual_seed(7)
    expected = torch.rand(4)
    assert all(torch.equal(numbers, expected) for numbers in drawn)
    assert not torch.equal(torch.rand(4, generator=numerics.configure(3, 8)), expected)


def test_subnormal_numbers_are_not_flushed_or_that_is_said_in_one_line(
    settings_of_torch, monkeypatch
):
    tiny, flush = torch.tensor([2.0**-126]), torch.set_flush_denormal
    flush(True)
    assert not (tiny * 0.5).any()
    numerics.configure(threads=1, seed=0)
    assert (tiny * 0.5).any()  # it has been switched off
    flush(True)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda _: False)  # where it cannot be
    line = r"^cpu: numbers below 2\^-126 become zero here, so [^\n]*$"
    try:
        with pytest.raises(InputError, match=line):
            numerics.configure(threads=1, seed=0)
    finally:
        flush(False)


def test_no_matrix_product_is_shortened_or_that_is_said_in_one_line(settings_of_torch, monkeypatch):
    numerics.configure(threads=1, seed=0)
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    plain = torch.Tensor.__matmul__

    def shortened(a, b):  # to bfloat16
        return plain(a.bfloat16().float(), b.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", shortened)
    with pytest.raises(InputError, match=r"^cpu: matrix products shorten[^\n]*FPMATH_MODE[^\n]*$"):
        numerics.configure(threads=1, seed=0)
