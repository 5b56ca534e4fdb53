"""The pipeline: one script per stage, and the folders that the stages share.

This file runs before every other module. It cannot change a result.
"""

import importlib.util
import os
import sys

from dvc_kit import errors  # which also opens streams that are closed (`>&-`)

errors.after_interrupt = "; `dvc repro` resumes here"
sys.excepthook = errors.on_uncaught

# The study depends on the folders below this one. For DVC, a `__pycache__` in them would be code:
# .dvcignore counts inside a DVC project only, and these folders are outside of the study's.
sys.dont_write_bytecode = True

# PyTorch warns of connections between workers. What a lost one leads to is told in one line
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

if importlib.util.find_spec("torch") is None:
    sys.exit(
        f"error: {sys.executable} has no torch: activate the project's environment first "
        "(`. .venv/bin/activate`; `make install` creates it)"
    )
