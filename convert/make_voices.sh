#!/bin/sh
# Makes examples/voice_prompts/*.wav from the transcripts beside them, with flite 2.2 and sox 14.4.
#
#     sh convert/make_voices.sh [OUTPUT_FOLDER]
#
# Trimmed to 0.1 s before the speech, 16 -> 24 kHz, peak -3 dBFS, a 50 ms fade and 0.3 s of silence:
# the model copies how a reference ends. -D: no dither, so silence is zeros and runs are repeatable.
set -eu
prompts=$(cd "$(dirname "$0")/.." && pwd)/examples/voice_prompts
output=${1:-$prompts}
speech=$(mktemp -d)
trap 'rm -r "$speech"' EXIT

make_voice() { # NAME, then flite's options
  name=$1
  shift
  flite "$@" -f "$prompts/$name.txt" -o "$speech/$name.wav"
  sox -D -G "$speech/$name.wav" -r 24000 -b 16 -c 1 "$output/$name.wav" \
    highpass 40 silence 1 0.02 0.3% fade t 0.01 reverse silence 1 0.02 0.3% fade t 0.05 reverse \
    rate -v 24000 gain -n -3 pad 0.1 0.3
}

make_voice en_woman -voice slt
make_voice en_man -voice rms
make_voice en_man_deep -voice awb --setf int_f0_target_mean=90 --setf duration_stretch=1.05
