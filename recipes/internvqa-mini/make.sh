#!/usr/bin/env bash
# The shipped students from clips and pictures: corpus, teacher, student, figures.
# usage: bash recipes/internvqa-mini/make.sh CLIPS PICTURES     (resumes where it was stopped)
# CLIPS/MANIFEST.csv has each clip's title (`group`) and `licence_basis`: clips whose licence names
# the file itself ("explicit") are the training set, the others ("repo") the held-out titles.
set -euo pipefail
here="$(dirname "$0")"
clips="$1" pictures="$2" workers="${WORKERS:-2}"

vqaloop corpus "$clips" runs/corpus/clips --basis explicit --windows 3 --encodes 20 --crops 16 \
  --workers "$workers"
vqaloop corpus "$pictures" runs/corpus/pictures --basis explicit --synthetic 60 --encodes 15 \
  --crops 16 --workers "$workers"
vqaloop corpus "$clips" runs/corpus/held-out --basis repo --encodes 25 --crops 24 \
  --workers "$workers"

vqaloop distill "$here/recipe.toml"
vqaloop distill "$here/../internvqa-tiny/recipe.toml"
vqaloop distill "$here/distilled.toml"

for name in internvqa-mini internvqa-tiny internvqa-mini-distilled; do
  vqaloop evaluate "runs/$name/${name%-distilled}.safetensors" runs/corpus/held-out \
    --metrics psnr,ssim,xpsnr -o "runs/$name"
done
