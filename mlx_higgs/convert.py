"""``python -m mlx_higgs.convert``: a checkpoint, quantised or in another dtype, in a new folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli import Parser, note, run
from .convert_options import (
    EPILOG,
    Texts,
    add_calibration,
    add_quantization,
    asked_recipe,
    asked_texts,
    recipe_table,
)
from .quantization import Plan, Quantization, quantizable, stored_quantization
from .recipes import Recipe, of
from .types import HiggsError, InputError

if TYPE_CHECKING:
    from .cards import Conversion, Result

DEFAULT_PATH = "mlx_model"


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
    parser.add_argument("--upload-repo", metavar="OWNER/NAME", help="also put it on the hub")
    add_quantization(parser)
    add_calibration(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser(), _convert, argv)


def _convert(arguments: argparse.Namespace) -> None:
    if arguments.list_recipes:
        print(recipe_table(arguments))
        return
    recipe = asked_recipe(arguments)
    path = convert(
        arguments.hf_path,
        arguments.mlx_path,
        quantize=recipe,
        texts=asked_texts(arguments, recipe),
        dtype=arguments.dtype,
        codec=arguments.codec,
        revision=arguments.revision,
        force=arguments.force,
        upload_repo=arguments.upload_repo,
        memory_limit=arguments.memory_limit,
    )
    print(path)


def convert(
    hf_path: str = "demo",
    mlx_path: str | Path = DEFAULT_PATH,
    *,
    quantize: str | Recipe | Plan | Quantization | None = None,
    texts: Texts | None = None,
    dtype: str | None = None,
    codec: str | Path | None = None,
    revision: str | None = None,
    force: bool = False,
    upload_repo: str | None = None,
    memory_limit: str | None = None,
) -> Path:
    """Write a checkpoint that `mlx_higgs.loading.load` and mlx-lm's loader read.

    The memory it takes is that of the result; a recipe that is measured or calibrated needs the
    float model beside it. An interrupted run leaves nothing behind, and what ``force`` replaces is
    there until the new checkpoint is whole.

    Args:
        hf_path: a folder, a hub repository, or ``demo``.
        quantize: a recipe or its name, bits as ``8/4``, or a plan.
        texts: what a recipe is measured and calibrated on.
        codec: where the codec is when not beside the source.
        upload_repo: ``owner/name`` to upload the folder to.
        memory_limit: what measuring may take, as ``8GB``; None is the machine's.

    Raises:
        InputError: a source or target that cannot be used, a quantised source, a recipe that does
            not fit it, too little memory to calibrate.
        HiggsError: the upload failed; the folder is complete.
    """
    from .cards import Conversion, model_card
    from .saving import check_target, new_folder
    from .sources import HUB_NAME, codec_beside, find_codec, resolve

    if upload_repo and not HUB_NAME.fullmatch(upload_repo):
        raise InputError(f"{upload_repo!r} is not a hub name like owner/name.")
    recipe, texts = of(quantize), texts or Texts()
    target = Path(mlx_path).expanduser().resolve()
    source = resolve(hf_path, revision)
    codec_folder = find_codec(source, codec) if codec else codec_beside(source)
    check_target(target, [p for p in (source, codec_folder) if p], force=force)
    check_source(source, str(hf_path), recipe, texts, memory_limit)
    made = Conversion(
        str(hf_path),
        revision or _commit(source),
        recipe,
        dtype,
        texts.options() if recipe.measured else (),
    )
    with new_folder(target, force=force) as folder:
        result = write_checkpoint(source, folder, made, codec_folder, texts)
        name = upload_repo or target.name
        (folder / "README.md").write_text(model_card(name, made, result), encoding="utf-8")
    note(f"{target}: {result.size:,} bytes of weights, {result.bits:.2f} bits per parameter")
    if upload_repo:
        upload(target, upload_repo)
    return target


def check_source(
    source: Path, name: str, recipe: Recipe, texts: Texts, memory_limit: str | None
) -> None:
    """Whether the recipe can be made of it, before any work is done; says what is known of that.

    Raises:
        InputError: as `convert`. CheckpointError: the source is no talker's.
    """
    from .loading import build_model
    from .sources import has_text_head
    from .weights import read_json

    config = read_json(source / "config.json")
    if stored_quantization(config):
        raise InputError(f"{name} is quantised already: start from the original weights.")
    quantizable(build_model(config, text_head=has_text_head(source)), recipe.plan)
    if recipe.measured:
        from .calibrated import check_room

        note(check_room(source, texts, memory_limit))


def _commit(folder: Path) -> str | None:
    """The commit a folder of the hub's cache holds."""
    return folder.name if folder.parent.name == "snapshots" else None


