"""``python -m mlx_higgs.convert``: a checkpoint, quantised or in another dtype, in a new folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli import Parser, note, run
from .quantization import DTYPES, MODES, Plan, Quantization, quantizable, stored_quantization
from .types import HiggsError, InputError

if TYPE_CHECKING:
    from .delay import DelayPattern
    from .saving import Recipe, Result

DEFAULT_PATH = "mlx_model"
EPILOG = """\
examples:
  python -m mlx_higgs.convert --q-bits 8
  python -m mlx_higgs.convert --hf-path bosonai/higgs-tts-2-3b-base --q-bits 6 \\
      --mlx-path higgs-6bit
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="mlx_higgs.convert",
        description="Quantise a Higgs Audio checkpoint, or change its dtype.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--hf-path",
        "--model",
        default="demo",
        metavar="SOURCE",
        help="folder or hub name (default: the bundled demo)",
    )
    parser.add_argument("--revision", help="commit or branch of a hub source")
    parser.add_argument("--codec", help="folder or hub name, when not beside the source")
    parser.add_argument(
        "--mlx-path", default=DEFAULT_PATH, metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--force", action="store_true", help="replace the checkpoint in FOLDER")
    _add_quantization(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="of what is not quantised")
    parser.add_argument("--upload-repo", metavar="OWNER/NAME", help="also put it on the hub")
    return parser


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantisation (any of these asks for it)")
    group.add_argument("-q", "--quantize", action="store_true", help="with the mode's defaults")
    group.add_argument(
        "--q-bits",
        metavar="BITS",
        help="of all, or of what speaks and of what only reads the prompt's text, as 8/4 "
        "(default: the mode's, 8 in affine)",
    )
    group.add_argument(
        "--q-group-size", type=int, metavar="N", help="default: the mode's, 64 in affine"
    )
    group.add_argument("--q-mode", choices=tuple(MODES), help="default: affine")


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser(), _convert, argv)


def _convert(arguments: argparse.Namespace) -> None:
    path = convert(
        arguments.hf_path,
        arguments.mlx_path,
        quantize=asked_quantization(arguments),
        dtype=arguments.dtype,
        codec=arguments.codec,
        revision=arguments.revision,
        force=arguments.force,
        upload_repo=arguments.upload_repo,
    )
    print(path)


def asked_quantization(arguments: argparse.Namespace) -> Quantization | Plan | None:
    """What the options ask for: any of them is enough."""
    asked = (arguments.q_bits, arguments.q_group_size, arguments.q_mode)
    if not arguments.quantize and asked == (None, None, None):
        return None
    how = Plan.parse(arguments.q_bits, arguments.q_group_size, arguments.q_mode or "affine")
    return how.audio if how.audio == how.text else how


def convert(
    hf_path: str = "demo",
    mlx_path: str | Path = DEFAULT_PATH,
    *,
    quantize: Quantization | Plan | None = None,
    dtype: str | None = None,
    codec: str | Path | None = None,
    revision: str | None = None,
    force: bool = False,
    upload_repo: str | None = None,
) -> Path:
    """Write a checkpoint that `mlx_higgs.loading.load` and mlx-lm's loader read.

    The memory it takes is that of the result. An interrupted run leaves nothing behind, and what
    ``force`` replaces is there until the new checkpoint is whole.

    Args:
        hf_path: a folder, a hub repository, or ``demo``.
        codec: where the codec is when not beside the source.
        upload_repo: ``owner/name`` to upload the folder to.

    Raises:
        InputError: a source or target that cannot be used, a quantised source.
        HiggsError: the upload failed; the folder is complete.
    """
    from .loading import HUB_NAME, codec_beside, find_codec, resolve
    from .saving import Recipe, check_target, model_card, new_folder
    from .weights import read_json

    if upload_repo and not HUB_NAME.fullmatch(upload_repo):
        raise InputError(f"{upload_repo!r} is not a hub name like owner/name.")
    target = Path(mlx_path).expanduser().resolve()
    source = resolve(hf_path, revision)
    codec_folder = find_codec(source, codec) if codec else codec_beside(source)
    check_target(target, [p for p in (source, codec_folder) if p], force=force)
    if stored_quantization(read_json(source / "config.json")):
        raise InputError(f"{hf_path} is quantised already: start from the original weights.")
    recipe = Recipe(str(hf_path), revision or _commit(source), quantize, dtype)
    with new_folder(target, force=force) as folder:
        result = write_checkpoint(source, folder, recipe, codec_folder)
        name = upload_repo or target.name
        (folder / "README.md").write_text(model_card(name, recipe, result), encoding="utf-8")
    note(f"{target}: {result.size:,} bytes of weights, {result.bits:.2f} bits per parameter")
    if upload_repo:
        upload(target, upload_repo)
    return target


