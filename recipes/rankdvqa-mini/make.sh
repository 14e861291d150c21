#!/usr/bin/env bash
# The models of the other families, with the budget of the default student, on the corpus of
# recipes/internvqa-mini/make.sh.
# usage: bash recipes/rankdvqa-mini/make.sh [RECIPE...]     (resumes where it was stopped)
# The default are those for a CPU, in an order in which teachers come first.
set -euo pipefail
here="$(dirname "$0")/.."
[ $# -gt 0 ] || set -- rankdvqa rankdvqa-mini rankdvqa-mini/distilled swinv2-c2f-mini qmamba-mini
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
for recipe in "$@"; do
  file="$here/$recipe.toml"
  [ -f "$file" ] || file="$here/$recipe/recipe.toml"
  out="runs/${recipe/\//-}" weights="runs/${recipe/\//-}/${recipe%%/*}.safetensors"
  [ -f "$weights" ] || vqaloop distill "$file"
  [ -f "$out/figures.json" ] || vqaloop evaluate "$weights" runs/corpus/validation -o "$out"
done
