"""Sums that are never rounded, and everything else that the networks compute with."""
