#!/bin/sh
# Copies the built program to PREFIX/bin and links its two other names. usage: scripts/install.sh FILE [PREFIX]
set -eu

program="${1:?usage: scripts/install.sh FILE [PREFIX]}"
prefix="${2:-/usr/local}"

mkdir -p "$prefix/bin"
# Beside it first, then renamed over it: a running lockgate keeps its file, and no one ever sees half of one.
cp "$program" "$prefix/bin/.lockgate.new"
chmod 0755 "$prefix/bin/.lockgate.new"
mv -f "$prefix/bin/.lockgate.new" "$prefix/bin/lockgate"
ln -sfn lockgate "$prefix/bin/tsh"
ln -sfn lockgate "$prefix/bin/tctl"
echo "installed lockgate, tsh and tctl in $prefix/bin"
