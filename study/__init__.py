"""The study: many trainings, and their comparison."""

import stages  # noqa: F401  (sets up the process, before NumPy and PyTorch are imported)
