"""Unforeseen failures, for the log."""

from __future__ import annotations

import traceback


def described(error: BaseException, in_full: bool) -> str:
    """Where it happened; what it says may hold somebody's words."""
    if in_full:
        return "".join(traceback.format_exception(error))
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return f"{type(error).__name__} (--log-text shows its message) at " + " < ".join(places[::-1])
