"""Compiled kernels give the bits of the plain reference, on any processor, or are left out."""

import functools
import json
import re
import subprocess
import sys
import time

import llvmlite.binding as llvm
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from conftest import ROOT
from stages.arithmetic import grids, kernels, reference, threads
from stages.arithmetic.kernels import compiler, convolution, emitter, layers, pixels, probabilities
from stages.learn import augmentation
from study import settings as bits

PLAIN = settings(deadline=None, derandomize=True, database=None, phases=[Phase.generate])


@pytest.fixture(autouse=True)
def one_thread(settings_of_torch):
    threads.use(1)


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def multiples(*shape, most, step):
    return torch.randint(-most, most + 1, shape) * step


@PLAIN
@given(
    count=st.integers(1, 70),
    shape=st.sampled_from([(1, 6, 32, 4), (6, 16, 14, 2), (3, 5, 12, 1), (1, 1, 6, 2)]),
    spread=st.integers(0, 20),
    number=st.integers(1, 3),
)
def test_convolutions(count, shape, spread, number):
    threads.use(number)
    channels, outputs, size, groups = shape
    torch.manual_seed(count)
    if channels == 1:
        x, step, most = torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8), 1.0, 9
    else:
        x, step, most = 2 * torch.rand(count, channels, size, size) - 1, 2.0**-8, 20
    weight = multiples(outputs, channels, 5, 5, most=most, step=2.0**-9)
    bias = multiples(outputs, most=99, step=2.0**-12)
    ours, theirs = (code.convolve(x, weight, bias, step, 33) for code in (kernels, reference))
    assert torch.equal(ours[1], theirs[1])
    gradient = torch.randn_like(ours[1]) * 2.0 ** -torch.randint(0, spread + 1, (count, 1, 1, 1))
    more = gradient, weight, channels > 1, 64, groups, 2.0**-30
    assert_same(kernels.convolve_back(ours[0], *more), reference.convolve_back(theirs[0], *more))


def test_threads_that_take_turns_whenever_they_get_memory(monkeypatch):
    plain = torch.Tensor.new_zeros

    def slow(*of, **kinds):
        time.sleep(0.005)
        return plain(*of, **kinds)

    x, weight = torch.randint(0, 256, (512, 1, 32, 32), dtype=torch.uint8), torch.ones(6, 1, 5, 5)
    kept, pooled = kernels.convolve(x, weight / 2**9, torch.zeros(6), 1.0, 33)
    more = torch.randn_like(pooled), weight, False, 64, 4, 2.0**-30
    expected = kernels.convolve_back(kept, *more)
    threads.use(3)
    monkeypatch.setattr(torch.Tensor, "new_zeros", slow)
    for _ in range(5):
        assert_same(kernels.convolve_back(kept, *more), expected)


@PLAIN
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 90), st.integers(1, 30)),
    kind=st.sampled_from(["pixels", "own grids", "one grid"]),
    turned=st.booleans(),
    number=st.integers(1, 3),
)
def test_fully_connected_layers(shape, kind, turned, number):
    threads.use(number)
    count, inputs, outputs = shape
    torch.manual_seed(count)
    if kind == "pixels":  # most of them black
        x = torch.randint(0, 256, (count, inputs)) * (torch.rand(count, inputs) < 0.1)
        x = x.to(torch.uint8)
    else:
        x = torch.randn(count, inputs) * 2.0 ** torch.randint(-9, 9, (count, 1))
    step = None if kind == "own grids" else 2.0**-9
    weight = multiples(outputs, inputs, most=2**19, step=2.0**-20).double()
    weight = weight.T.contiguous().T if turned else weight
    more = step, weight, torch.randn(outputs).double(), 33
    assert torch.equal(kernels.linear(x, *more), reference.linear(x, *more))
    gradient = multiples(count, outputs, most=2**19, step=2.0**-25).double()
    more = step or 2.0**-9, gradient, 33
    assert_same(kernels.linear_back(x, *more), reference.linear_back(x, *more))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.1, 5, 1000])
def test_softmax_also_of_numbers_that_are_not_finite(dtype, scale):
    x = scale * torch.randn(75, 10, dtype=dtype)
    assert_same(kernels.softmax(x), reference.softmax(x))
    for row, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        x[row, row], x[row + 3, 9] = value, value
    for ours, theirs in zip(kernels.softmax(x), reference.softmax(x), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))


@pytest.mark.parametrize("pixels", [0.0, 1.0, 20.0])
def test_distortions_also_across_the_border(pixels):
    images = torch.randint(0, 256, (9, 1, 32, 32), dtype=torch.uint8)
    moves = grids.on_grid(pixels * torch.randn(9, 2, 12, 12).double(), 2.0**-20)
    of = images, moves, augmentation._spline_weights()
    assert torch.equal(kernels.warp(*of), reference.warp(*of))