def write_checkpoint(
    source: Path, folder: Path, made: Conversion, codec_folder: Path | None, texts: Texts
) -> Result:
    """Fill ``folder``: codec, weights, config and what lies beside them."""
    from .cards import Result
    from .footprint import bits_per_weight
    from .loading import build_model
    from .saving import TOKENIZER, copy_files
    from .weights import read_json

    model_class: Any = type(build_model(read_json(source / "config.json")))
    bundled = codec_folder == source
    if codec_folder and not bundled:
        write_codec(codec_folder, folder / "codec", source)
    elif not codec_folder:
        note(f"{made.title} has no codec beside it: --codec names one")
    copy_files(source, folder)
    write_sampling(folder, made.recipe)
    if not (tokenizer := (folder / TOKENIZER).is_file()):
        note(f"{made.title} has no {TOKENIZER} beside it: generate with --tokenizer")
    model, chosen, record = make_talker(source, made, codec_folder, texts)
    write_config(source, folder, made, model, chosen, record)
    size, kept, dtype = write_talker(model, source, folder, bundled=bundled)
    codec = "among the weights, as it was" if bundled else "float32, in `codec/`"
    codec = codec if codec_folder else "not included"
    return Result(
        count(source),
        size,
        kept,
        dtype,
        codec,
        tokenizer,
        model_class.ORIGIN,
        bits_per_weight(model),
        record,
    )


def make_talker(
    source: Path, made: Conversion, codec_folder: Path | None, texts: Texts
) -> tuple[Any, dict[str, Quantization], dict | None]:
    """The talker as it is to be stored, the widths of its modules, the record of a calibration."""
    from .loading import build_model, load_model
    from .sources import has_text_head
    from .weights import read_json

    if made.recipe.measured:
        from .calibrated import calibrated_talker

        return calibrated_talker(source, made, codec_folder, texts)
    note(f"weights: reading {made.title}, quantised: {'; '.join(made.recipe.words())}")
    head, plan = has_text_head(source), made.recipe.plan
    empty = build_model(read_json(source / "config.json"), text_head=head)
    model = load_model(source, quantize=plan, dtype=made.dtype, text_head=head)
    return model, quantizable(empty, plan), None


def write_config(
    source: Path,
    folder: Path,
    made: Conversion,
    model: Any,
    chosen: dict[str, Quantization],
    record: dict | None,
) -> None:
    """The config with the widths and the recipe; says what is known against that."""
    from .cards import recipe_block
    from .doubts import BLOCK, of_config
    from .models import family
    from .saving import converted_config, write_json
    from .weights import read_json

    config, recipe = read_json(source / "config.json"), made.recipe
    kind = family(config)
    plan = Plan.exact(chosen) if recipe.measured else recipe.plan
    ours = recipe_block(made, recipe.cautions.get(kind), record) if made.quantized else None
    if doubt := of_config({BLOCK: ours}, model, folder / "config.json"):
        note(f"warning: {doubt}")
    block = plan.config(chosen)
    write_json(folder / "config.json", converted_config(config, block, made.dtype, ours))


def write_sampling(folder: Path, recipe: Recipe) -> None:
    """What a recipe says of the sampling, in ``generation_config.json``."""
    from .defaults import with_sampling
    from .saving import write_json
    from .weights import read_json

    if recipe.sampling:
        path = folder / "generation_config.json"
        write_json(path, with_sampling(read_json(path, required=False), recipe.sampling))


def write_codec(codec_folder: Path, folder: Path, source: Path) -> None:
    """A float32 copy of the codec; quantising it would be audible and save little."""
    from .loading import build_model, check_codec, load_codec
    from .saving import disk_errors
    from .weights import read_json

    note(f"codec: {codec_folder.name} in float32")
    codec = load_codec(codec_folder)
    check_codec(codec, build_model(read_json(source / "config.json")).delay)
    with disk_errors(folder):
        codec.save(folder)


def write_talker(
    model: Any, source: Path, folder: Path, *, bundled: bool = False
) -> tuple[int, list[str], str]:
    """Write the weights; their bytes, the modules left as they were, and the dtype of those.

    Args:
        bundled: copy the codec that lies among the source's tensors.
    """
    from .codec.checkpoint import bundled_tensors
    from .saving import save_weights

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

    from .sources import first_line

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
