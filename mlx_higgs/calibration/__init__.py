"""Rounding that is measured: what fewer bits do to what a talker says, and how to lose less."""
