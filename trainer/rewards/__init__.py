"""Graders: from completions to rewards in [0, 1]. `kind: x` of a job's reward is graded by x.py."""
