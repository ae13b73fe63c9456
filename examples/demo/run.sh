#!/bin/sh
# Teach the embedded model a new object and show what that did: `make demo`, or `sh examples/demo/run.sh [FOLDER]`
# in an environment that has dsctl. STEPS and SEED change what the two words say.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-build/demo}
steps=${STEPS:-200}
seed=${SEED:-0}
robot=dsctl_core/assets/datasets/robot
prompts=examples/demo/prompts.txt

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf "$out/lora" "$out/before" "$out/after" "$out/grid.png"
mkdir -p "$out"

echo "1. what the model draws before: it has never seen a robot"
show dsctl infer --model tiny --prompts-file $prompts --seed "$seed" --output "$out/before/picture.png"

echo
echo "2. train a LoRA on the pictures in $robot"
show dsctl train sft --model tiny --dataset-base-path $robot --lora-rank 16 \
    --batch-size 8 --dataset-repeat 100 --max-steps "$steps" --output-path "$out/lora"

echo
echo "3. the same prompts and the same seeds, with the LoRA"
show dsctl infer --model tiny --lora "$out/lora/step-$steps.safetensors" --prompts-file $prompts --seed "$seed" \
    --output "$out/after/picture.png"

python examples/demo/grid.py --before "$out/before" --after "$out/after" --prompts $prompts --output "$out/grid.png"
printf '\nbefore and after, side by side: %s\n' "$out/grid.png"
