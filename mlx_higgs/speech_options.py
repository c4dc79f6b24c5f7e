"""How commands spell a request: its voice, its sampling, and how a long text is cut and joined."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pieces import Chunking
    from .server import SpeechRequest


def add_voice_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("voice")
    group.add_argument(
        "--ref-audio",
        action="append",
        metavar="CLIP",
        help="clip to clone, 5 to 12 s; repeat for [SPEAKER0], [SPEAKER1], ...",
    )
    group.add_argument(
        "--ref-text",
        action="append",
        metavar="WORDS",
        help='the clip\'s exact words (default: CLIP.txt beside it; "": none, for Higgs v3)',
    )
    group.add_argument(
        "--voice",
        action="append",
        metavar="NAME",
        help="a name of python -m mlx_higgs.voices list, or profile:DESCRIPTION",
    )
    group.add_argument(
        "--ref-in-system", action="store_true", help="put the clips into the system turn"
    )
    group.add_argument("--scene", help='where it is spoken; "" for none')
    group.add_argument("--system", help="the whole system turn")


def add_control_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "control tags of the whole text (of models that have them; see docs/controls.md)"
    )
    group.add_argument("--emotion", metavar="NAME", help="as anger, relief or sadness")
    group.add_argument("--style", metavar="NAME", help="as singing, shouting or whispering")
    group.add_argument("--speed", metavar="NAME", help="as very_slow, slow, fast or very_fast")
    group.add_argument("--pitch", metavar="NAME", help="as low or high")
    group.add_argument("--expressive", metavar="NAME", help="as low or high")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (default: the checkpoint's)")
    group.add_argument(
        "--preset",
        metavar="NAME",
        help="reference: as the model's reference implementation draws; the options below win",
    )
    group.add_argument("--temperature", type=float, help="0 takes the most likely code")
    group.add_argument(
        "--top-p", type=float, help="draw from the likeliest codes that make up this share"
    )
    group.add_argument("--top-k", type=int, help="0 is off")
    group.add_argument(
        "--ras-window",
        "--ras-win-len",
        type=int,
        help="frames looked back on for repeated codes; 0 is off",
    )
    group.add_argument(
        "--ras-max-repeats", "--ras-max-repeat", type=int, help="draw again a code this often in it"
    )
    group.add_argument("--seed", type=int, help="default: drawn and printed")
    group.add_argument(
        "--max-frames", "--max-tokens", "--max-new-frames", type=int, help="25 make a second"
    )
    group.add_argument(
        "--machine",
        choices=("boson", "transformers"),
        help="how speech ends: by Boson's rules (default) or transformers'",
    )
    group.add_argument(
        "--no-guards", action="store_true", help="do not stop silence, repetition, endless speech"
    )


def add_chunk_options(group: Any, modes: Sequence[str]) -> None:
    """What `chunking` reads."""
    group.add_argument(
        "--chunk",
        choices=modes,
        default="auto",
        help="how a long text is cut into pieces (auto: at sentences, or at speakers' turns)",
    )
    group.add_argument(
        "--chunk-size",
        type=int,
        metavar="N",
        help="letters in a piece, or words with --chunk word (default: the checkpoint's, or 300)",
    )
    group.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="earlier pieces that each is told of, beside its voice (default: the checkpoint's)",
    )
    group.add_argument("--gap-ms", type=float, help="silence between pieces (150)")
    group.add_argument(
        "--retries",
        type=int,
        help="other seeds for a piece that failed (2; for a text "
        "of one piece 0, or 2 if the model is known to be weak)",
    )
    group.add_argument("--language", default="en", help="of the text, for its abbreviations (en)")


def chunking(arguments: argparse.Namespace) -> Chunking:
    """The options of `add_chunk_options`."""
    from .pieces import Chunking

    given = {"gap_ms": arguments.gap_ms, "retries": arguments.retries}
    return Chunking(
        arguments.chunk,
        arguments.chunk_size,
        arguments.context,
        language=arguments.language,
        **{name: value for name, value in given.items() if value is not None},
    )


def build_request(arguments: argparse.Namespace, text: str) -> SpeechRequest:
    from .server import SpeechRequest

    return SpeechRequest(
        target_text=text,
        reference_audio_path=arguments.ref_audio,
        reference_text=arguments.ref_text,
        voice=arguments.voice,
        references_in_system=arguments.ref_in_system,
        scene=arguments.scene,
        system=arguments.system,
        emotion=arguments.emotion,
        style=arguments.style,
        speed=arguments.speed,
        pitch=arguments.pitch,
        expressive=arguments.expressive,
        preset=arguments.preset,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        max_new_frames=arguments.max_frames,
        ras_win_len=arguments.ras_window,
        ras_max_repeat=arguments.ras_max_repeats,
        fade_in_ms=arguments.fade_in_ms,
        fade_out_ms=arguments.fade_out_ms,
        seed=arguments.seed,
        normalize=False if arguments.no_normalize else None,
        machine=arguments.machine,
        guards=not arguments.no_guards,
    )
