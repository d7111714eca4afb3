#!/bin/sh
# Makes the Python environment of the tests' S3 server, in .cache/tools/s3, from pinned versions of PyPI. Does nothing when it is there.
set -eu
cd "$(dirname "$0")/.."

wanted=$(cksum <scripts/s3-requirements.txt | tr ' ' '-')
place=.cache/tools/s3
[ "$(cat "$place/made-from" 2>/dev/null || true)" = "$wanted" ] && exit 0

echo "making $place (a few seconds, from PyPI)"
rm -rf "$place"
mkdir -p .cache/tools
# The system's own, whatever else is on the PATH.
python=/usr/bin/python3
[ -x "$python" ] || python=python3
"$python" -m venv "$place"
"$place/bin/pip" install --quiet --no-input --disable-pip-version-check --no-deps --requirement scripts/s3-requirements.txt
echo "$wanted" >"$place/made-from"
