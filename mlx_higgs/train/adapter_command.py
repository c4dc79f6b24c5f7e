"""``mlx_higgs.train adapter import|export``: PEFT's folders, ms-swift's included, and ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import CheckpointError, InputError

if TYPE_CHECKING:
    from ..adapters import Adapter

LAYOUTS = ("transformers", "boson")
DEFAULT_TYPE = "higgs_audio_v2"  # whose names a PEFT folder holds, unless its base is given


def add_adapter_parser(subparsers: Any) -> None:
    """Add ``adapter`` with its two tools."""
    parser = subparsers.add_parser(
        "adapter", help="adapters from PEFT (ms-swift) and back", allow_abbrev=False
    )
    tools = parser.add_subparsers(dest="adapter_tool", required=True, metavar="TOOL")
    _add_paths(tools.add_parser("import", help="a PEFT folder -> an adapter for --adapter"))
    export = tools.add_parser("export", help="an adapter -> a PEFT folder")
    _add_paths(export)
    export.add_argument(
        "--names",
        choices=LAYOUTS,
        default="transformers",
        help="whose model it is for (default: %(default)s)",
    )


def _add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="the folder to read")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument("--model", help="folder or hub name of the base, to check against")
    parser.add_argument("--force", action="store_true", help="replace the adapter in TARGET")


def run_adapter(arguments: argparse.Namespace) -> None:
    base = None if arguments.model is None else _outline(arguments.model)
    source = arguments.source.expanduser()
    target = arguments.target.expanduser().resolve()
    if arguments.adapter_tool == "import":
        import_peft(source, target, base=base, force=arguments.force)
    else:
        export_peft(source, target, arguments.names, base=base, force=arguments.force)
    print(target)


def _outline(name: str) -> Any:
    """A talker without weights: its names and shapes."""
    from ..loading import build_model
    from ..sources import resolve
    from ..weights import read_json

    return build_model(read_json(resolve(name) / "config.json"), text_head=True)


def import_peft(source: Path, target: Path, *, base: Any = None, force: bool = False) -> None:
    """A PEFT folder -> an adapter folder that mlx-lm reads too, unless it holds whole modules.

    Args:
        base: the talker it is for, whose names it then takes and whose shapes are checked; one
            without weights will do. None takes Higgs v2's names and checks no shapes.

    Raises:
        CheckpointError: what cannot be mapped, or does not fit ``base``.
        InputError: a target that may not be written.
    """
    from .. import peft
    from ..adapters import CONFIG, WEIGHTS
    from ..weights import read_json

    if "peft_type" not in read_json(source / CONFIG, required=False):
        raise CheckpointError(f"{source} is no PEFT folder: it has no {CONFIG} with a peft_type.")
    adapter, tensors = _read(source, base)
    keys = {"keys": peft.lora_keys(tensors)}
    config = adapter.config | {"lora_parameters": adapter.config["lora_parameters"] | keys}
    _write_folder(target, WEIGHTS, tensors, config, force=force)


def export_peft(
    source: Path,
    target: Path,
    names: str = "transformers",
    *,
    base: Any = None,
    force: bool = False,
) -> None:
    """An adapter folder -> a PEFT folder for transformers' or Boson's model.

    Args:
        base: as in `import_peft`.

    Raises:
        InputError: unknown ``names``, what PEFT has no form for, a target that may not be written.
        CheckpointError: an adapter that cannot be read, or does not fit ``base``.
    """
    from .. import peft

    if names not in LAYOUTS:
        raise InputError(f"names is {names!r}: use one of {', '.join(LAYOUTS)}.")
    adapter, tensors = _read(source, base)
    if names == "transformers":
        table = weight_names(base)
        tensors = {peft.theirs(name, table): array for name, array in tensors.items()}
    exported, config = peft.to_peft(tensors, adapter.config, str(source))
    _write_folder(target, peft.WEIGHTS, exported, config, force=force)


def _read(source: Path, base: Any) -> tuple[Adapter, dict]:
    """An adapter, and its tensors under the talker's names; they fit ``base`` if there is one."""
    from .. import peft
    from ..adapters import check_fit, read_adapter

    adapter, names = read_adapter(source), weight_names(base)
    tensors = {peft.ours(name, names): array for name, array in adapter.tensors.items()}
    if base is not None:
        check_fit(adapter, tensors, base)
    return adapter, tensors


def weight_names(model: Any = None) -> list[tuple[str, str]]:
    """How a talker's weights are called elsewhere; Higgs v2's when there is no talker."""
    from ..models import get_model_classes

    return (model or get_model_classes({"model_type": DEFAULT_TYPE})[0]).WEIGHT_NAMES


def _write_folder(target: Path, name: str, tensors: dict, config: dict, *, force: bool) -> None:
    from .. import peft
    from ..adapters import CONFIG, write_tensors
    from ..saving import new_folder, write_json

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not force:
            raise InputError(f"{target} is there already: --force replaces it, or name another.")
        if not (target / CONFIG).is_file():
            raise InputError(f"{target} is not an adapter, so --force does not replace it.")
    with new_folder(target, force=force) as folder:
        write_tensors(folder / name, tensors, "pt" if name == peft.WEIGHTS else "mlx")
        write_json(folder / CONFIG, config)
