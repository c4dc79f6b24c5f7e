"""The models that ``evaluate quant`` compares: what they are called, how they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..footprint import bits_per_weight
from ..loading import Higgs, load, open_model
from ..memory import gigabytes, machine_limit, on_cpu
from ..models.snapshot import Snapshot
from ..quantization import Plan
from ..recipes import Recipe, at_once, read
from ..sources import DEFAULT_MODEL, has_text_head, prompt_class, resolve
from ..types import InputError, Prompt
from ..weights import nbytes, num_weights, read_json, weight_files
from .quant_floats import as_floats
from .reads import frame_bytes

if TYPE_CHECKING:
    from ..models.base import SpeechModel

AT = "@"  # between a model and how it is to be quantised


@dataclass(frozen=True)
class Storage:
    """What a talker's weights take.

    Attributes:
        disk: bytes of its weight files; of one quantised while loading, what they would be.
        frame: bytes of weights that a frame of speech reads.
        bits: per weight, scales included, of the modules that may be quantised.
        all_bits: the same of all weights.
    """

    disk: int
    frame: int
    bits: float
    all_bits: float


@dataclass(frozen=True)
class Entry:
    """One model to compare, nothing of it read but headers.

    Attributes:
        name: as it was asked for.
        label: short, for a table.
        recipe: how it is quantised while loading.
    """

    name: str
    folder: Path
    label: str
    recipe: Recipe

    @classmethod
    def of(cls, name: str) -> Entry:
        """A folder, a hub name, ``demo``, or one of these with ``@RECIPE``.

        Raises:
            InputError: nothing of that name, or a recipe that cannot be followed while loading.
        """
        source, asked = name, ""
        if AT in name and not is_folder(name):
            source, _, asked = name.rpartition(AT)
            if not (source and asked):
                what = "the recipe's name" if source else "the model's name"
                raise InputError(f"{name} lacks {what}: write MODEL{AT}RECIPE.")
        recipe = at_once(read(asked or "none"), source)
        folder = resolve(source)
        label = folder.resolve().name if is_folder(source) else source
        return cls(name, folder, f"{label}{AT}{asked}" if asked else label, recipe)

    @property
    def local(self) -> bool:
        """Whether it is a checkpoint in a folder of the caller's own."""
        return is_folder(self.name)

    def talker(self) -> SpeechModel:
        """Its shapes: nothing is read.

        Raises:
            CheckpointError: it cannot be used. InputError: the recipe does not fit its weights.
        """
        head = has_text_head(self.folder)
        return open_model(self.folder, quantize=self.recipe.plan, text_head=head)

    def reads(self, texts: Sequence[str], tokenizer: str | None) -> list[Prompt]:
        """The prompts that texts make."""
        kind = prompt_class(read_json(self.folder / "config.json"))
        prompts = kind.from_pretrained(resolve(tokenizer or self.folder))
        return [prompts.build(text) for text in texts]

    def load(self, codec: str | None, tokenizer: str | None) -> Higgs:
        """In memory; on a CPU in float32, with its quantised matrices turned back into floats."""
        higgs = load(self.folder, codec=codec, tokenizer=tokenizer, quantize=self.recipe)
        higgs.doubt = ""  # nobody is watched more closely than the others
        if on_cpu():
            as_floats(higgs.talker)
            higgs.original = Snapshot(higgs.talker)
        return higgs


def is_folder(name: str) -> bool:
    """Whether a name means a folder of the caller's own; ``demo`` is the bundled one."""
    return name != DEFAULT_MODEL and Path(name).expanduser().is_dir()


def entries(names: Sequence[str]) -> list[Entry]:
    """All that are to be compared, with labels that tell them apart.

    Raises:
        InputError: as ``Entry.of``, or one of them twice.
    """
    found = [Entry.of(name) for name in names]
    twice = next((e for i, e in enumerate(found) if _same(e) in map(_same, found[:i])), None)
    if twice:
        raise InputError(f"{twice.name} is there twice: name each model once.")
    labels = [entry.label for entry in found]
    return [e if labels.count(e.label) == 1 else replace(e, label=e.name) for e in found]


def _same(entry: Entry) -> tuple[Path, Recipe]:
    return entry.folder.resolve(), entry.recipe


def check_alike(reference: SpeechModel, name: str, candidate: SpeechModel) -> None:
    """Raises InputError for a candidate that has not the reference's shape."""
    ours, theirs = _shape(reference), _shape(candidate)
    for what, value in ours.items():
        if theirs.get(what) != value:
            raise InputError(
                f"{name} is no candidate for this reference: its {what} is {theirs.get(what)}, "
                f"the reference's is {value}."
            )


def _shape(model: SpeechModel) -> dict[str, Any]:
    """What must be equal; what a person knows best comes first."""
    delay = model.delay
    args = {key: value for key, value in asdict(model.args).items() if key != "text_head"}
    return {
        "kind of model": type(model).__module__.rpartition(".")[2],
        "number of codebooks": delay.num_codebooks,
        "codebook size": delay.codebook_size,
        "vocabulary": args["vocab_size"],
        **args,
    }


def check_texts(
    reference: Entry, candidates: Sequence[Entry], texts: Sequence[str], tokenizer: str | None
) -> None:
    """Raises InputError for a candidate that reads texts as other tokens than the reference."""
    others = [c for c in candidates if tokenizer is None and c.folder != reference.folder]
    read = reference.reads(texts, tokenizer) if others else []
    for entry in others:
        if entry.reads(texts, None) != read:
            raise InputError(
                f"{entry.name} reads texts as other tokens than the reference: their tokenizers "
                "are not the same."
            )


def check_room(name: str, model: SpeechModel) -> None:
    """Raises InputError on a CPU that has no room for a model in float32."""
    needed, there = 4 * _all_weights(model), machine_limit()
    if on_cpu() and there is not None and needed > there:
        raise InputError(
            f"On a CPU {name} is measured in float32, which takes {gigabytes(needed, up=True)}, "
            f"and there are {gigabytes(there)}: measure it on a GPU."
        )


def storage(entry: Entry, model: SpeechModel) -> Storage:
    """Of an opened talker.

    Args:
        model: not fused; its weights may still be on disk.
    """
    disk = nbytes(model)
    if entry.recipe.plan == Plan():
        disk = sum(path.stat().st_size for path in weight_files(entry.folder))
    return Storage(disk, frame_bytes(model).weights, bits_per_weight(model), _all_bits(model))


def _all_bits(model: Any) -> float:
    return 8 * nbytes(model) / _all_weights(model)


def _all_weights(model: Any) -> int:
    return sum(num_weights(module) for module in model.modules() if not module.children())
