"""The two networks, and the arithmetic that they are made of."""
