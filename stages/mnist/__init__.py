"""MNIST's four files: where they come from, and how they are checked. Only `prepare` needs this."""
