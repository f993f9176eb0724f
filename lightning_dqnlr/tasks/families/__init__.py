"""Distributions over tasks."""
