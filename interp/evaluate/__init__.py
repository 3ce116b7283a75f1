"""Measures of a model and its edits: scores of responses, divergence, neutral NLL, geometry."""
