#!/bin/sh
# Installs lockgate with its two other names. From an unpacked archive: everything, `./install.sh [--prefix /usr/local]`.
# From a build: the program, `scripts/install.sh FILE [PREFIX]`.
set -eu

here=$(dirname "$0")
prefix=/usr/local
program=
while [ $# -gt 0 ]; do
    case "$1" in
    --prefix) prefix="${2:?--prefix needs a folder}" && shift 2 ;;
    -*) echo "usage: install.sh [--prefix DIR] | install.sh FILE [PREFIX]" >&2 && exit 2 ;;
    *) program="$1" && prefix="${2:-/usr/local}" && break ;;
    esac
done
archive=
if [ -z "$program" ]; then
    archive=yes
    program="$here/bin/lockgate"
fi
[ -f "$program" ] || { echo "error: $program is not there" >&2 && exit 1; }

mkdir -p "$prefix/bin"
# Beside it first, then renamed over it: a running lockgate keeps its file, and no one ever sees half of one.
cp "$program" "$prefix/bin/.lockgate.new"
chmod 0755 "$prefix/bin/.lockgate.new"
mv -f "$prefix/bin/.lockgate.new" "$prefix/bin/lockgate"
ln -sfn lockgate "$prefix/bin/tsh"
ln -sfn lockgate "$prefix/bin/tctl"
if [ -n "$archive" ]; then
    mkdir -p "$prefix/share"
    cp -R "$here/share/." "$prefix/share/"
fi
echo "installed lockgate, tsh and tctl in $prefix/bin; nothing was started"
