"""What runs inside vLLM's worker processes. vLLM imports its modules, by name, and nothing else does."""

GLOO_BACK_END = "powermean_gloo"  # the name of our weight-transfer back end in vLLM
