#!/usr/bin/env bash
# The ablations of docs/model-card.md, on the corpus and with the teacher of
# recipes/internvqa-mini/make.sh.
# usage: bash recipes/ablations/make.sh [NAME...]     (all by default; resumes where it was stopped)
set -euo pipefail
here="$(dirname "$0")"
[ $# -gt 0 ] || set -- plain v1 no-attacks no-change no-worst first-heads no-fdim no-bits pairs \
  fidelity dense preferences distilled pruned colour continued
for name in "$@"; do
  out="runs/ablations/$name"
  [ -f "$out/internvqa-mini.safetensors" ] || vqaloop distill "$here/$name.toml"
  [ -f "$out/figures.json" ] || vqaloop evaluate "$out/internvqa-mini.safetensors" \
    runs/corpus/validation -o "$out"
done
