"""Rival methods and the scores that compare them."""
