"""Needed by every stage: settings, files, the splits, and the setup of PyTorch."""
