#!/usr/bin/env bash
# The shipped students from clips and pictures: corpus, teacher, students, the deciding table.
# usage: bash recipes/internvqa-mini/make.sh CLIPS PICTURES     (resumes where it was stopped)
# MANIFEST.csv in both has each file's title (`group`) and `licence_basis`: material whose licence
# names the file itself ("explicit") is trained on. Of the rest ("repo") every second title is for
# validation, where choices are made, and the others are the third set, which no choice is made on.
# WORKERS: scenes at a time (2); FDIM and CVVDP: the wheel and the program of these two judges,
# which are fetched from PyPI where they are not given.
set -euo pipefail
here="$(dirname "$0")"
clips="$1" pictures="$2" workers="${WORKERS:-2}"
mkdir -p runs/judges
if [ -z "${FDIM:-}" ]; then
  FDIM=runs/judges/fdim-0.2.1-py3-none-any.whl
  # never installed: it pins another torch, and all that is needed of it is the checkpoint
  [ -f "$FDIM" ] || python -m pip download --no-deps -d runs/judges fdim==0.2.1
fi
if [ -z "${CVVDP:-}" ]; then
  CVVDP=runs/judges/cvvdp/bin/cvvdp
  # an environment of its own: a package it needs takes the place of ffmpeg-python
  [ -x "$CVVDP" ] || { python -m venv runs/judges/cvvdp && runs/judges/cvvdp/bin/pip install -q cvvdp==0.5.7; }
fi
judges=(--ssimulacra2 --fdim "$FDIM" --cvvdp "$CVVDP")
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

vqaloop corpus "$clips" runs/corpus/clips --basis explicit --encodes 14 --attacks 5 \
  "${judges[@]}" --workers "$workers"
vqaloop corpus "$pictures" runs/corpus/pictures --basis explicit --synthetic 24 --encodes 3 \
  --attacks 2 --places 2 --length 24 "${judges[@]}" --workers "$workers"
vqaloop corpus "$pictures" runs/corpus/montages --basis explicit --encodes 8 --attacks 2 \
  --places 2 --montages 1920x1080:8 --montages 3840x2160:4 "${judges[@]}" --workers "$workers"
vqaloop corpus "$clips" runs/corpus/validation --basis repo --part 1/2 --encodes 12 --attacks 4 \
  "${judges[@]}" --workers "$workers"

vqaloop distill "$here/recipe.toml"
vqaloop distill "$here/../internvqa-tiny/recipe.toml"
vqaloop distill "$here/distilled.toml"

for name in internvqa-mini internvqa-tiny internvqa-mini-distilled; do
  vqaloop evaluate "runs/$name/${name%-distilled}.safetensors" runs/corpus/validation \
    -o "runs/$name"
done

# The deciding table: choices are made on the first, the second is for the model card alone.
python -m bench.panel_material --clips "$clips" --stills "$pictures" --out runs/material \
  --montages validation,third
students="mini=runs/internvqa-mini/internvqa-mini.safetensors"
students="$students,tiny=runs/internvqa-tiny/internvqa-tiny.safetensors"
students="$students,distilled=runs/internvqa-mini-distilled/internvqa-mini.safetensors"
for set in validation third; do
  python -m bench.panel --titles runs/material/titles.csv --set "$set" --out "runs/table/$set" \
    --panel runs/internvqa-mini/internvqa-mini.safetensors "${judges[@]}" \
    --judges "$students,vmaf-sampled,vmaf-v1-sampled,vmaf,vmaf-v1,vmaf-neg,xpsnr,psnr"
done
