#!/bin/sh
# Splits the text at INPUT_FILE_PATH into chapters, one file each, and writes how many there are into a log file.
set -eu
name=$(basename "$INPUT_FILE_PATH")
awk -v prefix="$TMP_OUTPUT_DIR/${name%.*}" '
    /^# / { number++ }
    { print > sprintf("%s-%02d.chapter", prefix, number) }
' "$INPUT_FILE_PATH"
chapters=$(ls "$TMP_OUTPUT_DIR" | wc -l)
echo "$chapters" >"$TMP_OUTPUT_DIR/${name%.*}.log"
