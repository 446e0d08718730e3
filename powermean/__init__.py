"""powermean: train language models by group-based reinforcement learning on a shared cluster."""

__version__ = "0.1.0"
