#!/bin/sh
# Makes a talker and its codec from nothing, in stages that each go on where they were.
#
#     convert/demo/make.sh [BUILD] [OUTPUT]
#
# Needs Debian's flite 2.2 and, in the active environment, pip install -e '.[train,eval,reference]'.
# About nine hours of one core; where there are two, decoder and talker can be trained side by side. With
# an NVIDIA GPU the codec uses it, and so does the talker under mlx[cuda13].
set -eu
cd "$(dirname "$0")/../.."
build=${1:-build/demo}
output=${2:-mlx_higgs/demo}
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
# train CONFIG DATA FROM TO [OPTION...]: from the weights of a stage to another's; goes on where it stopped
train() {
  config=$1 data=$2 from=$3 to=$4
  shift 4
  if [ "$from" ]; then
    set -- --resume-adapter-file "$build/talker/$from/adapters.safetensors" "$@"
  fi
  for part in 1 2 3; do
    echo "== train $to, part $part"
    OMP_NUM_THREADS=1 LD_PRELOAD=$blas python -m mlx_higgs.train -c "$config" \
      --model "$build/start" --data "$build/$data" --codes-cache "$build/codes" \
      --adapter-path "$build/talker/$to" "$@" --resume --max-minutes 38
  done
}
# practise STEPS SEED FROM TO: all words again, at a learning rate that falls anew
practise() {
  sed "s/STEPS/$1/" convert/demo/practice.yaml > "$build/$4.yaml"
  train "$build/$4.yaml" words "$3" "$4" --seed "$2"
}
here=convert/demo
train $here/phrases.yaml phrases "" phrases
train $here/sentences.yaml data phrases sentences
train $here/digits.yaml digits sentences digits
train $here/more_words.yaml words_20 digits words_20 --iters 400
train $here/more_words.yaml words_60 words_20 words_60 --iters 700
train $here/more_words.yaml words_200 words_60 words_200 --iters 1100
train $here/words.yaml words words_200 words
practise 2600 2 words practice_1
practise 6000 3 practice_1 practice_2
practise 3300 4 practice_2 practice_3
practise 3300 5 practice_3 practice_4

stage assemble "$build" "$output"
stage score "$build" "$output"
stage fourth "$build" "$output"                  # a voice it has never heard, by LoRA
