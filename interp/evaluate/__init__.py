"""Measures: refusal, over-refusal, divergence, neutral NLL, attribution. An LM in, numbers out."""
