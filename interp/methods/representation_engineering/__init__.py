"""Representation engineering (survey, arXiv 2502.17601): find directions, choose them causally, edit.

The survey's equations could not be read; what is built here follows the papers that it collects, each
named where it is used. See ``papers/representation_engineering.md``.
"""
