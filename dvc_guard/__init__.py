"""Keeps a DVC repository honest: its locks, the bytes of its results, and where they were computed.

alone.py lets one process at a time run a stage. mend.py repairs what keeps `dvc` from starting,
damage.py finds files that are not those of dvc.lock, verify.py computes a commit anew, and
attest.py writes down that it agreed. None of them needs MLflow.
"""
