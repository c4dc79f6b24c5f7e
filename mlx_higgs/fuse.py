"""``python -m mlx_higgs.fuse``: a checkpoint with an adapter added to its weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli import Parser, note, run
from .quantization import stored_quantization

if TYPE_CHECKING:
    import mlx.core as mx

EPILOG = """\
examples:
  python -m mlx_higgs.fuse --adapter adapters --output my-voice
  python -m mlx_higgs.fuse --model higgs-4bit --adapter adapters --output my-voice --dequantize
"""
ORIGIN = """
{origin} fine-tuned: the adapter {adapter} added to its weights with mlx_higgs {version}.

```
python -m mlx_higgs.generate --model PATH --text "Good morning."
```
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mlx_higgs.fuse",
        description="Add an adapter to a checkpoint's weights, in a new folder.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", default="demo", help="folder or hub name of the base (default: the bundled demo)"
    )
    parser.add_argument("--revision", help="commit or branch of a hub model")
    parser.add_argument(
        "--adapter",
        "--adapter-path",
        default="adapters",
        help="folder or hub name, mlx-lm's form or PEFT's (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        "--save-path",
        default="fused_model",
        metavar="FOLDER",
        help="default: %(default)s",
    )
    parser.add_argument("--codec", help="folder or hub name, when not beside the model")
    parser.add_argument(
        "--dequantize", action="store_true", help="make a quantised base floats, which takes room"
    )
    parser.add_argument("--force", action="store_true", help="replace the checkpoint in FOLDER")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser(), _fuse, argv)


def _fuse(arguments: argparse.Namespace) -> None:
    path = fuse(
        arguments.model,
        arguments.adapter,
        arguments.output,
        dequantize=arguments.dequantize,
        codec=arguments.codec,
        revision=arguments.revision,
        force=arguments.force,
    )
    print(path)


def fuse(
    model: str,
    adapter: str | Path,
    output: str | Path,
    *,
    dequantize: bool = False,
    codec: str | Path | None = None,
    revision: str | None = None,
    force: bool = False,
) -> Path:
    """Write a checkpoint that speaks as ``model`` with ``adapter`` does, in ``model``'s dtypes.

    It has the base's tokenizer, codec and generation defaults, and the weight names that go with
    its config: a flat one is transformers', a nested one Boson's. An interrupted run leaves nothing
    behind, and what ``force`` replaces is there until the new checkpoint is whole.

    Args:
        dequantize: make all layers of a quantised base floats.

    Raises:
        InputError: a source or target that cannot be used, a quantised base without ``dequantize``.
        CheckpointError: an adapter of another base.
    """
    from .saving import check_target, new_folder
    from .sources import codec_beside, find_codec, resolve, resolve_adapter

    target = Path(output).expanduser().resolve()
    base, trained = resolve(model, revision), resolve_adapter(adapter)
    codec_folder = find_codec(base, codec) if codec else codec_beside(base)
    check_target(target, [p for p in (base, trained, codec_folder) if p], force=force)
    talker = fused_talker(base, trained, dequantize=dequantize)
    with new_folder(target, force=force) as folder:
        size = _write(talker, base, folder, codec_folder, dequantize=dequantize)
        card = _card(talker, model, trained, target.name)
        (folder / "README.md").write_text(card, encoding="utf-8")
    note(f"{target}: {size:,} bytes of weights")
    return target


def fused_talker(base: Path, adapter: Path, *, dequantize: bool = False) -> Any:
    """A talker with the adapter in its weights, in the dtypes the base has."""
    from mlx.utils import tree_flatten

    from .adapters import apply_adapter, fuse_adapter
    from .loading import load_model
    from .sources import has_text_head

    talker: Any = load_model(base, text_head=has_text_head(base))
    before: dict[str, mx.array] = dict(tree_flatten(talker.parameters()))
    dtypes = {name: array.dtype for name, array in before.items()}
    del before
    apply_adapter(talker, adapter)
    fuse_adapter(talker, dequantize=dequantize)
    if dequantize:
        dequantize_all(talker)
    _cast(talker, dtypes)
    return talker


def dequantize_all(talker: Any) -> None:
    """Floats in place of all quantised layers, one at a time."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten

    from .lora import float_layer, float_weight, is_quantized

    modules = dict(talker.named_modules())
    for path in [path for path, module in modules.items() if is_quantized(module)]:
        module = modules.pop(path)
        layer = float_layer(module, float_weight(module))
        mx.eval(layer.parameters())
        talker.update_modules(tree_unflatten([(path, layer)]))


def _cast(talker: Any, dtypes: dict[str, mx.Dtype]) -> None:
    """Whole weights may have been trained in another width than the checkpoint's."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    arrays: dict[str, mx.array] = dict(tree_flatten(talker.parameters()))
    changed = [
        (name, array.astype(dtypes[name]))
        for name, array in arrays.items()
        if name in dtypes and mx.issubdtype(dtypes[name], mx.floating)
    ]
    talker.load_weights(changed, strict=False)
    mx.eval(talker.parameters())


def _write(
    talker: Any, base: Path, folder: Path, codec_folder: Path | None, *, dequantize: bool
) -> int:
    import shutil

    from .codec.checkpoint import bundled_tensors
    from .peft import theirs
    from .saving import SHARD_LIMIT, copy_files, save_weights, without_measured, write_json
    from .weights import read_json

    config = read_json(base / "config.json")
    if dequantize and stored_quantization(config):
        config = {k: v for k, v in config.items() if not k.startswith("quantization")}
    config = without_measured(config, floats=dequantize)
    names = talker.names_in(config)
    bundled = codec_folder == base
    if codec_folder and not bundled:
        shutil.copytree(codec_folder, folder / "codec")
    elif not codec_folder:
        note(f"{base.name} has no codec beside it: --codec names one")
    copy_files(base, folder)
    write_json(folder / "config.json", config)
    beside = bundled_tensors(base) if bundled else {}
    return save_weights(talker, folder, SHARD_LIMIT, lambda name: theirs(name, names), beside)


def _card(talker: Any, model: str, adapter: Path, name: str) -> str:
    from . import __version__
    from .cards import FRONT, LICENCE, Conversion

    made = Conversion(model)
    return (FRONT + ORIGIN + LICENCE).format(
        base_model=f"base_model: {made.repo}\n" if made.repo else "",
        name=name,
        origin=made.title,
        adapter=adapter.resolve().name,
        version=__version__,
        original=talker.ORIGIN,
    )


if __name__ == "__main__":
    raise SystemExit(main())
