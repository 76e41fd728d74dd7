"""Explains any vision transformer. Knows tensors only: no files, no prompts in words, no model zoo."""
