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
for part in 38 76 114 150; do                    # codes -> waveform
  stage codec decoder "$build" --minutes 150 --until $part
done

# MLX's own BLAS on a Linux CPU is several times slower than the one inside torch.
blas=
if [ "$(uname)" = Linux ]; then
  blas=$(python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib/libtorch_cpu.so")')
fi
# train CONFIG DATA FROM [OPTION...]: from the weights of the stage FROM; --resume goes on where it stopped
train() {
  config=$1 data=$2 from=$3
  shift 3
  if [ "$from" ]; then
    set -- --resume-adapter-file "$build/talker/$from/adapters.safetensors" "$@"
  fi
  for part in 1 2; do
    echo "== train $data, part $part"
    OMP_NUM_THREADS=1 LD_PRELOAD=$blas python -m mlx_higgs.train -c "convert/demo/$config.yaml" \
      --model "$build/start" --data "$build/$data" --codes-cache "$build/codes" \
      --adapter-path "$build/talker/$data" "$@" --resume --max-minutes 38
  done
}
train phrases phrases ""
train sentences data phrases
train digits digits data
train more_words words_20 digits --iters 400
train more_words words_60 words_20 --iters 700
train more_words words_200 words_60 --iters 1100
train words words words_200

stage assemble "$build" "$output"
stage score "$build" "$output"
stage fourth "$build" "$output"                  # a voice it has never heard, by LoRA
