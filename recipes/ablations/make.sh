#!/usr/bin/env bash
# The ablations of docs/model-card.md, on the corpus and with the teacher of
# recipes/internvqa-mini/make.sh.
# usage: bash recipes/ablations/make.sh [NAME...]     (all by default; resumes where it was stopped)
set -euo pipefail
here="$(dirname "$0")"
[ $# -gt 0 ] || set -- plain v1 no-attacks no-change no-worst first-heads no-fdim no-bits pairs \
  ranked fidelity coarse-to-fine dense preferences distilled pruned colour continued \
  swin swin-coarse-to-fine qmamba qmamba-2way \
  rankdvqa-mini rankdvqa-mini-ranked rankdvqa-mini-distilled rankdvqa-mini-pruned \
  prompt-20 prompt-50 prompt-200 tuned-20 tuned-50 tuned-200
for name in "$@"; do
  out="runs/ablations/$name" model=internvqa-mini
  case "$name" in
    swin*) model=swinv2-c2f-mini ;;
    qmamba-2way) model=qmamba-mini-2way ;;
    qmamba) model=qmamba-mini ;;
    rankdvqa-mini*) model=rankdvqa-mini ;;
    prompt-*) model=internvqa-mini.prompt ;;
  esac
  weights=("$out/$model.safetensors")
  [ -f "${weights[0]}" ] || vqaloop distill "$here/$name.toml"
  if [ "$model" = internvqa-mini.prompt ]; then
    weights=(runs/internvqa-mini/internvqa-mini.safetensors --prompt "${weights[0]}")
  fi
  [ -f "$out/figures.json" ] || vqaloop evaluate "${weights[@]}" runs/corpus/validation -o "$out"
done
