"""What runs inside vLLM's worker processes. Nothing else imports it: vLLM does, by name."""
