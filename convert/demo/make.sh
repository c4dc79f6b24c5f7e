#!/bin/sh
# Makes a talker and its codec from nothing, in stages that each go on where they were.
#
#     convert/demo/make.sh [BUILD] [OUTPUT]
#
# Needs Debian's flite 2.2 and, in the active environment, pip install -e '.[train,eval,reference]'.
# About five hours of one core; where there are two, decoder and talker can be trained side by side. With
# an NVIDIA GPU the codec uses it, and so does the talker under mlx[cuda13].
set -eu
cd "$(dirname "$0")/../.."
build=${1:-build/demo}
output=${2:-build/talker}
stage() {
  echo "== $*"
  python -m "convert.demo.$@"
}

stage speech "$build"                            # flite reads texts, words and phrases
stage codec encoder "$build" --minutes 26        # waveform -> codes
stage talker "$build"                            # tokenizer, random weights, conversations
stage encode "$build"                            # the codes of all utterances
stage compose "$build"                           # sentences put together from units
for part in 33 66 95; do                         # codes -> waveform
  stage codec decoder "$build" --minutes 95 --until $part
done

# MLX's own BLAS on a Linux CPU is several times slower than the one inside torch.
blas=
if [ "$(uname)" = Linux ]; then
  blas=$(python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib/libtorch_cpu.so")')
fi
# train NAME DATA FROM...: from the weights of the stage before; --resume goes on where it stopped
train() {
  name=$1 data=$2
  shift 2
  for part in 1 2; do
    echo "== train $name, part $part"
    OMP_NUM_THREADS=1 LD_PRELOAD=$blas python -m mlx_higgs.train -c "convert/demo/$name.yaml" \
      --model "$build/start" --data "$build/$data" --codes-cache "$build/codes" \
      --adapter-path "$build/talker/$name" "$@" --resume --max-minutes 38
  done
}
train phrases phrases
train sentences data --resume-adapter-file "$build/talker/phrases/adapters.safetensors"
train digits digits --resume-adapter-file "$build/talker/sentences/adapters.safetensors"
train words words --resume-adapter-file "$build/talker/digits/adapters.safetensors"

stage assemble "$build" "$output"
stage score "$build" "$output"
stage fourth "$build" "$output"                  # a voice it has never heard, by LoRA
