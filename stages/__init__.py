"""The pipeline and the study: one script a stage, and one module a concept."""

import importlib.util
import sys

from stages import numerics
from stages.errors import InputError, on_uncaught

sys.excepthook = on_uncaught

if importlib.util.find_spec("torch") is None:
    sys.exit(
        f"error: {sys.executable} has no torch: activate the project's environment first "
        "(`. .venv/bin/activate`; `make install` creates it)"
    )

# Here and not in each script: the pins hold only if they are set before torch and numpy are
# imported, and no module of this package can be imported before this line has run.
try:
    numerics.pin()
except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
