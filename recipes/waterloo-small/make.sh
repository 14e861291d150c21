#!/usr/bin/env bash
# A student of opinion scores from the folder of a published set: clips, training, figures, and the
# command that lets it steer a ladder. Run again, it resumes where it was stopped.
# usage: bash recipes/waterloo-small/make.sh DATASET [RECIPE]
#   DATASET  folder of Waterloo IVC 4K or BVI-HD as docs/datasets.md describes it, with its sources
#   RECIPE   waterloo-mini (default: a CPU will do), waterloo-small, waterloo-base, waterloo-1b,
#            waterloo-fastvqa, waterloo-fastvqa-base, the same of bvi-hd, and NAME/alone
# Corpora and results go to runs/ in the current folder; checkpoints/ holds the released weights.
set -euo pipefail
folder="$1" recipe="${2:-waterloo-mini}" workers="${WORKERS:-2}" device="${DEVICE:-auto}"

case "$recipe" in
  waterloo-*) set="waterloo" span=30 ;;   # 10 s at 24 to 30 fps: every 8th frame of the whole video
  bvi-hd-*) set="bvi-hd" span=18 ;;       # 5 s at 30 to 60 fps
  *) echo "make.sh: $recipe is no recipe of a published set; choose among those named above" >&2
     exit 2 ;;
esac

corpus() {  # OUT, then options of the view
  vqaloop corpus "$folder" "$1" --dataset "$set" --workers "$workers" "${@:2}"
}

data="runs/$set"
case "$recipe" in
  waterloo-mini*)
    data="runs/$set-native"
    corpus "$data" --view native --frames 2 --stride 1 --size 112 --clips 32 ;;
  *-fastvqa*)
    corpus "$data" --view squeezed --frames "$span" --stride 8 --size 256 --clips 1
    data="runs/$set-fragments"
    corpus "$data" --view fragments --frames $((span * 4)) --stride 2 --clips 1 ;;
  *) corpus "$data" --view squeezed --frames "$span" --stride 8 --size 256 --clips 1 ;;
esac

if [ "${GPUS:-1}" -gt 1 ]; then
  torchrun --nproc_per_node "$GPUS" -m vqaloop distill "$recipe"
else
  vqaloop distill "$recipe" --device "$device"
fi

out="runs/${recipe%/alone}"
[ "$recipe" = "${recipe%/alone}" ] || out="$out-alone"
weights="$(ls "$out"/*.safetensors)"
vqaloop evaluate "$weights" "$data" -o "$out" --device "$device"
echo "vqaloop ladder SOURCE -o OUT --weights $weights"
