"""Write tests/golden/tower.safetensors: what transformers and Boson's code hear in two noises.

    git clone https://github.com/boson-ai/higgs-audio CHECKOUT
    python convert/dump_tower.py CHECKOUT tests/golden/tower.safetensors

The weights are those of `convert.tower.random_tower`, drawn from ``SEED``: they are not kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file or with -m

SEED, HIDDEN = 5, 12
SAMPLES = (7_777, 20_000)


def waves() -> list[np.ndarray]:
    """The two noises, mono float32 at 16 kHz, louder and louder."""
    rng = np.random.default_rng(SEED)
    noises = (rng.normal(size=n) * np.linspace(0.0, 0.3, n) ** 2 for n in SAMPLES)
    return [noise.astype(np.float32) for noise in noises]


def main() -> None:
    import torch
    from safetensors.numpy import save_file
    from transformers import WhisperFeatureExtractor

    from convert.boson_repo import import_boson
    from convert.tower import SIZES, random_tower
    from mlx_higgs.models.tower import TowerArgs

    parser = argparse.ArgumentParser(description="Write the golden of the audio tower.")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    modeling = import_boson(arguments.checkout)
    config = modeling.HiggsAudioConfig(
        audio_encoder_config=dict(SIZES),
        text_config={
            "hidden_size": HIDDEN,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "vocab_size": 8,
        },
        pad_token_id=0,
        audio_adapter_type="stack",
    )
    config._attn_implementation = "sdpa"
    model = modeling.HiggsAudioModel(config).float().eval()
    tensors = random_tower(TowerArgs(**SIZES), HIDDEN, SEED)
    state = {name: torch.tensor(np.array(array)) for name, array in tensors.items()}
    missing, unknown = model.load_state_dict(state, strict=False)
    assert not unknown
    assert not any(name.startswith("audio_tower") for name in missing)
    extractor = WhisperFeatureExtractor(feature_size=SIZES["num_mel_bins"])
    found = extractor(
        waves(), sampling_rate=16_000, return_attention_mask=True, return_tensors="pt"
    )
    with torch.no_grad():
        features, kept = model._apply_audio_tower(found.input_features, found.attention_mask)
    golden = {}
    for index, count in enumerate(kept.tolist()):
        sound = int(found.attention_mask[index].sum())
        golden[f"{index}.mel"] = found.input_features[index, :, : sound + 2].T.numpy().copy()
        golden[f"{index}.features"] = features[index, :count].numpy().copy()
    save_file(golden, arguments.out)


if __name__ == "__main__":
    main()
