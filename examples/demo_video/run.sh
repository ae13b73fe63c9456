#!/bin/sh
# Teach the embedded video model a new motion and show what that did: `make demo-video`, or
# `sh examples/demo_video/run.sh [FOLDER]` in an environment that has dsctl. STEPS, SEED and SAMPLING change
# the steps of training, the clips, and the steps of drawing one.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-build/demo-video}
steps=${STEPS:-320}
seed=${SEED:-0}
sampling=${SAMPLING:-20}
clips=dsctl_core/assets/datasets/moves_down
prompts=examples/demo_video/prompts.txt

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf "$out/lora" "$out/before" "$out/after" "$out/comparison.gif" "$out/sheet.png"
mkdir -p "$out"

echo "1. what the model makes before: it has never seen anything move down"
show dsctl infer --model tiny-video --prompts-file $prompts --seed "$seed" \
    --num-inference-steps "$sampling" --output "$out/before/clip.gif"

echo
echo "2. train a LoRA on the clips in $clips"
show dsctl train sft --model tiny-video --dataset-base-path $clips --data-file-keys video --lora-rank 16 \
    --batch-size 6 --dataset-repeat 200 --max-steps "$steps" --output-path "$out/lora"

echo
echo "3. the same prompts and the same seeds, with the LoRA"
show dsctl infer --model tiny-video --lora "$out/lora/step-$steps.safetensors" --prompts-file $prompts --seed "$seed" \
    --num-inference-steps "$sampling" --output "$out/after/clip.gif"

PYTHONPATH="examples/demo${PYTHONPATH:+:$PYTHONPATH}" python examples/demo_video/compare.py \
    --before "$out/before" --after "$out/after" --prompts $prompts --output "$out"
printf '\nbefore and after, side by side: %s, and frame by frame: %s\n' "$out/comparison.gif" "$out/sheet.png"
