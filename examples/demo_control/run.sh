#!/bin/sh
# Teach the embedded model to follow silhouettes and show how well it does: `make demo-control`, or
# `sh examples/demo_control/run.sh [FOLDER]` in an environment that has dsctl. STEPS and PICTURES change how long it takes.
set -eu
cd "$(dirname "$0")/../.."
out=${1:-build/demo-control}
steps=${STEPS:-1200}
pictures=${PICTURES:-480}
heldout=$(((pictures + 19) / 20))

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf "$out/data" "$out/heldout" "$out/controlnet" "$out/grid.png"
mkdir -p "$out"

echo "1. arrange the embedded drawings, with a silhouette of each; some are held out"
show python examples/demo_control/data.py --output "$out/data" --count "$pictures" --seed 0
show python examples/demo_control/data.py --output "$out/heldout" --count "$heldout" --seed 1

echo
echo "2. train a new control network on them"
show dsctl train sft --model tiny --dataset-base-path "$out/data" --controlnet blockwise \
    --trainable-models controlnet --learning-rate 2e-3 --batch-size 8 --dataset-repeat 100 --max-steps "$steps" \
    --output-path "$out/controlnet"

echo
echo "3. the held-out arrangements, without and with it, and how much of the silhouettes the pictures fill"
show python examples/demo_control/measure.py --controlnet "$out/controlnet/step-$steps.safetensors" \
    --data "$out/heldout" --output "$out/grid.png"
