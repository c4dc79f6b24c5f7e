"""A talker whose widths are measured, or whose rounding is fitted to speech, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .calibration.bench import BATCH
from .calibration.passages import draw, recorded, spoken
from .calibration.run import calibrate
from .calibration.watching import with_bars
from .cli import note
from .convert_options import Texts
from .loading import Higgs, build_model, load_model
from .memory import gigabytes, machine_limit, on_cpu, parse_size
from .sources import has_text_head
from .text import is_blank, read_text
from .types import InputError
from .weights import named_arrays, read_header, read_json, weight_files

if TYPE_CHECKING:
    from .cards import Conversion
    from .quantization import Quantization
    from .train.samples import Sample

OWN_SEEDS = 1 << 20  # from here on: what is evaluated is drawn with small ones
FRAMES, POSITIONS = 75, 100  # of a passage: 3 s of speech, and its text
COPIES = 3  # of the float weights: exact, rounded, and what a gradient of a layer's needs
ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes


def check_room(source: Path, texts: Texts, limit: str | None = None) -> str:
    """What measuring a talker will take, in a line.

    Args:
        limit: as ``parse_size`` reads it; None is the machine's.

    Raises:
        InputError: that is more than there is.
    """
    needed = expected_peak(source, texts)
    allowed = machine_limit() if limit is None else parse_size(limit)
    need = gigabytes(needed, up=True)
    if allowed is not None and needed > allowed:
        raise InputError(
            f"Measuring and calibrating read the float model: about {need}, and there are "
            f"{gigabytes(allowed)}. Take a recipe without (--recipe q6), a machine with more, or "
            "say how much it may take with --memory-limit."
        )
    there = "" if allowed is None else f" of {gigabytes(allowed)}"
    return f"calibration: the float model is read; expected peak {need}{there}"


def expected_peak(source: Path, texts: Texts) -> int:
    """Bytes: the weights' copies, what the float model said, and a gradient's activations."""
    model = build_model(read_json(source / "config.json"), text_head=has_text_head(source))
    args, delay = model.args, model.delay
    weights = sum(array.size for array in named_arrays(model).values())
    row = delay.num_codebooks * (delay.codebook_size + 2)  # logits
    layer = 10 * args.hidden_size + 3 * args.intermediate_size
    position = args.num_hidden_layers * layer + 3 * row
    stored = {info.dtype for path in weight_files(source) for info in read_header(path).values()}
    item = 4 if on_cpu() else max(ITEM.get(dtype, 2) for dtype in stored)  # a CPU takes float32
    known = 4 * texts.count * FRAMES * row
    return item * (COPIES * weights + BATCH * POSITIONS * position) + known


def calibrated_talker(
    source: Path, made: Conversion, codec_folder: Path | None, texts: Texts
) -> tuple[Any, dict[str, Quantization], dict]:
    """The talker as it is to be stored, the widths of its modules, and how they came about.

    Raises:
        InputError: passages that cannot be had, a target that cannot be met.
        GenerationError: the model says nothing to its end.
    """
    recipe = made.recipe
    note(f"calibration: {made.title}: {'; '.join(recipe.words())}")
    model: Any = load_model(source, dtype=made.dtype, text_head=has_text_head(source))
    done = calibrate(
        model,
        recipe.plan,
        passages(Higgs(source, model, codec_folder), texts),
        method=recipe.calibrate,
        target_bpw=recipe.target_bpw,
        widths=recipe.widths,
        seed=texts.seed,
        watch=with_bars,
    )
    note(_result(done.record))
    return model, done.chosen, {"passages_of": _data(texts)} | done.record


def _result(record: Mapping[str, Any]) -> str:
    line = f"calibration: {record['kl']:.3g} nat a code off on held-out passages"
    if record["method"]:
        return f"{line}, {record['kl_plain']:.3g} as MLX rounds"
    if tried := record.get("tried"):
        line += f", as MLX rounds: {tried} made it {record['kl_tried']:.3g} and was left out; give "
        return line + "it more passages"
    return line


def passages(higgs: Higgs, texts: Texts) -> list[Sample]:
    """What to calibrate on.

    Raises:
        InputError: texts or recordings that cannot be used. GenerationError: no speech ended.
    """
    if texts.folder is not None:
        return recorded(higgs, texts.folder, watch=with_bars)[: texts.count]
    seed = OWN_SEEDS + texts.seed
    said = _lines(texts.file) if texts.file else draw(higgs.defaults, texts.count, seed)
    asked = said[: texts.count]
    found = spoken(higgs, asked, seed=seed, watch=with_bars)
    if len(found) < 2:
        raise InputError(
            f"Of {len(asked)} texts, {len(found)} was said to its end: two passages are the least. "
            "Ask for more with --calibration-samples, or give recordings with --calibration-data."
        )
    return found


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).splitlines()]
    said = [line for line in lines if not line.startswith("#") and not is_blank(line)]
    if not said:
        raise InputError(f"There is no text in {path}.")
    return said


def _data(texts: Texts) -> str:
    if texts.folder is not None:
        return f"recordings in {texts.folder.resolve().name}"
    return f"its own speech of {texts.file.name if texts.file else 'drawn texts'}"
