#!/bin/sh
# Teach the embedded editing model a new edit and show what that did: `make demo-edit`, or
# `sh examples/demo_edit/run.sh [FOLDER]` in an environment that has dsctl. STEPS and SEED change what the two words say.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-build/demo-edit}
steps=${STEPS:-200}
seed=${SEED:-0}
pairs=dsctl_core/assets/datasets/frame_edit
here=examples/demo_edit

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf "$out/lora" "$out/source" "$out/before" "$out/after" "$out/grid.png"
mkdir -p "$out"

echo "1. what the model makes of the edits before: it has never seen a frame"
show python $here/draw.py --edits $here/edits.txt --seed "$seed" --output "$out/before" --sources "$out/source"

echo
echo "2. train a LoRA on the pairs in $pairs"
show dsctl train sft --model tiny-edit --dataset-base-path $pairs --data-file-keys image,edit_image \
    --extra-inputs edit_image --lora-rank 16 --batch-size 8 --dataset-repeat 100 --max-steps "$steps" \
    --output-path "$out/lora"

echo
echo "3. the same edits and the same seeds, with the LoRA"
show python $here/draw.py --edits $here/edits.txt --seed "$seed" --output "$out/after" \
    --lora "$out/lora/step-$steps.safetensors"

python examples/demo/grid.py --source "$out/source" --before "$out/before" --after "$out/after" \
    --prompts $here/edits.txt --output "$out/grid.png"
printf '\npictures, and their edits before and after: %s\n' "$out/grid.png"
