"""The registry of the models, and the arithmetic that they are made of.

A model is one file in this folder, and its name here. Tables and figures list the models in this
order. The sentence of the comparison is about the first two.
"""

from importlib import import_module

from stages.networks.model import Model

NAMES = ("lenet5", "mlp")
MODELS: dict[str, Model] = {name: import_module(f"{__name__}.{name}").MODEL for name in NAMES}
