#!/bin/sh
# Writes the title of the chapter at INPUT_FILE_PATH in capitals.
set -eu
name=$(basename "$INPUT_FILE_PATH")
sed -n 's/^# //p' "$INPUT_FILE_PATH" | tr '[:lower:]' '[:upper:]' >"$TMP_OUTPUT_DIR/${name%.*}.title"