def _commit(folder: Path) -> str | None:
    """The commit a folder of the hub's cache holds."""
    return folder.name if folder.parent.name == "snapshots" else None


def write_checkpoint(
    source: Path, folder: Path, recipe: Recipe, codec_folder: Path | None
) -> Result:
    """Fill ``folder``: codec, weights, config and what lies beside them."""
    from .loading import build_model, has_text_head
    from .saving import TOKENIZER, Result, converted_config, copy_files, write_json
    from .weights import read_json

    config = read_json(source / "config.json")
    bundled = codec_folder == source
    if codec_folder and not bundled:
        write_codec(codec_folder, folder / "codec", build_model(config).delay)
    elif not codec_folder:
        note(f"{recipe.title} has no codec beside it: --codec names one")
    copy_files(source, folder)
    if not (tokenizer := (folder / TOKENIZER).is_file()):
        note(f"{recipe.title} has no {TOKENIZER} beside it: generate with --tokenizer")
    model = build_model(config, text_head=has_text_head(source))
    if doubt := recipe.plan.doubt(model.LEAST_BITS):
        note(doubt)
    block = recipe.plan.config(quantizable(model, recipe.plan))
    write_json(folder / "config.json", converted_config(config, block, recipe.dtype))
    size, kept, dtype = write_talker(source, folder, recipe, bundled=bundled)
    codec = "among the weights, as it was" if bundled else "float32, in `codec/`"
    codec = codec if codec_folder else "not included"
    return Result(count(source), size, kept, dtype, codec, tokenizer, model.ORIGIN)


def write_codec(source: Path, folder: Path, delay: DelayPattern) -> None:
    """A float32 copy of the codec; quantising it would be audible and save little."""
    from .loading import check_codec, load_codec
    from .saving import disk_errors

    note(f"codec: {source.name} in float32")
    codec = load_codec(source)
    check_codec(codec, delay)
    with disk_errors(folder):
        codec.save(folder)


def write_talker(
    source: Path, folder: Path, recipe: Recipe, *, bundled: bool = False
) -> tuple[int, list[str], str]:
    """Write the weights; their bytes, the modules left as they were, and the dtype of those.

    Args:
        bundled: copy the codec that lies among the source's tensors.
    """
    from .codec.checkpoint import bundled_tensors
    from .loading import has_text_head, load_model
    from .saving import save_weights

    note(f"weights: reading {recipe.title}, quantised: {recipe.describe()}")
    model: Any = load_model(  # a SpeechModel and an nn.Module
        source, quantize=recipe.quantize, dtype=recipe.dtype, text_head=has_text_head(source)
    )
    kept = {path: m.weight for path, m in model.named_modules() if hasattr(m, "to_quantized")}
    dtypes = {str(weight.dtype).removeprefix("mlx.core.") for weight in kept.values()}
    note("weights: writing")
    beside = bundled_tensors(source) if bundled else {}
    return save_weights(model, folder, beside=beside), sorted(kept), " and ".join(sorted(dtypes))


def count(folder: Path) -> int:
    """Parameters in a checkpoint, from its headers."""
    from math import prod

    from .weights import read_header, weight_files

    headers = [read_header(path) for path in weight_files(folder)]
    return sum(prod(info.shape) for header in headers for info in header.values())


def upload(folder: Path, repo: str) -> None:
    """Put a folder on the hub as a model repository.

    Raises:
        HiggsError: it could not be done; the folder stays.
    """
    from huggingface_hub import HfApi

    from .loading import first_line

    note(f"uploading to {repo}")
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repo)
    except Exception as error:  # its errors share no base class short of this
        raise HiggsError(
            f"{folder} is complete, but its upload to {repo} failed ({first_line(error)})."
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