@pytest.mark.parametrize("elastic", [0.0, 1.2, 60.0])
def test_displacements_also_beyond_their_bounds(elastic):
    affine = 8 * torch.rand(9, 6).double() - 4
    drawn = torch.rand(4, 9, 2, 144)
    line = ((augmentation.POINTS + 0.5) * augmentation.SPACING - 16).double()
    of = affine, drawn, line, elastic
    assert torch.equal(kernels.displacements(*of), reference.displacements(*of))


# The code that LLVM makes

FUSED = re.compile(r"\bv?fn?m(?:add|sub|la|ls)\w*|\bfml[as]\b", re.IGNORECASE)
PROCESSORS = [
    ("x86_64", "haswell", True),
    ("aarch64", "neoverse-n1", True),
    pytest.param("x86_64", "nehalem", False, marks=pytest.mark.slow),
    pytest.param("x86_64", "znver3", True, marks=pytest.mark.slow),
    pytest.param("x86_64", "skylake-avx512", True, marks=pytest.mark.slow),
    pytest.param("aarch64", "apple-m1", True, marks=pytest.mark.slow),
]


@functools.cache
def sources():
    """What each kernel of both models is made of: its emit and the types of its arguments."""
    made = []
    shapes = convolution.Shape(1, 6, 32), convolution.Shape(6, 16, 14)
    with pytest.MonkeyPatch.context() as patch:
        for house in (convolution, layers, pixels, probabilities):
            patch.setattr(house, "compiled", lambda emit, *kinds: made.append((emit, kinds)))
        pixel, number = emitter.BYTES, emitter.FLOATS
        for function, *arguments in (
            (convolution.compiled_convolve, shapes[0], pixel, 1.0, 33),
            (convolution.compiled_convolve, shapes[1], number, 2.0**-8, 0),
            (convolution.compiled_convolve_back, shapes[0], 385, 4, False),
            (convolution.compiled_convolve_back, shapes[1], 512, 2, True),
            (layers.compiled_linear, pixel, 1024, 60, (1024, 1), False),
            (layers.compiled_linear, number, 60, 10, (60, 1), True),
            (layers.compiled_linear_back, pixel, 1024, 60),
            (layers.compiled_linear_back, number, 400, 120),
            (probabilities.compiled_softmax, number, 10),
            (pixels.compiled_warp, 32, 12),
            (pixels.compiled_displacements, tuple(augmentation.POINTS.double().tolist())),
        ):
            function.__wrapped__(*arguments)
    return made


def assembly(machine):
    """The code of all kernels."""
    return [
        machine.emit_assembly(compiler.optimized(compiler.module("f", kinds, emit), machine))
        for emit, kinds in sources()
    ]


@pytest.mark.parametrize(("family", "processor", "fuses"), PROCESSORS)
def test_only_a_sum_that_is_never_rounded_is_fused(family, processor, fuses, monkeypatch):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = llvm.Target.from_triple(f"{family}-unknown-linux-gnu")
    machine = triple.create_target_machine(cpu=processor, opt=2)
    assert any(FUSED.search(code) for code in assembly(machine)) == fuses

    def add_product(code, variable, a, b):  # as the kernels' own, but for its licence to fuse
        product = code.builder.fmul(a.value, b.value)
        total = code.builder.fadd(code.builder.load(variable), product)
        code.builder.store(total, variable)

    monkeypatch.setattr(emitter.Code, "add_product", add_product)
    assert [FUSED.findall(code) for code in assembly(machine)] == [[]] * len(sources())


# Left out

SCRIPT = """
import sys
{before}
import torch
from stages.arithmetic import choice, numerics, reference
numerics.configure(threads=2, seed=0)
from study.ingredients import layers, sha256
print(sha256(layers("mlp")), choice.of(torch.zeros(1)) is reference)
"""
WRONG = """
from stages.arithmetic import kernels
true = kernels.linear
kernels.linear = lambda *of: true(*of) + 2.0**-20
"""


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("sys.modules['llvmlite'] = None", "import of llvmlite halted; None in sys.modules"),
        (WRONG, "training of MLP: their results are not those of the reference"),
        ("import os; os.environ['KERNELS'] = 'off'", None),
    ],
    ids=["no llvmlite", "other results", "off"],
)
def test_kernels_that_cannot_be_used_are_left_out_with_one_line(before, reason):
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    left_out = f"note: compiled kernels are left out ({reason}): the results are the same, but a "
    lines = said.stderr.splitlines()
    assert lines == ([left_out + "training takes several times as long"] if reason else [])
    committed = json.loads((ROOT / bits.BITS).read_text(encoding="utf-8"))["ingredients"]["mlp"]
    assert said.stdout.split() == [committed, str(bool(before))]
