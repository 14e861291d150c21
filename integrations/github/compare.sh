#!/usr/bin/env bash
# The comparison of action.yml: reads VQALOOP_*, writes files, the step's summary and its outputs.
# Ends with 0 whatever the verdict is, so that the artefact is kept; the last step of the action fails.
set -euo pipefail

directory=${VQALOOP_DIRECTORY:?}
mkdir -p "$directory"

clips=()
while IFS= read -r pattern; do
    [ -n "${pattern// /}" ] || continue
    found=()
    # a name that is there is taken as it is, whatever letters it has
    if [ -e "$pattern" ]; then
        found=("$pattern")
    else
        while IFS= read -r name; do found+=("$name"); done < <(compgen -G "$pattern" | sort)
    fi
    if [ "${#found[@]}" -eq 0 ]; then
        echo "::error::no clip is there by the name $pattern" >&2
        exit 2
    fi
    clips+=("${found[@]}")
done <<<"${VQALOOP_CLIPS:?}"

options=()
if [ -n "${VQALOOP_OPTIONS//[[:space:]]/}" ]; then
    # quotes as in a shell, but nothing is expanded or run
    words=$(printf '%s\n' "$VQALOOP_OPTIONS" | xargs -n 1 printf '%s\n') || {
        echo "::error::the quotes of the options do not match: $VQALOOP_OPTIONS" >&2
        exit 2
    }
    while IFS= read -r word; do options+=("$word"); done <<<"$words"
fi

status=0
vqaloop regress "--baseline=${VQALOOP_BASELINE:?}" "--candidate=${VQALOOP_CANDIDATE:?}" \
    "--codec=${VQALOOP_CODEC:?}" "${options[@]}" --quiet \
    --json "$directory/result.json" --junit "$directory/junit.xml" \
    --markdown "$directory/report.md" --html "$directory/report.html" \
    -- "${clips[@]}" || status=$?

verdict=refused
if [ -e "$directory/result.json" ]; then
    verdict=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["verdict"])' \
        "$directory/result.json")
fi
{
    echo "status=$status"
    echo "verdict=$verdict"
    if [ -e "$directory/report.md" ]; then
        echo "report=$directory/report.md"
        echo "page=$directory/report.html"
    fi
} >>"${GITHUB_OUTPUT:-/dev/stdout}"
if [ -e "$directory/report.md" ]; then
    cat "$directory/report.md" >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
fi
