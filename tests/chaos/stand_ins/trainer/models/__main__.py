"""Stands in for the preparation of a model."""

import time

time.sleep(0.3)
print("/nowhere")
