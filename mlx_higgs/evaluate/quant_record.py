"""Figures that go into a candidate's ``config.json``, where whoever loads it finds them."""

from __future__ import annotations

import json
import os
import secrets
from datetime import date
from pathlib import Path
from typing import Any

from .. import __version__
from ..disk import sync
from ..doubts import BLOCK, MEASURED
from ..types import InputError
from ..weights import read_json
from .quant_models import Entry
from .quant_report import Column, QuantReport


def check_record(candidates: list[Entry]) -> None:
    """Raises InputError for a candidate that no figures can be written into."""
    for entry in candidates:
        if not entry.local:
            raise InputError(
                f"--record writes into folders, and {entry.name} is none: convert it into one "
                "(python -m mlx_higgs.convert), or leave --record out."
            )
        if not os.access(entry.folder, os.W_OK):
            raise InputError(f"The folder {entry.folder} cannot be written to: leave --record out.")


def record(report: QuantReport, entries: list[Entry]) -> None:
    """Write each candidate's figures into its own config."""
    folders = {entry.name: entry.folder for entry in entries}
    for column in report.candidates:
        write(folders[column.name], measured(report, column))


def measured(report: QuantReport, column: Column) -> dict[str, Any]:
    """The figures that a warning at load needs; those that were not measured are left out."""
    spoken = column.spoken
    figures = {
        "kl_mean": column.kl,
        "end_of_speech": spoken and spoken.ended,
        "wer_change_points": spoken and spoken.change and spoken.change.points,
        "f0_drift_semitones": spoken and spoken.f0_drift_semitones,
        "reference": report.reference.label,
        "texts": report.texts,
        "seeds": report.seeds,
        "date": date.today().isoformat(),
        "version": __version__,
    }
    return {name: value for name, value in figures.items() if value is not None}


def write(folder: Path, figures: dict[str, Any]) -> None:
    """Put figures into ``config.json``, which is whole at every moment.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = folder / "config.json"
    config = read_json(path)
    ours = config.get(BLOCK)
    config[BLOCK] = (ours if isinstance(ours, dict) else {}) | {MEASURED: figures}
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        sync(partial)
        partial.chmod(path.stat().st_mode)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
