"""Clone a voice from a short clip.

    python examples/clone_demo.py --ref-audio clip.wav --ref-text "What the clip says." \\
        --text "What it should say." --output cloned.wav

Without arguments it speaks with the bundled demo, which clones the voices it was trained with:
those of examples/voice_prompts.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from mlx_higgs import HiggsAudioServer
from mlx_higgs.audio import check_output, write
from mlx_higgs.types import HiggsError

VOICE = Path(__file__).parent / "voice_prompts" / "en_man.wav"


def main() -> None:
    parser = argparse.ArgumentParser(description="Clone a voice from a short clip.")
    parser.add_argument("--model", default="demo", help="folder or hub name")
    parser.add_argument("--ref-audio", type=Path, default=VOICE)
    parser.add_argument("--ref-text", help="the clip's exact words (default: CLIP.txt beside it)")
    parser.add_argument("--text", default="good morning, doctor")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--output", type=Path, default=Path("cloned.wav"))
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    try:
        clone(arguments)
    except HiggsError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")
    except OSError as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


def clone(arguments: argparse.Namespace) -> None:
    output = check_output(arguments.output, force=arguments.force)
    warnings.simplefilter("ignore", UserWarning)  # said below
    server = HiggsAudioServer.from_pretrained(arguments.model)
    server.prepare_reference(arguments.ref_audio, arguments.ref_text)  # encoded once
    speech = server.generate(arguments.text, seed=arguments.seed)
    write(output, speech.pcm, speech.sampling_rate)
    if not server.higgs.defaults.clones:
        print("This checkpoint cannot clone: the voice was left out.")
    print(f"{speech.duration:.2f} s, stopped by {speech.stop_reason}, seed {speech.seed}")
    print(output)


if __name__ == "__main__":
    main()
