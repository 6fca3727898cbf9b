#!/bin/sh
# Counts the words of the text at INPUT_FILE_PATH, the most frequent first. Needs nothing but a POSIX shell's tools.
set -eu
name=$(basename "$INPUT_FILE_PATH")
tr -cs '[:alnum:]' '\n' <"$INPUT_FILE_PATH" | tr '[:upper:]' '[:lower:]' | sed '/^$/d' |
    sort | uniq -c | sort -rn >"$TMP_OUTPUT_DIR/${name%.*}.count"
echo "$name has $(wc -l <"$TMP_OUTPUT_DIR/${name%.*}.count") different words"
