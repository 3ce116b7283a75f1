"""Measures: refusal, over-refusal, divergence, neutral NLL, attribution. A backend in, numbers out."""
