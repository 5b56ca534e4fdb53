"""Functions for this processor, compiled by LLVM through llvmlite."""

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from stages.arithmetic.kernels.emitter import C_TYPES, INT, Code, Value


@functools.cache
def target() -> Any:
    """The processor that runs this, for LLVM. Its widest registers are used."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    if "+avx512f" in features.split(","):
        features += ",-prefer-256-bit"
    triple = llvm.Target.from_default_triple()
    return triple.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=2)


def module(name: str, kinds: Sequence[ir.Type], emit: Callable[..., None]) -> ir.Module:
    """A function of ``kinds`` and three whole numbers: how many rows, the first block, the last.

    ``emit(code, block, last row, *arguments)`` writes what is done for a block of LANES rows.
    """
    made = ir.Module()
    function = ir.Function(made, ir.FunctionType(ir.VoidType(), [*kinds, INT, INT, INT]), name)
    for argument in function.args:
        if isinstance(argument.type, ir.PointerType):
            argument.add_attribute("noalias")
    entry, start = function.append_basic_block(), function.append_basic_block()
    builder = ir.IRBuilder(entry)
    builder.branch(start)
    builder.position_at_end(start)
    code = Code(builder)
    *given, count, first, last = function.args
    with code.loop(Value(code, first), Value(code, last)) as block:
        emit(code, block, Value(code, count) - 1, *given)
    builder.ret_void()
    return made


def optimized(made: ir.Module, machine: Any) -> llvm.ModuleRef:
    made.triple, made.data_layout = machine.triple, str(machine.target_data)
    parsed = llvm.parse_assembly(str(made))
    # The lanes are filled already. Higher levels take twice as long, and the code is not faster
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    return parsed


_numbers = itertools.count()


@functools.cache
def _engine() -> Any:
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), target())


def compiled(emit: Callable[..., None], *kinds: ir.Type) -> Callable[..., None]:
    """What :func:`module` describes, as a function. It runs without Python's lock."""
    name, engine = f"kernel_{next(_numbers)}", _engine()
    engine.add_module(optimized(module(name, kinds, emit), target()))
    engine.finalize_object()
    arguments = [C_TYPES.get(kind, ctypes.c_void_p) for kind in (*kinds, INT, INT, INT)]
    function: Callable[..., None] = ctypes.CFUNCTYPE(None, *arguments)(
        engine.get_function_address(name)
    )
    return function
