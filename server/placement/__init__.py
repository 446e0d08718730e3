"""Which jobs start where, which give way, and why the others wait: pure functions of a cluster's state."""
