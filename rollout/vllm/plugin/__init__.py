"""Code that runs inside vLLM's worker processes. Only vLLM imports it, by name."""

GLOO_BACK_END = "powermean_gloo"  # the name of our weight-transfer backend in vLLM
